// What inspect prints for people, part by part; inspect.cpp has the same as JSON.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/text/tokenizer.h"
#include "server/chat/chat_format.h"

namespace restkv {

struct TypeCount {
  int64_t tensors = 0, values = 0, bytes = 0;
};
// By type name, over all tensors of the file.
std::map<std::string, TypeCount> count_types(const TensorIndex& index);

// "full", "window 4096", each once a layer.
std::vector<std::string> layer_types(const ModelConfig& config);
std::string_view activation_name(Activation activation);

// Rows a (layer, KV head) may hold, in a sequence that fills max_model_len, and what they weigh.
struct BudgetPlan {
  std::vector<int32_t> c_lh;  // [L*K]
  int64_t rows = 0;           // their sum
  int64_t bytes = 0;          // of keys and values
};
BudgetPlan plan_budget_of(const ModelConfig& config, const EngineOptions& options, int64_t max_model_len);

void print_model(const Model& model);
void print_tokenizer(const Tokenizer& tokenizer);
void print_chat_format(const ChatFormat& format);
void print_plan(const MemoryPlan& plan);
void print_budget(const CacheSettings& cache, const BudgetPlan& budget);

}  // namespace restkv

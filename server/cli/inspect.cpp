// restkv inspect MODEL: what the file holds and what an engine with these settings would take of memory.
#include <array>
#include <cstdio>
#include <map>

#include <nlohmann/json.hpp>

#include "engine/eviction/budget.h"
#include "server/cli/model_loading.h"
#include "server/cli/verbs.h"
#include "server/config/logging.h"
#include "server/config/quantity.h"

namespace restkv {
namespace {

using Json = nlohmann::ordered_json;

struct TypeCount {
  int64_t tensors = 0, values = 0, bytes = 0;
};

// By type name, over all tensors of the file.
std::map<std::string, TypeCount> count_types(const TensorIndex& index) {
  std::map<std::string, TypeCount> counts;
  for (const FileTensor& tensor : index.tensors) {
    const bool is_known = tensor.unsupported_type.empty();
    TypeCount& count =
        counts[is_known ? std::string(dtype_info(tensor.dtype).name) : tensor.unsupported_type];
    int64_t values = 1;
    for (const int64_t size : tensor.shape) values *= size;
    count.tensors += 1;
    count.values += values;
    count.bytes += tensor.num_bytes;
  }
  return counts;
}

const char* scaling_name(RopeScaling scaling) {
  switch (scaling) {
    case RopeScaling::kNone: return "none";
    case RopeScaling::kLinear: return "linear";
    case RopeScaling::kLlama3: return "llama3";
    case RopeScaling::kYarn: return "yarn";
  }
  return "";
}

Json plan_json(const MemoryPlan& plan) {
  return {{"weights", plan.weights},
          {"projections", plan.projections},
          {"workspace", plan.workspace},
          {"scratch", plan.scratch},
          {"pool", plan.pool},
          {"ring", plan.ring},
          {"page_bytes", plan.page_bytes},
          {"pages", plan.pages},
          {"max_sequences", plan.max_sequences},
          {"max_model_len", plan.max_model_len}};
}

// C_lh [L][K] of a sequence that fills max_model_len.
Json budgets_json(const ModelConfig& config, const CacheSettings& settings, int64_t max_model_len) {
  std::vector<int32_t> windows;
  for (const LayerConfig& layer : config.layers) windows.push_back(layer.window);
  const CacheDimensions dims = {.num_layers = static_cast<int32_t>(config.num_layers),
                                .num_kv_heads = static_cast<int32_t>(config.num_kv_heads),
                                .window = windows};
  const SequenceBudget budget =
      plan_budget(settings, dims, nullptr, std::max<int64_t>(1, max_model_len - 1), 1);
  Json rows = Json::array();
  for (int32_t layer = 0; layer < dims.num_layers; ++layer) {
    const auto first = budget.c_lh.begin() + int64_t{layer} * dims.num_kv_heads;
    rows.push_back(std::vector<int32_t>(first, first + dims.num_kv_heads));
  }
  return rows;
}

Json model_json(const Model& model) {
  const ModelConfig& config = model.config;
  Json types = Json::object();
  int64_t parameters = 0;
  for (const auto& [name, count] : count_types(model.weights.storage)) {
    types[name] = {{"tensors", count.tensors}, {"values", count.values}, {"bytes", count.bytes}};
    parameters += count.values;
  }
  Json tensors = Json::array();
  for (const FileTensor& tensor : model.weights.storage.tensors) {
    const bool is_known = tensor.unsupported_type.empty();
    tensors.push_back({{"name", tensor.name},
                       {"type", is_known ? dtype_info(tensor.dtype).name : tensor.unsupported_type},
                       {"shape", tensor.shape}});
  }
  return {{"model", model.path},
          {"format", model.gguf ? "gguf" : "safetensors"},
          {"name", config.name},
          {"architecture", config.architecture},
          {"family", config.family},
          {"layers", config.num_layers},
          {"hidden_size", config.hidden_size},
          {"heads", config.num_heads},
          {"kv_heads", config.num_kv_heads},
          {"head_dim", config.head_dim},
          {"ffn_size", config.ffn_size},
          {"vocab_size", config.vocab_size},
          {"context", config.context_len},
          {"tied_embeddings", config.tied_embeddings},
          {"rope",
           {{"theta", config.rope.theta},
            {"scaling", scaling_name(config.rope.scaling)},
            {"factor", config.rope.factor}}},
          {"parameters", parameters},
          {"types", types},
          {"tensors", tensors}};
}

Json tokenizer_json(const Tokenizer& tokenizer) {
  return {{"kind", tokenizer.kind()},
          {"vocab_size", tokenizer.vocab_size()},
          {"bos_id", tokenizer.bos_id() < 0 ? Json() : Json(tokenizer.bos_id())},
          {"eos_ids", tokenizer.eos_ids()},
          {"adds_bos", tokenizer.adds_bos()}};
}

// "35136", "106.1M", "8.0B".
std::string values_text(int64_t values) {
  std::array<char, 32> buffer;
  if (values < 1'000'000) return std::to_string(values);
  const bool is_billions = values >= 1'000'000'000;
  std::snprintf(buffer.data(), buffer.size(), "%.1f%c",
                static_cast<double>(values) / (is_billions ? 1e9 : 1e6), is_billions ? 'B' : 'M');
  return buffer.data();
}

// "100000", "0.25".
std::string plain_text(double number) {
  std::array<char, 32> buffer;
  std::snprintf(buffer.data(), buffer.size(), "%.12g", number);
  return buffer.data();
}

void print_line(const char* label, const std::string& text) { std::printf("%-14s%s\n", label, text.c_str()); }

void print_model(const Model& model) {
  const ModelConfig& config = model.config;
  const auto number = [](int64_t value) { return std::to_string(value); };
  print_line("model", escape_text(model.path) + (model.gguf ? " (GGUF)" : " (Hugging Face folder)"));
  print_line("name", escape_text(config.name));
  print_line("architecture", escape_text(config.architecture));
  print_line("layers", number(config.num_layers) + ", hidden " + number(config.hidden_size) +
                           ", feed-forward " + number(config.ffn_size));
  print_line("attention", number(config.num_heads) + " heads, " + number(config.num_kv_heads) +
                              " KV heads of " + number(config.head_dim));
  std::string rope = "theta " + plain_text(config.rope.theta);
  if (config.rope.scaling != RopeScaling::kNone) {
    rope += std::string(", ") + scaling_name(config.rope.scaling) + " x " + plain_text(config.rope.factor);
  }
  print_line("rotary", rope);
  print_line("context", number(config.context_len) + " tokens");
  print_line("vocabulary",
             number(config.vocab_size) + (config.tied_embeddings ? ", head tied to the embedding" : ""));
  const std::map<std::string, TypeCount> types = count_types(model.weights.storage);
  int64_t parameters = 0;
  for (const auto& [name, count] : types) parameters += count.values;
  print_line("parameters", values_text(parameters));
  for (const auto& [name, count] : types) {
    print_line(&name == &types.begin()->first ? "weights" : "",
               escape_text(name) + ": " + number(count.tensors) + " tensors, " + values_text(count.values) +
                   " values, " + rounded_size_text(count.bytes));
  }
}

void print_tokenizer(const Tokenizer& tokenizer) {
  std::string ends;
  for (const int32_t id : tokenizer.eos_ids()) {
    ends += (ends.empty() ? "" : ", ") + std::to_string(id) + " " + escape_text(tokenizer.token_text(id));
  }
  print_line("tokenizer", std::string(tokenizer.kind()) + ", " + std::to_string(tokenizer.vocab_size()) +
                              " tokens, ends with " + (ends.empty() ? "nothing" : ends) +
                              (tokenizer.adds_bos() ? ", adds BOS" : ""));
}

void print_plan(const MemoryPlan& plan) {
  print_line("memory", "weights " + rounded_size_text(plan.weights) + " (mapped)");
  print_line("", "workspace of a step " + rounded_size_text(plan.workspace));
  print_line("", "prefill scratch " + rounded_size_text(plan.scratch));
  print_line("", "cache " + rounded_size_text(plan.pool) + " = " + std::to_string(plan.pages) + " pages of " +
                     rounded_size_text(plan.page_bytes) + ", touched as they are used");
  print_line("room", std::to_string(plan.max_sequences) + " sequences of " +
                         std::to_string(plan.max_model_len) + " tokens at once");
}

}  // namespace

int run_inspect(const Invocation& invocation) {
  const Settings& settings = invocation.settings();
  const Result<std::shared_ptr<const Model>> loaded = load_model_of(settings);
  if (!loaded.ok()) return fail(loaded.status());
  const Model& model = **loaded;
  const Result<std::shared_ptr<const Tokenizer>> tokenizer =
      model.gguf ? load_gguf_tokenizer(*model.gguf) : load_tokenizer(model.path);
  const Result<MemoryPlan> plan = plan_memory(model, settings.engine);

  // A part that fails leaves the others to be seen.
  if (settings.output.json) {
    Json json = model_json(model);
    json["tokenizer"] = tokenizer.ok() ? tokenizer_json(**tokenizer) : Json();
    json["plan"] = plan.ok() ? plan_json(*plan) : Json();
    if (plan.ok() && settings.cache.defaults.budget)
      json["plan"]["c_lh"] = budgets_json(model.config, settings.engine.cache, plan->max_model_len);
    std::puts(json.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    print_model(model);
    if (tokenizer.ok()) print_tokenizer(**tokenizer);
    if (plan.ok()) print_plan(*plan);
  }
  int exit_code = kExitOk;
  if (!tokenizer.ok()) exit_code = fail(tokenizer.status());
  if (!plan.ok()) exit_code = fail(plan.status());
  return exit_code;
}

}  // namespace restkv

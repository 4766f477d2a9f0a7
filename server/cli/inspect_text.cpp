// One line a fact.
#include "server/cli/inspect_text.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "engine/eviction/budget.h"
#include "server/config/logging.h"
#include "server/config/quantity.h"

namespace restkv {
namespace {

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

std::string rope_text(const RopeConfig& rope) {
  std::string text = "theta " + plain_text(rope.theta);
  if (rope.scaling != RopeScaling::kNone) {
    text += ", " + std::string(rope_scaling_name(rope.scaling)) + " x " + plain_text(rope.factor);
    if (rope.original_context > 0) text += " of " + std::to_string(rope.original_context) + " tokens";
  }
  if (!rope.freq_factors.empty()) text += ", divided by the file's rope_freqs";
  return text;
}

// "30 x full", or the pattern of the first layers: "full 6, window 512 30: w w w w w f ...".
std::string layers_text(const ModelConfig& config) {
  const std::vector<std::string> types = layer_types(config);
  std::map<std::string, int> counts;
  for (const std::string& type : types) ++counts[type];
  std::string text;
  for (const auto& [type, count] : counts)
    text += (text.empty() ? "" : ", ") + std::to_string(count) + " x " + type;
  return text + (counts.size() > 1 ? ", the first is " + types.front() : "") + " attention";
}

// What sets the family apart: norms, activation, biases, caps.
std::string block_text(const ModelConfig& config) {
  std::string text = std::string(activation_name(config.activation)) + ", norms " +
                     (config.norms == NormPlacement::kPre ? "before" : "before and behind") + " each part";
  if (config.qk_norm) text += ", queries and keys normed";
  if (config.qkv_bias) text += ", QKV bias";
  if (config.embedding_scale != 1.0) text += ", embedding x " + plain_text(config.embedding_scale);
  if (config.attention_softcap > 0) text += ", scores capped at " + plain_text(config.attention_softcap);
  if (config.final_softcap > 0) text += ", logits capped at " + plain_text(config.final_softcap);
  return text;
}

}  // namespace

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

std::vector<std::string> layer_types(const ModelConfig& config) {
  std::vector<std::string> types;
  for (const LayerConfig& layer : config.layers)
    types.push_back(layer.window > 0 ? "window " + std::to_string(layer.window) : "full");
  return types;
}

std::string_view activation_name(Activation activation) {
  switch (activation) {
    case Activation::kSilu: return "SwiGLU";
    default: return "GeGLU";
  }
}

BudgetPlan plan_budget_of(const ModelConfig& config, const EngineOptions& options, int64_t max_model_len) {
  std::vector<int32_t> windows;
  for (const LayerConfig& layer : config.layers) windows.push_back(layer.window);
  const CacheDimensions dims = {.num_layers = static_cast<int32_t>(config.num_layers),
                                .num_kv_heads = static_cast<int32_t>(config.num_kv_heads),
                                .window = windows};
  BudgetPlan plan;
  plan.c_lh = plan_budget(options.cache, dims,
                          options.allocation ? &options.allocation->of(options.cache.decode) : nullptr,
                          std::max<int64_t>(1, max_model_len - 1), 1)
                  .c_lh;
  for (const int32_t rows : plan.c_lh) plan.rows += rows;
  const int64_t value_bytes = options.cache_dtype == DType::kF16 ? 2 : 4;
  plan.bytes = plan.rows * 2 * config.head_dim * value_bytes;
  return plan;
}

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
  print_line("", layers_text(config));
  print_line("block", block_text(config));
  print_line("rotary", rope_text(config.rope));
  if (std::any_of(config.layers.begin(), config.layers.end(),
                  [](const LayerConfig& l) { return l.local_rope; }))
    print_line("", "in windowed layers " + rope_text(config.rope_local));
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
  print_line("", "a sequence of " + std::to_string(plan.max_model_len) + " tokens takes " +
                     rounded_size_text(plan.sequence) + " of it");
  print_line("room", std::to_string(plan.max_sequences) + " sequences of " +
                         std::to_string(plan.max_model_len) + " tokens at once");
}

void print_chat_format(const ChatFormat& format) {
  if (format.templates().empty()) return print_line("chat template", "none");
  std::string text = "from " + escape_text(format.origin());
  for (const auto& [name, named] : format.templates())
    text += ", " + escape_text(name) + " (" + std::to_string(named.source.size()) + " bytes)";
  print_line("chat template", text);
  if (const Status status = format.status(); !status.ok())
    print_line("", "cannot be used: " + escape_text(status.message()));
}

void print_budget(const CacheSettings& cache, const BudgetPlan& budget) {
  std::string text = "policy " + std::string(policy_name(cache.policy));
  if (cache.policy != PolicyKind::kFull) {
    const auto [least, most] = std::minmax_element(budget.c_lh.begin(), budget.c_lh.end());
    text += ", at most " + std::to_string(*least) + (*least == *most ? "" : " to " + std::to_string(*most)) +
            " entries a (layer, KV head)";
  }
  print_line("budget", text + "; " + std::to_string(budget.rows) + " entries, " +
                           rounded_size_text(budget.bytes) +
                           " of keys and values in a sequence of the longest length");
}

}  // namespace restkv

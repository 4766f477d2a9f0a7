// restkv inspect MODEL: what the file holds and what an engine with these settings would take of memory.
#include <algorithm>
#include <cstdio>

#include <nlohmann/json.hpp>

#include "server/cli/allocation_path.h"
#include "server/cli/inspect_text.h"
#include "server/cli/model_loading.h"
#include "server/cli/verbs.h"

namespace restkv {
namespace {

using Json = nlohmann::ordered_json;

Json plan_json(const MemoryPlan& plan) {
  return {{"weights", plan.weights},
          {"projections", plan.projections},
          {"workspace", plan.workspace},
          {"scratch", plan.scratch},
          {"pool", plan.pool},
          {"tables", plan.tables},
          {"sequence", plan.sequence},
          {"ring", plan.ring},
          {"page_bytes", plan.page_bytes},
          {"pages", plan.pages},
          {"max_sequences", plan.max_sequences},
          {"max_model_len", plan.max_model_len}};
}

// [L][K]
Json rows_json(const ModelConfig& config, const std::vector<int32_t>& c_lh) {
  Json rows = Json::array();
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const auto first = c_lh.begin() + layer * config.num_kv_heads;
    rows.push_back(std::vector<int32_t>(first, first + config.num_kv_heads));
  }
  return rows;
}

Json rope_json(const RopeConfig& rope) {
  const bool is_plain = rope.scaling == RopeScaling::kNone;
  return {{"theta", rope.theta},
          {"scaling", is_plain ? "none" : rope_scaling_name(rope.scaling)},
          {"factor", rope.factor},
          {"original_context", rope.original_context > 0 ? Json(rope.original_context) : Json()},
          {"frequency_factors", !rope.freq_factors.empty()}};
}

// The row of the family table as this model has it.
Json family_json(const ModelConfig& config) {
  return {{"name", config.family},
          {"activation", activation_name(config.activation)},
          {"post_norms", config.norms == NormPlacement::kPreAndPost},
          {"norm_eps", config.norm_eps},
          {"norm_offset", config.norm_offset},
          {"qk_norm", config.qk_norm},
          {"qkv_bias", config.qkv_bias},
          {"embedding_scale", config.embedding_scale},
          {"attention_scale", config.attention_scale},
          {"attention_softcap", config.attention_softcap > 0 ? Json(config.attention_softcap) : Json()},
          {"final_softcap", config.final_softcap > 0 ? Json(config.final_softcap) : Json()}};
}

Json sampling_json(const ModelConfig::SamplingDefaults& sampling) {
  Json json = Json::object();
  if (sampling.temperature) json["temperature"] = *sampling.temperature;
  if (sampling.top_p) json["top_p"] = *sampling.top_p;
  if (sampling.top_k) json["top_k"] = *sampling.top_k;
  if (sampling.min_p) json["min_p"] = *sampling.min_p;
  if (sampling.repetition_penalty) json["repetition_penalty"] = *sampling.repetition_penalty;
  return json;
}

Json chat_json(const ChatFormat& format) {
  if (format.templates().empty()) return {};
  Json templates = Json::object();
  for (const auto& [name, named] : format.templates()) {
    templates[name] = {{"source", named.source},
                       {"error", named.parsed ? Json() : Json(named.error.message())},
                       {"knows_developer", named.knows_developer}};
  }
  return {{"from", format.origin()},
          {"bos_token", format.bos_token()},
          {"eos_token", format.eos_token()},
          {"templates", templates}};
}

Json model_json(const Model& model) {
  const ModelConfig& config = model.config;
  Json types = Json::object();
  int64_t parameters = 0;
  for (const auto& [name, count] : count_types(model.weights.storage)) {
    types[name] = {{"tensors", count.tensors}, {"values", count.values}, {"bytes", count.bytes}};
    parameters += count.values;
  }
  const bool has_local_rope = std::any_of(config.layers.begin(), config.layers.end(),
                                          [](const LayerConfig& l) { return l.local_rope; });
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
          {"family_table", family_json(config)},
          {"layer_types", layer_types(config)},
          {"rope", rope_json(config.rope)},
          {"rope_local", has_local_rope ? rope_json(config.rope_local) : Json()},
          {"eos_token_ids", config.eos_token_ids},
          {"sampling", sampling_json(config.sampling)},
          {"parameters", parameters},
          {"types", types},
          {"tensors", tensors}};
}

Json tokenizer_json(const Tokenizer& tokenizer) {
  Json special = Json::array();
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (tokenizer.is_special(id)) special.push_back({{"id", id}, {"text", tokenizer.token_text(id)}});
  }
  return {{"kind", tokenizer.kind()},
          {"vocab_size", tokenizer.vocab_size()},
          {"bos_id", tokenizer.bos_id() < 0 ? Json() : Json(tokenizer.bos_id())},
          {"eos_ids", tokenizer.eos_ids()},
          {"adds_bos", tokenizer.adds_bos()},
          {"special_tokens", special}};
}

}  // namespace

int run_inspect(const Invocation& invocation) {
  Settings settings = invocation.settings();
  const Result<std::shared_ptr<const Model>> loaded = load_model_of(settings);
  if (!loaded.ok()) return fail(loaded.status());
  const Model& model = **loaded;
  if (Status status = apply_allocation(model, settings); !status.ok()) return fail(status);
  const Result<std::shared_ptr<const Tokenizer>> tokenizer =
      model.gguf ? load_gguf_tokenizer(*model.gguf) : load_tokenizer(model.path);
  std::shared_ptr<const ChatFormat> chat_format;
  Status text_status = tokenizer.ok() ? check_tokenizer_fits(**tokenizer, model.config) : tokenizer.status();
  if (tokenizer.ok()) {
    Result<std::shared_ptr<const ChatFormat>> format =
        load_chat_format(model.path, model.gguf.get(), **tokenizer, settings.model.chat_template);
    if (!format.ok()) return fail(format.status());
    chat_format = *std::move(format);
  }
  const Result<MemoryPlan> plan = plan_memory(model, settings.engine);
  const BudgetPlan budget = plan_budget_of(model.config, settings.engine,
                                           plan.ok() ? plan->max_model_len : model.config.context_len);

  // A part that fails leaves the others to be seen.
  if (settings.output.json) {
    Json json = model_json(model);
    json["tokenizer"] = tokenizer.ok() ? tokenizer_json(**tokenizer) : Json();
    json["chat_template"] = chat_format ? chat_json(*chat_format) : Json();
    json["plan"] = plan.ok() ? plan_json(*plan) : Json();
    json["sequence"] = {{"policy", policy_name(settings.engine.cache.policy)},
                        {"entries", budget.rows},
                        {"kv_bytes", budget.bytes}};
    if (plan.ok() && settings.cache.defaults.budget)
      json["plan"]["c_lh"] = rows_json(model.config, budget.c_lh);
    std::puts(json.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    print_model(model);
    if (tokenizer.ok()) print_tokenizer(**tokenizer);
    if (chat_format) print_chat_format(*chat_format);
    if (plan.ok()) {
      print_plan(*plan);
      print_budget(settings.engine.cache, budget);
    }
  }
  int exit_code = kExitOk;
  if (!text_status.ok()) exit_code = fail(text_status);
  if (!plan.ok()) exit_code = fail(plan.status());
  return exit_code;
}

}  // namespace restkv

// config.json and generation_config.json: as released (rope_theta, rope_scaling, sliding_window_pattern, torch_dtype) and
// as transformers 5 writes them (rope_parameters, layer_types, dtype). Defaults of absent fields: the family table.
#include <array>
#include <cmath>

#include "engine/model/config_fields.h"
#include "engine/model/json_reader.h"
#include "engine/model/model_config.h"

namespace restkv {
namespace {

using nlohmann::json;

constexpr int64_t kMaxTokenId = (int64_t{1} << 31) - 1;

// Fields of models that are more than these families: refused by name, whatever the architecture says.
constexpr std::array<std::string_view, 4> kExpertKeys = {"num_local_experts", "num_experts",
                                                         "n_routed_experts", "moe_num_experts"};

Status check_features(JsonFields& fields) {
  if (const json* quantization = fields.find("quantization_config")) {
    std::string method = "unnamed";
    if (quantization->is_object() && quantization->contains("quant_method") &&
        (*quantization)["quant_method"].is_string()) {
      method = (*quantization)["quant_method"].get<std::string>();
    }
    return unimplemented("quantization_config: the method '" + method +
                         "' is not supported; weights in F32, F16 or BF16, or a GGUF file are")
        .with_param("quantization_config");
  }
  for (const std::string_view key : kExpertKeys) {
    if (fields.integer(key, 0, 0, INT64_MAX) > 1) {
      return unimplemented("mixture of experts (" + fields.path(key) +
                           ") is not supported; supported are the dense " + supported_hf_architectures())
          .with_param(fields.path(key));
    }
  }
  if (fields.number("partial_rotary_factor", 1.0, 0.0, 1.0) != 1.0) {
    return unimplemented(fields.path("partial_rotary_factor") +
                         ": rotating a part of a head is not supported")
        .with_param(fields.path("partial_rotary_factor"));
  }
  if (fields.boolean("use_bidirectional_attention", false)) {
    return unimplemented(fields.path("use_bidirectional_attention") + ": only causal attention is supported")
        .with_param(fields.path("use_bidirectional_attention"));
  }
  return {};
}

Result<const Family*> find_family(JsonFields& root, std::string* architecture) {
  const json* list = root.find("architectures");
  if (list != nullptr) {
    if (!list->is_array() || list->empty() || !list->front().is_string()) {
      return bad_field("architectures", "not a list of names",
                       "supported are " + supported_hf_architectures());
    }
    *architecture = list->front().get<std::string>();
    if (const Family* family = find_family_by_hf_architecture(*architecture)) return family;
    return unimplemented("the architecture " + *architecture + " is not supported; supported are " +
                         supported_hf_architectures())
        .with_param("architectures");
  }
  const std::string model_type = root.text("model_type", "");
  const Family* family = find_family_by_hf_model_type(model_type);
  if (family == nullptr) {
    return unimplemented("no 'architectures', and the model_type '" + model_type +
                         "' is not supported; supported architectures are " + supported_hf_architectures())
        .with_param("model_type");
  }
  *architecture = family->hf_architectures.front();
  return family;
}

// One rotary embedding from its scaling object, which may be absent; theta is in the object (transformers 5) or given.
void read_rope(std::optional<JsonFields> scaling, double theta, JsonFields& fields, int64_t max_positions,
               RopeConfig* rope) {
  rope->theta = theta;
  if (!scaling) return;
  rope->theta = scaling->number("rope_theta", theta, 1.0, kMaxTheta);
  const std::string type = scaling->text("rope_type", scaling->text("type", "default"));
  const std::optional<RopeScaling> known = rope_scaling_from_name(type);
  if (!known) {
    const std::string key = scaling->path(scaling->has("rope_type") ? "rope_type" : "type");
    return fields.fail(unimplemented(key + " '" + type +
                                     "' is not supported; supported are default, linear, llama3 and yarn")
                           .with_param(key));
  }
  rope->scaling = *known;
  constexpr double kMaxFactor = 1e6;
  const bool is_yarn = *known == RopeScaling::kYarn;
  if (scaling->number("partial_rotary_factor", 1.0, 0.0, 1.0) != 1.0) {
    const std::string key = scaling->path("partial_rotary_factor");
    return fields.fail(unimplemented(key + ": rotating a part of a head is not supported").with_param(key));
  }
  if (*known == RopeScaling::kNone) return;
  if (*known != RopeScaling::kLinear) {
    // Beside the sizes it decides, as transformers reads it; nowhere, it is the whole context.
    const std::string_view key = "original_max_position_embeddings";
    JsonFields& owner = fields.has(key) ? fields : *scaling;
    rope->original_context = owner.integer(key, max_positions, 1, kMaxContext);
  }
  std::optional<double> factor_fallback;
  const bool has_original =
      scaling->has("original_max_position_embeddings") || fields.has("original_max_position_embeddings");
  if (is_yarn && has_original && rope->original_context <= max_positions) {
    factor_fallback = static_cast<double>(max_positions) / static_cast<double>(rope->original_context);
  }
  rope->factor = scaling->number("factor", factor_fallback, 1.0, kMaxFactor);
  if (*known == RopeScaling::kLlama3) {
    rope->low_freq_factor = scaling->number("low_freq_factor", std::nullopt, 1e-3, 1e6);
    rope->high_freq_factor = scaling->number("high_freq_factor", std::nullopt, 1e-3, 1e6);
    if (rope->high_freq_factor <= rope->low_freq_factor) {
      fields.fail(bad_field(scaling->path("high_freq_factor"), number_text(rope->high_freq_factor),
                            "above low_freq_factor (" + number_text(rope->low_freq_factor) + ") is allowed"));
    }
  }
  if (is_yarn) {
    rope->beta_fast = scaling->number("beta_fast", 32.0, 1e-6, 1e6);
    rope->beta_slow = scaling->number("beta_slow", 1.0, 1e-6, 1e6);
    if (rope->beta_fast < rope->beta_slow) {
      fields.fail(bad_field(scaling->path("beta_fast"), number_text(rope->beta_fast),
                            "at least beta_slow (" + number_text(rope->beta_slow) + ") is allowed"));
    }
    rope->attention_factor = scaling->optional_number("attention_factor", 1e-6, 1e6);
    rope->mscale = scaling->optional_number("mscale", 0.0, 1e6);
    rope->mscale_all_dim = scaling->optional_number("mscale_all_dim", 0.0, 1e6);
    rope->truncate = scaling->boolean("truncate", true);
  }
}

void read_ropes(const Family& family, JsonFields& fields, ModelConfig* config) {
  const int64_t max_positions = config->context_len;
  const double theta = fields.number("rope_theta", family.theta, 1.0, kMaxTheta);
  std::optional<JsonFields> parameters = fields.object("rope_parameters");
  std::optional<JsonFields> local;
  if (parameters && (parameters->has("full_attention") || parameters->has("sliding_attention"))) {
    local = parameters->object("sliding_attention");
    parameters = parameters->object("full_attention");
  } else if (!parameters) {
    parameters = fields.object("rope_scaling");
  }
  read_rope(parameters, theta, fields, max_positions, &config->rope);
  if (family.has_local_rope) {
    const double local_theta = fields.number("rope_local_base_freq", family.local_theta, 1.0, kMaxTheta);
    read_rope(local, local_theta, fields, max_positions, &config->rope_local);
  }
  if (config->rope.scaling == RopeScaling::kYarn) {
    const double extended = static_cast<double>(config->rope.original_context) * config->rope.factor;
    const double limit = static_cast<double>(kMaxContext);
    config->context_len = std::max(max_positions, static_cast<int64_t>(std::min(extended, limit)));
  }
}

// True for layers with a window, by the family's rule.
bool is_windowed(const Family& family, JsonFields& fields, int64_t layer) {
  switch (family.windows) {
    case WindowRule::kNone: return false;
    case WindowRule::kAll: return true;
    case WindowRule::kFromLayer:
      return layer >= fields.integer("max_window_layers", family.max_window_layers, 0, INT64_MAX);
    case WindowRule::kEveryButNth:
      return (layer + 1) % fields.integer("sliding_window_pattern", family.window_pattern, 1, kMaxLayers) !=
             0;
  }
  return false;
}

void read_layers(const Family& family, JsonFields& fields, ModelConfig* config) {
  config->layers.resize(static_cast<size_t>(config->num_layers));
  const bool may_have_window =
      family.window > 0 && !fields.is_null("sliding_window") &&
      (family.windows != WindowRule::kFromLayer || fields.boolean("use_sliding_window", false));
  const int32_t window =
      may_have_window ? static_cast<int32_t>(fields.integer("sliding_window", family.window, 1, kMaxContext))
                      : 0;
  const json* types = family.windows == WindowRule::kNone ? nullptr : fields.find("layer_types");
  if (types != nullptr && (!types->is_array() || types->size() != config->layers.size())) {
    return fields.fail(
        bad_field(fields.path("layer_types"),
                  types->is_array() ? "a list of " + std::to_string(types->size()) : "not a list",
                  "num_hidden_layers (" + std::to_string(config->num_layers) + ") names are expected"));
  }
  for (int64_t l = 0; l < config->num_layers; ++l) {
    bool windowed = window > 0 && is_windowed(family, fields, l);
    if (types != nullptr) {
      const json& type = (*types)[static_cast<size_t>(l)];
      if (type != "sliding_attention" && type != "full_attention") {
        return fields.fail(bad_field(fields.path("layer_types[" + std::to_string(l) + "]"),
                                     type.is_string() ? type.get<std::string>() : "not a string",
                                     "sliding_attention and full_attention are supported"));
      }
      windowed = type == "sliding_attention" && window > 0;
    }
    LayerConfig& layer = config->layers[static_cast<size_t>(l)];
    layer.window = windowed ? window : 0;
    layer.local_rope = windowed && family.has_local_rope;
  }
}

void read_activation(const Family& family, JsonFields& fields) {
  const std::string name = fields.text(family.activation_key, "");
  if (name.empty()) return;
  const bool is_silu = family.activation == Activation::kSilu;
  const bool matches = is_silu ? name == "silu" || name == "swish"
                               : name == "gelu_pytorch_tanh" || name == "gelu_new";  // the same formula
  if (!matches) {
    fields.fail(unimplemented(fields.path(family.activation_key) + " '" + name + "' is not supported for " +
                              std::string(family.name) + "; " + (is_silu ? "silu" : "gelu_pytorch_tanh") +
                              " is")
                    .with_param(fields.path(family.activation_key)));
  }
}

void read_sizes(const Family& family, JsonFields& fields, ModelConfig* config) {
  const auto or_required = [](int64_t value) {
    return value > 0 ? std::optional<int64_t>(value) : std::nullopt;
  };
  config->num_layers = fields.integer("num_hidden_layers", std::nullopt, 1, kMaxLayers);
  config->hidden_size = fields.integer("hidden_size", std::nullopt, 1, kMaxHidden);
  config->num_heads = fields.integer("num_attention_heads", or_required(family.num_heads), 1, kMaxHeads);
  // null means one KV head a query head; a key that is not there takes the family's number.
  const bool follows_heads = fields.is_null("num_key_value_heads") || family.num_kv_heads == 0;
  config->num_kv_heads = fields.integer(
      "num_key_value_heads", follows_heads ? config->num_heads : family.num_kv_heads, 1, kMaxHeads);
  config->head_dim = fields.has("head_dim")       ? fields.integer("head_dim", std::nullopt, 1, kMaxHeadDim)
                     : fields.is_null("head_dim") ? 0
                                                  : family.head_dim;
  config->ffn_size = fields.integer("intermediate_size", std::nullopt, 1, kMaxFfn);
  config->vocab_size = fields.integer("vocab_size", or_required(family.vocab_size), 1, kMaxVocab);
  config->context_len = fields.integer("max_position_embeddings", family.context_len, 1, kMaxContext);
}

void read_scales(const Family& family, JsonFields& fields, ModelConfig* config) {
  config->norm_eps = fields.number("rms_norm_eps", family.norm_eps, 0.0, 1.0);
  config->norm_offset = family.hf_norm_offset;
  const double scalar = family.query_pre_attn_scalar > 0.0
                            ? fields.number("query_pre_attn_scalar", family.query_pre_attn_scalar, 1e-6, 1e9)
                            : static_cast<double>(config->head_dim);
  config->attention_scale = 1.0 / std::sqrt(scalar);
  // Families without a score cap do not read the key.
  if (family.query_pre_attn_scalar > 0.0) {
    const auto cap = [&](std::string_view key, double fallback) {
      return fields.is_null(key) ? 0.0 : fields.number(key, fallback, 0.0, 1e6);
    };
    config->attention_softcap = cap("attn_logit_softcapping", family.attention_softcap);
    config->final_softcap = cap("final_logit_softcapping", family.final_softcap);
  }
  const bool attention_bias = fields.boolean("attention_bias", false);
  config->qkv_bias = family.qkv_bias || attention_bias;
  config->o_bias = attention_bias && !family.qkv_bias;
  config->mlp_bias = fields.boolean("mlp_bias", false);
}

void add_ids(const std::vector<int64_t>& ids, std::vector<int64_t>* out) {
  for (const int64_t id : ids) {
    if (std::find(out->begin(), out->end(), id) == out->end()) out->push_back(id);
  }
}

Status read_generation_config(std::string_view text, ModelConfig* config) {
  Result<json> parsed = parse_json(text);
  if (!parsed.ok()) return parsed.status();
  if (!parsed->is_object()) return invalid_argument("it is not an object");
  Status status;
  JsonFields fields(*parsed, "", &status);
  add_ids(fields.integer_list("eos_token_id", 0, kMaxTokenId), &config->eos_token_ids);
  config->sampling.temperature = fields.optional_number("temperature", 0.0, 1e6);
  config->sampling.top_p = fields.optional_number("top_p", 0.0, 1.0);
  config->sampling.min_p = fields.optional_number("min_p", 0.0, 1.0);
  config->sampling.repetition_penalty = fields.optional_number("repetition_penalty", 1e-6, 1e6);
  if (fields.has("top_k")) config->sampling.top_k = fields.integer("top_k", 0, 0, kMaxTokenId);
  return status;
}

}  // namespace

Result<ModelConfig> parse_hf_config(std::string_view config_json, std::string_view generation_config_json) {
  Result<json> parsed = parse_json(config_json);
  if (!parsed.ok()) return invalid_argument("config.json: " + parsed.status().message());
  if (!parsed->is_object()) return invalid_argument("config.json: it is not an object");
  const auto in_file = [](const char* file, const Status& status) {
    return Status(status.code(), std::string(file) + ": " + status.message()).with_param(status.param());
  };

  Status status;
  JsonFields root(*parsed, "", &status);
  ModelConfig config;
  Result<const Family*> found = find_family(root, &config.architecture);
  if (!found.ok()) return in_file("config.json", found.status());
  const Family& family = **found;

  // A wrapped text model has its sizes one level down; what both levels know, the inner one decides.
  std::optional<JsonFields> text = root.object("text_config");
  JsonFields fields = text ? *text : root;
  for (JsonFields* level : {&root, &fields}) {
    if (const Status refused = check_features(*level); !refused.ok()) return in_file("config.json", refused);
  }
  read_sizes(family, fields, &config);
  if (!status.ok()) return in_file("config.json", status);
  const SizeKeys keys = {fields.path("num_attention_heads"), fields.path("num_key_value_heads"),
                         fields.path("hidden_size"), fields.path("head_dim")};
  if (const Status bad = finish_heads(keys, &config); !bad.ok()) return in_file("config.json", bad);
  apply_family(family, &config);
  read_activation(family, fields);
  read_scales(family, fields, &config);
  read_ropes(family, fields, &config);
  read_layers(family, fields, &config);
  config.tied_embeddings =
      root.boolean("tie_word_embeddings", fields.boolean("tie_word_embeddings", family.tied_embeddings));
  std::vector<int64_t> ends = root.integer_list("eos_token_id", 0, kMaxTokenId);
  add_ids(ends.empty() ? fields.integer_list("eos_token_id", 0, kMaxTokenId) : ends, &config.eos_token_ids);
  for (JsonFields* level : {&fields, &root}) {
    const std::vector<int64_t> bos = level->integer_list("bos_token_id", 0, kMaxTokenId);
    if (!bos.empty()) config.bos_token_id = bos.front();
  }
  if (!status.ok()) return in_file("config.json", status);
  if (!generation_config_json.empty()) {
    if (const Status bad = read_generation_config(generation_config_json, &config); !bad.ok()) {
      return in_file("generation_config.json", bad);
    }
  }
  // Files of models whose vocabulary was cut name such ids: no row of logits has them, so they are never drawn.
  std::erase_if(config.eos_token_ids, [&](int64_t id) { return id >= config.vocab_size; });
  return config;
}

}  // namespace restkv

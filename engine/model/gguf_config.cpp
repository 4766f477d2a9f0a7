// ModelConfig from GGUF metadata, keys as llama.cpp's converter writes them ("<architecture>.<key>").
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/model/config_fields.h"
#include "engine/model/model_config.h"

namespace restkv {
namespace {

// Control tokens that end a turn, by their text: many files name only one of them in their metadata.
constexpr std::array<std::string_view, 7> kEndTexts = {
    "</s>", "<eos>", "<end_of_turn>", "<|eot_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>"};
constexpr int64_t kControlToken = 3;

// Keys of one architecture with ranges; the first wrong one is kept in status().
class GgufFields {
 public:
  GgufFields(const GgufFile& file, std::string_view architecture)
      : file_(file), prefix_(std::string(architecture) + ".") {}

  std::string path(std::string_view key) const { return prefix_ + std::string(key); }
  bool has(std::string_view key) const { return file_.has(path(key)); }
  const Status& status() const { return status_; }
  void fail(Status status) {
    if (status_.ok()) status_ = std::move(status);
  }

  int64_t integer(std::string_view key, std::optional<int64_t> fallback, int64_t min, int64_t max) {
    Result<std::optional<int64_t>> found = file_.get_int(path(key));
    if (!found.ok()) return failed(found.status(), fallback.value_or(min));
    if (!found->has_value()) return absent(key, fallback, min);
    if (**found < min || **found > max) {
      return failed(
          bad_field(path(key), std::to_string(**found),
                    "an integer from " + std::to_string(min) + " to " + std::to_string(max) + " is allowed"),
          min);
    }
    return **found;
  }

  double number(std::string_view key, std::optional<double> fallback, double min, double max) {
    Result<std::optional<double>> found = file_.get_float(path(key));
    if (!found.ok()) return failed(found.status(), fallback.value_or(min));
    if (!found->has_value()) return absent(key, fallback, min);
    if (!(**found >= min && **found <= max)) {
      return failed(
          bad_field(path(key), number_text(**found),
                    "a number from " + number_text(min) + " to " + number_text(max) + " is allowed"),
          min);
    }
    return **found;
  }

  // One number for all layers, also where the file has one for each: they must agree.
  int64_t same_for_all_layers(std::string_view key, std::optional<int64_t> fallback, int64_t max) {
    const GgufValue* value = file_.find(path(key));
    if (value == nullptr || !value->is_array) return integer(key, fallback, 1, max);
    Result<std::vector<int64_t>> list = file_.get_ints(path(key));
    if (!list.ok()) return failed(list.status(), 1);
    const bool is_uniform = !list->empty() && std::all_of(list->begin(), list->end(),
                                                          [&](int64_t n) { return n == list->front(); });
    if (!is_uniform || list->front() < 1 || list->front() > max) {
      return failed(bad_field(path(key), "a list of different or unusable numbers",
                              "one number from 1 to " + std::to_string(max) + " for all layers is supported"),
                    1);
    }
    return list->front();
  }

  std::string text(std::string_view key, std::string_view fallback) {
    Result<std::optional<std::string_view>> found = file_.get_string(path(key));
    if (!found.ok()) fail(found.status());
    return std::string(found.ok() && found->has_value() ? **found : fallback);
  }

 private:
  template <class T>
  T failed(Status status, T value) {
    fail(std::move(status));
    return value;
  }
  template <class T>
  T absent(std::string_view key, std::optional<T> fallback, T otherwise) {
    if (!fallback)
      fail(invalid_argument("metadata key '" + path(key) + "' is missing").with_param(path(key)));
    return fallback.value_or(otherwise);
  }

  const GgufFile& file_;
  std::string prefix_;
  Status status_;
};

// Rows of the embedding: the vocabulary the model really has.
Result<int64_t> vocab_size(const GgufFile& file, GgufFields& fields) {
  int64_t size = 0;
  if (const FileTensor* embedding = file.tensors().find("token_embd.weight"); embedding != nullptr) {
    size = embedding->shape.size() == 2 ? embedding->shape[0] : 0;
  } else if (const GgufValue* tokens = file.find("tokenizer.ggml.tokens");
             tokens != nullptr && tokens->is_array) {
    size = static_cast<int64_t>(std::min<uint64_t>(tokens->count, INT64_MAX));
  } else {
    size = fields.integer("vocab_size", std::nullopt, 1, kMaxVocab);
  }
  if (size < 1 || size > kMaxVocab) {
    return bad_field("the vocabulary (rows of token_embd.weight)", std::to_string(size),
                     "1 to " + std::to_string(kMaxVocab) + " is allowed");
  }
  return size;
}

void read_rope(const Family& family, GgufFields& fields, ModelConfig* config) {
  RopeConfig& rope = config->rope;
  rope.theta = fields.number("rope.freq_base", 10000.0, 1.0, kMaxTheta);
  if (family.has_local_rope) {
    config->rope_local.theta = fields.number("rope.freq_base_swa", family.local_theta, 1.0, kMaxTheta);
  }
  const int64_t rotated = fields.integer("rope.dimension_count", config->head_dim, 0, INT64_MAX);
  if (rotated != config->head_dim) {
    fields.fail(bad_field(fields.path("rope.dimension_count"), std::to_string(rotated),
                          "only the whole head (" + std::to_string(config->head_dim) + ") is supported"));
  }
  // Files from before rope.scaling.type say a factor alone, and older ones call it rope.scale_linear.
  const char* factor_key = fields.has("rope.scaling.factor") ? "rope.scaling.factor" : "rope.scale_linear";
  const double factor = fields.number(factor_key, 1.0, 0.0, 1e6);
  const std::string type = fields.text("rope.scaling.type", factor > 1.0 ? "linear" : "none");
  if (type == "none") return;
  if (type != "linear" && type != "yarn") {
    return fields.fail(unimplemented(fields.path("rope.scaling.type") + " '" + type +
                                     "' is not supported; supported are none, linear and yarn")
                           .with_param(fields.path("rope.scaling.type")));
  }
  rope.scaling = type == "linear" ? RopeScaling::kLinear : RopeScaling::kYarn;
  rope.factor = factor == 0.0 ? 1.0 : factor;  // 0: none
  if (rope.factor < 1.0) {
    return fields.fail(bad_field(fields.path(factor_key), number_text(factor),
                                 "0 or a number from 1 to 1000000 is allowed"));
  }
  if (rope.scaling == RopeScaling::kYarn) {
    rope.original_context =
        fields.integer("rope.scaling.original_context_length", config->context_len, 1, kMaxContext);
    rope.beta_fast = fields.number("rope.scaling.yarn_beta_fast", 32.0, 1e-6, 1e6);
    rope.beta_slow = fields.number("rope.scaling.yarn_beta_slow", 1.0, 1e-6, 1e6);
    // llama.cpp multiplies its own 0.1 ln(factor) + 1 by this number.
    const double extra = fields.number("rope.scaling.attn_factor", 1.0, 1e-6, 1e6);
    if (extra != 1.0) rope.attention_factor = extra * (0.1 * std::log(rope.factor) + 1.0);
    const double extended = static_cast<double>(rope.original_context) * rope.factor;
    config->context_len = std::max(
        config->context_len, static_cast<int64_t>(std::min(extended, static_cast<double>(kMaxContext))));
  }
}

// llama3 scaling, ready computed: one divisor a frequency.
Status read_freq_factors(const GgufFile& file, ModelConfig* config) {
  const FileTensor* tensor = file.tensors().find("rope_freqs.weight");
  if (tensor == nullptr) return {};
  const int64_t expected = config->head_dim / 2;
  if (tensor->data == nullptr || tensor->dtype != DType::kF32 ||
      tensor->shape != std::vector<int64_t>{expected}) {
    return invalid_argument("tensor 'rope_freqs.weight': expected F32 " + shape_text({expected}) +
                            ", found " +
                            (tensor->unsupported_type.empty() ? std::string(dtype_info(tensor->dtype).name)
                                                              : tensor->unsupported_type) +
                            " " + shape_text(tensor->shape));
  }
  config->rope.freq_factors.resize(static_cast<size_t>(expected));
  std::memcpy(config->rope.freq_factors.data(), tensor->data, static_cast<size_t>(tensor->num_bytes));
  for (const float factor : config->rope.freq_factors) {
    if (!(factor >= 1e-6f && factor <= 1e6f)) {
      return invalid_argument("tensor 'rope_freqs.weight': " + number_text(static_cast<double>(factor)) +
                              " is not a usable divisor of a frequency");
    }
  }
  return {};
}

// Which layers have a window: every `pattern`-th has none, or a list of one bool a layer says.
void read_layers(const GgufFile& file, const Family& family, GgufFields& fields, ModelConfig* config) {
  config->layers.resize(static_cast<size_t>(config->num_layers));
  // llama.cpp's graphs of the other architectures know no window, and its converter writes none.
  if (family.windows != WindowRule::kEveryButNth) return;
  const int64_t window = fields.integer("attention.sliding_window", family.window, 0, kMaxContext);
  if (window == 0) return;
  const std::string pattern_key = fields.path("attention.sliding_window_pattern");
  const GgufValue* pattern_value = file.find(pattern_key);
  std::vector<int64_t> flags;
  int64_t pattern = family.window_pattern;
  if (pattern_value != nullptr && pattern_value->is_array) {
    Result<std::vector<int64_t>> list = file.get_ints(pattern_key);
    if (!list.ok()) return fields.fail(list.status());
    if (list->size() != config->layers.size()) {
      return fields.fail(bad_field(pattern_key, "a list of " + std::to_string(list->size()),
                                   std::to_string(config->num_layers) + " are expected, one a layer"));
    }
    flags = *std::move(list);
  } else {
    pattern = fields.integer("attention.sliding_window_pattern", family.window_pattern, 1, kMaxLayers);
  }
  for (size_t l = 0; l < config->layers.size(); ++l) {
    const bool windowed = flags.empty() ? (static_cast<int64_t>(l) + 1) % pattern != 0 : flags[l] != 0;
    config->layers[l].window = windowed ? static_cast<int32_t>(window) : 0;
    config->layers[l].local_rope = windowed && family.has_local_rope;
  }
}

void add_id(int64_t id, std::vector<int64_t>* ids) {
  if (std::find(ids->begin(), ids->end(), id) == ids->end()) ids->push_back(id);
}

Status read_special_tokens(const GgufFile& file, ModelConfig* config) {
  for (const std::string_view key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                     "tokenizer.ggml.eom_token_id", "tokenizer.ggml.bos_token_id"}) {
    Result<std::optional<int64_t>> id = file.get_int(key);
    if (!id.ok()) return id.status();
    if (!id->has_value()) continue;
    if (**id < 0 || **id >= config->vocab_size) {
      return bad_field(key, std::to_string(**id),
                       "0 to " + std::to_string(config->vocab_size - 1) + " is allowed (the vocabulary)");
    }
    if (key == "tokenizer.ggml.bos_token_id") {
      config->bos_token_id = **id;
    } else {
      add_id(**id, &config->eos_token_ids);
    }
  }
  Result<std::vector<std::string_view>> tokens = file.get_strings("tokenizer.ggml.tokens");
  if (!tokens.ok()) return tokens.status();
  Result<std::vector<int64_t>> types = file.get_ints("tokenizer.ggml.token_type");
  if (!types.ok()) return types.status();
  for (size_t i = 0; i < std::min(tokens->size(), types->size()); ++i) {
    const bool is_end = (*types)[i] == kControlToken &&
                        std::find(kEndTexts.begin(), kEndTexts.end(), (*tokens)[i]) != kEndTexts.end();
    if (is_end && static_cast<int64_t>(i) < config->vocab_size)
      add_id(static_cast<int64_t>(i), &config->eos_token_ids);
  }
  return {};
}

Result<const Family*> find_family(const GgufFile& file, std::string* architecture) {
  Result<std::optional<std::string_view>> name = file.get_string("general.architecture");
  if (!name.ok()) return name.status();
  if (!name->has_value()) return invalid_argument("metadata key 'general.architecture' is missing");
  *architecture = **name;
  const Family* family = find_family_by_gguf(*architecture);
  if (family == nullptr) {
    return unimplemented("the architecture " + *architecture + " is not supported; supported are " +
                         supported_gguf_architectures())
        .with_param("general.architecture");
  }
  return family;
}

Result<ModelConfig> read_config(const GgufFile& file) {
  ModelConfig config;
  std::string architecture;
  Result<const Family*> found = find_family(file, &architecture);
  if (!found.ok()) return found.status();
  const Family& family = **found;
  config.architecture = family.hf_architectures.front();

  GgufFields fields(file, architecture);
  if (fields.integer("expert_count", 0, 0, INT64_MAX) > 0) {
    return unimplemented("mixture of experts (" + fields.path("expert_count") +
                         ") is not supported; supported are the dense " + supported_gguf_architectures())
        .with_param(fields.path("expert_count"));
  }
  config.num_layers = fields.integer("block_count", std::nullopt, 1, kMaxLayers);
  config.hidden_size = fields.integer("embedding_length", std::nullopt, 1, kMaxHidden);
  config.num_heads = fields.same_for_all_layers("attention.head_count", std::nullopt, kMaxHeads);
  config.num_kv_heads = fields.same_for_all_layers("attention.head_count_kv", config.num_heads, kMaxHeads);
  config.ffn_size = fields.same_for_all_layers("feed_forward_length", std::nullopt, kMaxFfn);
  config.head_dim = fields.integer("attention.key_length", 0, 0, kMaxHeadDim);
  config.context_len = fields.integer("context_length", std::nullopt, 1, kMaxContext);
  config.norm_eps = fields.number("attention.layer_norm_rms_epsilon", std::nullopt, 0.0, 1.0);
  Result<int64_t> vocab = vocab_size(file, fields);
  if (!fields.status().ok()) return fields.status();
  if (!vocab.ok()) return vocab.status();
  config.vocab_size = *vocab;
  const SizeKeys keys = {fields.path("attention.head_count"), fields.path("attention.head_count_kv"),
                         fields.path("embedding_length"), fields.path("attention.key_length")};
  if (const Status bad = finish_heads(keys, &config); !bad.ok()) return bad;
  const int64_t value_length = fields.integer("attention.value_length", config.head_dim, 1, INT64_MAX);
  if (value_length != config.head_dim) {
    return bad_field(fields.path("attention.value_length"), std::to_string(value_length),
                     "only the same as the keys' (" + std::to_string(config.head_dim) + ") is supported");
  }

  apply_family(family, &config);
  config.norm_offset = 0.0;
  config.rope_interleaved = family.gguf_rope_interleaved;
  config.tied_embeddings = file.tensors().find("output.weight") == nullptr;
  const bool is_wide =
      family.gguf_wide_scale_layers > 0 && config.num_layers == family.gguf_wide_scale_layers;
  config.attention_scale = 1.0 / std::sqrt(is_wide ? static_cast<double>(config.hidden_size) /
                                                         static_cast<double>(config.num_heads)
                                                   : static_cast<double>(config.head_dim));
  config.attention_softcap = fields.number("attn_logit_softcapping", family.attention_softcap, 0.0, 1e6);
  config.final_softcap = fields.number("final_logit_softcapping", family.final_softcap, 0.0, 1e6);
  read_rope(family, fields, &config);
  read_layers(file, family, fields, &config);
  if (!fields.status().ok()) return fields.status();
  if (const Status bad = read_freq_factors(file, &config); !bad.ok()) return bad;
  if (const Status bad = read_special_tokens(file, &config); !bad.ok()) return bad;
  Result<std::optional<std::string_view>> name = file.get_string("general.name");
  if (!name.ok()) return name.status();
  config.name = name->value_or("");
  return config;
}

}  // namespace

Result<ModelConfig> parse_gguf_config(const GgufFile& file) {
  Result<ModelConfig> config = read_config(file);
  if (config.ok()) return config;
  const Status& status = config.status();
  const bool names_file = status.message().starts_with(file.path());
  return Status(status.code(), (names_file ? "" : file.path() + ": ") + status.message())
      .with_param(status.param());
}

}  // namespace restkv

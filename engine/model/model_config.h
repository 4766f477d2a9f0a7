// What a model is, whatever file it came from. One ModelConfig from config.json (released and transformers-5 style) and
// from GGUF metadata; the transformer reads nothing else.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/gguf.h"
#include "kernels/backend.h"
#include "kernels/base/status.h"

namespace restkv {

enum class RopeScaling : uint8_t { kNone, kLinear, kLlama3, kYarn };
std::string_view rope_scaling_name(RopeScaling scaling);  // "default", "linear", "llama3", "yarn"
std::optional<RopeScaling> rope_scaling_from_name(std::string_view name);

// One rotary embedding: everything that decides inv_freq and the factor on cos and sin.
struct RopeConfig {
  double theta = 10000.0;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  double beta_fast = 32.0, beta_slow = 1.0;              // yarn
  std::optional<double> attention_factor;                // yarn; default 0.1 ln(factor) + 1
  std::optional<double> mscale, mscale_all_dim;          // yarn variants
  bool truncate = true;                                  // yarn: whole correction dims
  int64_t original_context = 0;                          // llama3, yarn
  std::vector<float> freq_factors;  // [D/2] from GGUF's rope_freqs.weight: inv_freq is divided by it
};

struct LayerConfig {
  int32_t window = 0;       // 0: full attention; else the query sees itself and window - 1 rows before it
  bool local_rope = false;  // uses rope_local (Gemma 3)
};

enum class NormPlacement : uint8_t { kPre, kPreAndPost };  // Gemma 2, 3 norm each block's output, too

struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM": the Hugging Face name, also for GGUF
  std::string family;        // row of the family table (families.h)
  std::string name;          // for people: general.name or the folder's name
  int64_t num_layers = 0;    // L
  int64_t hidden_size = 0;   // M
  int64_t num_heads = 0;     // H
  int64_t num_kv_heads = 0;  // K
  int64_t head_dim = 0;      // D
  int64_t ffn_size = 0;      // F
  int64_t vocab_size = 0;    // V
  int64_t context_len =
      0;  // trained context: max_position_embeddings, or yarn's original length times its factor
  double norm_eps = 1e-5;
  double norm_offset =
      0.0;  // the norm multiplies by offset + weight: 1 for Gemma from Hugging Face, 0 from GGUF
  Activation activation = Activation::kSilu;
  NormPlacement norms = NormPlacement::kPre;
  bool tied_embeddings = false;
  bool qk_norm = false;
  bool qkv_bias = false, o_bias = false, mlp_bias = false;  // must be there; more biases may be
  bool rope_interleaved = false;                            // pairs (2i, 2i+1): GGUF's llama architecture
  double embedding_scale = 1.0;                             // Gemma: sqrt(M)
  double attention_scale = 0.0;  // of q.k: 1/sqrt(D) or 1/sqrt(query_pre_attn_scalar)
  double attention_softcap = 0.0, final_softcap = 0.0;
  RopeConfig rope;                     // global layers
  RopeConfig rope_local;               // Gemma 3 local layers
  std::vector<LayerConfig> layers;     // [L]
  std::vector<int64_t> eos_token_ids;  // config.json, widened by generation_config.json
  std::optional<int64_t> bos_token_id;
  struct SamplingDefaults {  // generation_config.json
    std::optional<double> temperature, top_p, min_p, repetition_penalty;
    std::optional<int64_t> top_k;
  } sampling;

  int64_t group_size() const { return num_heads / num_kv_heads; }  // G
};

// What the attention and eviction ops of a layer with this window (0: none) agree on.
AttentionShape attention_shape(const ModelConfig& config, int32_t window = 0);

// config.json text (and generation_config.json's, may be empty). Errors name the key, what was found and what is allowed.
Result<ModelConfig> parse_hf_config(std::string_view config_json, std::string_view generation_config_json);
Result<ModelConfig> parse_gguf_config(const GgufFile& file);

// Rotary scaling that a user asks for instead of the file's.
struct RopeOverride {
  std::optional<std::string> scaling;  // rope_scaling_name: "none" or "default", "linear", "llama3", "yarn"
  std::optional<double> factor;        // >= 1; the file's own where it has this kind of scaling
};
// Sets config.rope (of the global layers) and config.context_len: the context before any scaling, times the factor.
Status override_rope(const RopeOverride& wanted, ModelConfig& config);

// Frequencies [D/2] and the factor on cos and sin of one rotary embedding, computed as transformers does (f32).
struct RopeFrequencies {
  std::vector<float> inv_freq;
  float attention_factor = 1.0f;
};
RopeFrequencies rope_frequencies(const RopeConfig& rope, int64_t head_dim);

}  // namespace restkv

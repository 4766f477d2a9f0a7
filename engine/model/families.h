// The families as data. A family that differs from these only in names, norms, activation, windows or defaults is one
// more row here and one golden case; nothing else in the engine asks which family it runs.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "engine/model/weights.h"

namespace restkv {

// Sizes of a weight in terms of the config.
enum class Extent : uint8_t { kOne, kHidden, kQueries, kKeys, kHeadDim, kFfn };

// When a weight has to be there. Biases are bound wherever the file has them.
enum class Need : uint8_t { kAlways, kQkvBias, kOutputBias, kMlpBias };

struct LayerWeight {
  ConstTensor LayerWeights::*member;
  std::string_view hf;    // behind "<prefix>layers.<l>."
  std::string_view gguf;  // behind "blk.<l>."
  Extent rows, cols;
  Need need = Need::kAlways;
};

// Which layers see a window only, where config.json has no layer_types.
enum class WindowRule : uint8_t {
  kNone,
  kAll,         // every layer, if sliding_window is set (Mistral)
  kFromLayer,   // from max_window_layers on, if use_sliding_window (Qwen)
  kEveryButNth  // all but each n-th: n = 2 for Gemma 2, sliding_window_pattern for Gemma 3
};

struct Family {
  std::string_view name;
  std::string_view gguf_architecture;                  // several families may share one: the first is taken
  std::span<const std::string_view> hf_architectures;  // the first is the one a GGUF file gets
  std::span<const std::string_view> hf_model_types;
  std::span<const std::string_view> hf_prefixes;  // of weight names; the first that fits
  std::span<const std::span<const LayerWeight>> layer_weights;

  Activation activation;
  std::string_view activation_key;  // in config.json; absent or null: `activation`
  NormPlacement norms;
  double hf_norm_offset;  // GGUF stores 1 + w
  bool qk_norm;
  bool qkv_bias;         // always there
  bool scale_embedding;  // by sqrt(M)
  bool has_local_rope;   // windowed layers have their own rotary base
  bool gguf_rope_interleaved;
  WindowRule windows;

  // What config.json may leave out (transformers' defaults); 0: must be there, or follows from other sizes.
  int64_t num_heads, num_kv_heads, head_dim, vocab_size, context_len, window, window_pattern,
      max_window_layers;
  double norm_eps, theta, local_theta, query_pre_attn_scalar, attention_softcap, final_softcap;
  bool tied_embeddings;
  int64_t gguf_wide_scale_layers;  // a GGUF with so many layers scales by 1/sqrt(M/H) (Gemma 27B)
};

std::span<const Family> families();
const Family* find_family_by_name(std::string_view name);
const Family* find_family_by_hf_architecture(std::string_view architecture);
const Family* find_family_by_hf_model_type(std::string_view model_type);
const Family* find_family_by_gguf(std::string_view architecture);
std::string supported_hf_architectures();    // "LlamaForCausalLM, ..."
std::string supported_gguf_architectures();  // "llama, ..."

}  // namespace restkv

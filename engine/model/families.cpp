// Facts of the families, from their published config.json files and transformers' configuration classes.
#include "engine/model/families.h"

#include <array>

namespace restkv {
namespace {

using L = LayerWeights;
using E = Extent;

constexpr auto kProjections = std::to_array<LayerWeight>({
    {&L::q, "self_attn.q_proj.weight", "attn_q.weight", E::kQueries, E::kHidden},
    {&L::k, "self_attn.k_proj.weight", "attn_k.weight", E::kKeys, E::kHidden},
    {&L::v, "self_attn.v_proj.weight", "attn_v.weight", E::kKeys, E::kHidden},
    {&L::o, "self_attn.o_proj.weight", "attn_output.weight", E::kHidden, E::kQueries},
    {&L::gate, "mlp.gate_proj.weight", "ffn_gate.weight", E::kFfn, E::kHidden},
    {&L::up, "mlp.up_proj.weight", "ffn_up.weight", E::kFfn, E::kHidden},
    {&L::down, "mlp.down_proj.weight", "ffn_down.weight", E::kHidden, E::kFfn},
    {&L::q_bias, "self_attn.q_proj.bias", "attn_q.bias", E::kOne, E::kQueries, Need::kQkvBias},
    {&L::k_bias, "self_attn.k_proj.bias", "attn_k.bias", E::kOne, E::kKeys, Need::kQkvBias},
    {&L::v_bias, "self_attn.v_proj.bias", "attn_v.bias", E::kOne, E::kKeys, Need::kQkvBias},
    {&L::o_bias, "self_attn.o_proj.bias", "attn_output.bias", E::kOne, E::kHidden, Need::kOutputBias},
    {&L::gate_bias, "mlp.gate_proj.bias", "ffn_gate.bias", E::kOne, E::kFfn, Need::kMlpBias},
    {&L::up_bias, "mlp.up_proj.bias", "ffn_up.bias", E::kOne, E::kFfn, Need::kMlpBias},
    {&L::down_bias, "mlp.down_proj.bias", "ffn_down.bias", E::kOne, E::kHidden, Need::kMlpBias},
});

constexpr auto kPreNorms = std::to_array<LayerWeight>({
    {&L::attn_norm, "input_layernorm.weight", "attn_norm.weight", E::kOne, E::kHidden},
    {&L::ffn_norm, "post_attention_layernorm.weight", "ffn_norm.weight", E::kOne, E::kHidden},
});

constexpr auto kPreAndPostNorms = std::to_array<LayerWeight>({
    {&L::attn_norm, "input_layernorm.weight", "attn_norm.weight", E::kOne, E::kHidden},
    {&L::attn_post_norm, "post_attention_layernorm.weight", "post_attention_norm.weight", E::kOne,
     E::kHidden},
    {&L::ffn_norm, "pre_feedforward_layernorm.weight", "ffn_norm.weight", E::kOne, E::kHidden},
    {&L::ffn_post_norm, "post_feedforward_layernorm.weight", "post_ffw_norm.weight", E::kOne, E::kHidden},
});

constexpr auto kQkNorms = std::to_array<LayerWeight>({
    {&L::q_norm, "self_attn.q_norm.weight", "attn_q_norm.weight", E::kOne, E::kHeadDim},
    {&L::k_norm, "self_attn.k_norm.weight", "attn_k_norm.weight", E::kOne, E::kHeadDim},
});

using WeightTable = std::span<const LayerWeight>;
constexpr auto kPlain = std::to_array<WeightTable>({kPreNorms, kProjections});
constexpr auto kPlainQkNorm = std::to_array<WeightTable>({kPreNorms, kQkNorms, kProjections});
constexpr auto kPostNorm = std::to_array<WeightTable>({kPreAndPostNorms, kProjections});
constexpr auto kPostNormQkNorm = std::to_array<WeightTable>({kPreAndPostNorms, kQkNorms, kProjections});

using Names = std::string_view;
constexpr auto kLlamaNames = std::to_array<Names>({"LlamaForCausalLM"});
constexpr auto kMistralNames = std::to_array<Names>({"MistralForCausalLM"});
constexpr auto kGemmaNames = std::to_array<Names>({"GemmaForCausalLM"});
constexpr auto kGemma2Names = std::to_array<Names>({"Gemma2ForCausalLM"});
constexpr auto kGemma3Names = std::to_array<Names>({"Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"});
constexpr auto kQwen2Names = std::to_array<Names>({"Qwen2ForCausalLM"});
constexpr auto kQwen3Names = std::to_array<Names>({"Qwen3ForCausalLM"});

constexpr auto kLlamaTypes = std::to_array<Names>({"llama"});
constexpr auto kMistralTypes = std::to_array<Names>({"mistral"});
constexpr auto kGemmaTypes = std::to_array<Names>({"gemma"});
constexpr auto kGemma2Types = std::to_array<Names>({"gemma2"});
constexpr auto kGemma3Types = std::to_array<Names>({"gemma3_text", "gemma3"});
constexpr auto kQwen2Types = std::to_array<Names>({"qwen2"});
constexpr auto kQwen3Types = std::to_array<Names>({"qwen3"});

constexpr auto kTextPrefixes = std::to_array<Names>({"model."});
// Wrapped checkpoints: as published, and as transformers 4.52 and later write them.
constexpr auto kWrappedPrefixes =
    std::to_array<Names>({"model.", "language_model.model.", "model.language_model."});

constexpr auto kFamilies = std::to_array<Family>({
    {
        .name = "llama",
        .gguf_architecture = "llama",
        .hf_architectures = kLlamaNames,
        .hf_model_types = kLlamaTypes,
        .hf_prefixes = kTextPrefixes,
        .layer_weights = kPlain,
        .activation = Activation::kSilu,
        .activation_key = "hidden_act",
        .norms = NormPlacement::kPre,
        .hf_norm_offset = 0.0,
        .qk_norm = false,
        .qkv_bias = false,
        .scale_embedding = false,
        .has_local_rope = false,
        .gguf_rope_interleaved = true,
        .windows = WindowRule::kNone,
        .num_heads = 0,
        .num_kv_heads = 0,
        .head_dim = 0,
        .vocab_size = 0,
        .context_len = 2048,
        .window = 0,
        .window_pattern = 0,
        .max_window_layers = 0,
        .norm_eps = 1e-6,
        .theta = 10000.0,
        .local_theta = 0.0,
        .query_pre_attn_scalar = 0.0,
        .attention_softcap = 0.0,
        .final_softcap = 0.0,
        .tied_embeddings = false,
        .gguf_wide_scale_layers = 0,
    },
    {
        .name = "mistral",
        .gguf_architecture = "llama",
        .hf_architectures = kMistralNames,
        .hf_model_types = kMistralTypes,
        .hf_prefixes = kTextPrefixes,
        .layer_weights = kPlain,
        .activation = Activation::kSilu,
        .activation_key = "hidden_act",
        .norms = NormPlacement::kPre,
        .hf_norm_offset = 0.0,
        .qk_norm = false,
        .qkv_bias = false,
        .scale_embedding = false,
        .has_local_rope = false,
        .gguf_rope_interleaved = true,
        .windows = WindowRule::kAll,
        .num_heads = 0,
        .num_kv_heads = 8,
        .head_dim = 0,
        .vocab_size = 0,
        .context_len = 131072,
        .window = 4096,
        .window_pattern = 0,
        .max_window_layers = 0,
        .norm_eps = 1e-6,
        .theta = 10000.0,
        .local_theta = 0.0,
        .query_pre_attn_scalar = 0.0,
        .attention_softcap = 0.0,
        .final_softcap = 0.0,
        .tied_embeddings = false,
        .gguf_wide_scale_layers = 0,
    },
    {
        .name = "gemma",
        .gguf_architecture = "gemma",
        .hf_architectures = kGemmaNames,
        .hf_model_types = kGemmaTypes,
        .hf_prefixes = kTextPrefixes,
        .layer_weights = kPlain,
        .activation = Activation::kGeluTanh,
        .activation_key = "hidden_activation",  // hidden_act says "gelu" and means the tanh form
        .norms = NormPlacement::kPre,
        .hf_norm_offset = 1.0,
        .qk_norm = false,
        .qkv_bias = false,
        .scale_embedding = true,
        .has_local_rope = false,
        .gguf_rope_interleaved = false,
        .windows = WindowRule::kNone,
        .num_heads = 16,
        .num_kv_heads = 16,
        .head_dim = 256,
        .vocab_size = 256000,
        .context_len = 8192,
        .window = 0,
        .window_pattern = 0,
        .max_window_layers = 0,
        .norm_eps = 1e-6,
        .theta = 10000.0,
        .local_theta = 0.0,
        .query_pre_attn_scalar = 0.0,
        .attention_softcap = 0.0,
        .final_softcap = 0.0,
        .tied_embeddings = true,
        .gguf_wide_scale_layers = 0,
    },
    {
        .name = "gemma2",
        .gguf_architecture = "gemma2",
        .hf_architectures = kGemma2Names,
        .hf_model_types = kGemma2Types,
        .hf_prefixes = kTextPrefixes,
        .layer_weights = kPostNorm,
        .activation = Activation::kGeluTanh,
        .activation_key = "hidden_activation",
        .norms = NormPlacement::kPreAndPost,
        .hf_norm_offset = 1.0,
        .qk_norm = false,
        .qkv_bias = false,
        .scale_embedding = true,
        .has_local_rope = false,
        .gguf_rope_interleaved = false,
        .windows = WindowRule::kEveryButNth,
        .num_heads = 8,
        .num_kv_heads = 4,
        .head_dim = 256,
        .vocab_size = 256000,
        .context_len = 8192,
        .window = 4096,
        .window_pattern = 2,
        .max_window_layers = 0,
        .norm_eps = 1e-6,
        .theta = 10000.0,
        .local_theta = 0.0,
        .query_pre_attn_scalar = 256.0,
        .attention_softcap = 50.0,
        .final_softcap = 30.0,
        .tied_embeddings = true,
        .gguf_wide_scale_layers = 46,
    },
    {
        .name = "gemma3",
        .gguf_architecture = "gemma3",
        .hf_architectures = kGemma3Names,
        .hf_model_types = kGemma3Types,
        .hf_prefixes = kWrappedPrefixes,
        .layer_weights = kPostNormQkNorm,
        .activation = Activation::kGeluTanh,
        .activation_key = "hidden_activation",
        .norms = NormPlacement::kPreAndPost,
        .hf_norm_offset = 1.0,
        .qk_norm = true,
        .qkv_bias = false,
        .scale_embedding = true,
        .has_local_rope = true,
        .gguf_rope_interleaved = false,
        .windows = WindowRule::kEveryButNth,
        .num_heads = 8,
        .num_kv_heads = 4,
        .head_dim = 256,
        .vocab_size = 262208,
        .context_len = 131072,
        .window = 4096,
        .window_pattern = 6,
        .max_window_layers = 0,
        .norm_eps = 1e-6,
        .theta = 1000000.0,
        .local_theta = 10000.0,
        .query_pre_attn_scalar = 256.0,
        .attention_softcap = 0.0,
        .final_softcap = 0.0,
        .tied_embeddings = true,
        .gguf_wide_scale_layers = 62,
    },
    {
        .name = "qwen2",
        .gguf_architecture = "qwen2",
        .hf_architectures = kQwen2Names,
        .hf_model_types = kQwen2Types,
        .hf_prefixes = kTextPrefixes,
        .layer_weights = kPlain,
        .activation = Activation::kSilu,
        .activation_key = "hidden_act",
        .norms = NormPlacement::kPre,
        .hf_norm_offset = 0.0,
        .qk_norm = false,
        .qkv_bias = true,
        .scale_embedding = false,
        .has_local_rope = false,
        .gguf_rope_interleaved = false,
        .windows = WindowRule::kFromLayer,
        .num_heads = 0,
        .num_kv_heads = 32,
        .head_dim = 0,
        .vocab_size = 0,
        .context_len = 32768,
        .window = 4096,
        .window_pattern = 0,
        .max_window_layers = 28,
        .norm_eps = 1e-6,
        .theta = 10000.0,
        .local_theta = 0.0,
        .query_pre_attn_scalar = 0.0,
        .attention_softcap = 0.0,
        .final_softcap = 0.0,
        .tied_embeddings = false,
        .gguf_wide_scale_layers = 0,
    },
    {
        .name = "qwen3",
        .gguf_architecture = "qwen3",
        .hf_architectures = kQwen3Names,
        .hf_model_types = kQwen3Types,
        .hf_prefixes = kTextPrefixes,
        .layer_weights = kPlainQkNorm,
        .activation = Activation::kSilu,
        .activation_key = "hidden_act",
        .norms = NormPlacement::kPre,
        .hf_norm_offset = 0.0,
        .qk_norm = true,
        .qkv_bias = false,
        .scale_embedding = false,
        .has_local_rope = false,
        .gguf_rope_interleaved = false,
        .windows = WindowRule::kFromLayer,
        .num_heads = 0,
        .num_kv_heads = 32,
        .head_dim = 128,
        .vocab_size = 0,
        .context_len = 32768,
        .window = 4096,
        .window_pattern = 0,
        .max_window_layers = 28,
        .norm_eps = 1e-6,
        .theta = 10000.0,
        .local_theta = 0.0,
        .query_pre_attn_scalar = 0.0,
        .attention_softcap = 0.0,
        .final_softcap = 0.0,
        .tied_embeddings = false,
        .gguf_wide_scale_layers = 0,
    },
});

bool has(std::span<const std::string_view> names, std::string_view name) {
  for (const std::string_view candidate : names) {
    if (candidate == name) return true;
  }
  return false;
}

template <class Predicate>
const Family* find_if(Predicate predicate) {
  for (const Family& family : kFamilies) {
    if (predicate(family)) return &family;
  }
  return nullptr;
}

void append(std::string* list, std::string_view name) {
  if (!list->empty()) *list += ", ";
  *list += name;
}

}  // namespace

std::span<const Family> families() { return kFamilies; }

const Family* find_family_by_name(std::string_view name) {
  return find_if([&](const Family& family) { return family.name == name; });
}

const Family* find_family_by_hf_architecture(std::string_view architecture) {
  return find_if([&](const Family& family) { return has(family.hf_architectures, architecture); });
}

const Family* find_family_by_hf_model_type(std::string_view model_type) {
  return find_if([&](const Family& family) { return has(family.hf_model_types, model_type); });
}

const Family* find_family_by_gguf(std::string_view architecture) {
  return find_if([&](const Family& family) { return family.gguf_architecture == architecture; });
}

std::string supported_hf_architectures() {
  std::string list;
  for (const Family& family : kFamilies) {
    for (const std::string_view name : family.hf_architectures) append(&list, name);
  }
  return list;
}

std::string supported_gguf_architectures() {
  std::string list;
  for (const Family& family : kFamilies) {
    if (find_family_by_gguf(family.gguf_architecture) == &family) append(&list, family.gguf_architecture);
  }
  return list;
}

}  // namespace restkv

// What both formats share: names of rotary scalings, checks between sizes, what a family decides alone.
#include "engine/model/model_config.h"

#include <array>
#include <cmath>

#include "engine/model/config_fields.h"

namespace restkv {

namespace {

constexpr std::array<std::string_view, 4> kRopeScalingNames = {"default", "linear", "llama3", "yarn"};

}  // namespace

std::string_view rope_scaling_name(RopeScaling scaling) {
  return kRopeScalingNames[static_cast<size_t>(scaling)];
}

std::optional<RopeScaling> rope_scaling_from_name(std::string_view name) {
  for (size_t i = 0; i < kRopeScalingNames.size(); ++i) {
    if (kRopeScalingNames[i] == name) return static_cast<RopeScaling>(i);
  }
  return std::nullopt;
}

AttentionShape attention_shape(const ModelConfig& config, int32_t window) {
  return {.num_heads = static_cast<int32_t>(config.num_heads),
          .num_kv_heads = static_cast<int32_t>(config.num_kv_heads),
          .head_dim = static_cast<int32_t>(config.head_dim),
          .scale = static_cast<float>(config.attention_scale),
          .softcap = static_cast<float>(config.attention_softcap),
          .window = window};
}

Status finish_heads(const SizeKeys& keys, ModelConfig* config) {
  if (config->num_heads % config->num_kv_heads != 0) {
    return bad_field(
        keys.heads, std::to_string(config->num_heads),
        "a multiple of " + keys.kv_heads + " (" + std::to_string(config->num_kv_heads) + ") is allowed");
  }
  if (config->head_dim == 0) {
    if (config->hidden_size % config->num_heads != 0) {
      return bad_field(keys.hidden, std::to_string(config->hidden_size),
                       "without " + keys.head_dim + " a multiple of " + keys.heads + " (" +
                           std::to_string(config->num_heads) + ") is allowed");
    }
    config->head_dim = config->hidden_size / config->num_heads;
  }
  if (config->head_dim % 2 != 0 || config->head_dim > kMaxHeadDim) {
    return bad_field(keys.head_dim, std::to_string(config->head_dim),
                     "an even number up to " + std::to_string(kMaxHeadDim) + " is allowed");
  }
  return {};
}

void apply_family(const Family& family, ModelConfig* config) {
  config->family = family.name;
  config->activation = family.activation;
  config->norms = family.norms;
  config->qk_norm = family.qk_norm;
  config->qkv_bias = family.qkv_bias;
  config->embedding_scale =
      family.scale_embedding ? std::sqrt(static_cast<double>(config->hidden_size)) : 1.0;
}

}  // namespace restkv

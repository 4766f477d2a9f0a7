// --rope-scaling: another scaling, by name, over the one of the model's file.
#include <algorithm>

#include "engine/model/config_fields.h"
#include "engine/model/model_config.h"

namespace restkv {
namespace {

// Tokens the model saw before its file stretched them.
int64_t unscaled_context(const ModelConfig& config) {
  const RopeConfig& rope = config.rope;
  if (rope.scaling == RopeScaling::kLlama3 || rope.scaling == RopeScaling::kYarn)
    return rope.original_context;
  if (rope.scaling == RopeScaling::kLinear)
    return std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(config.context_len) / rope.factor));
  return config.context_len;
}

}  // namespace

Status override_rope(const RopeOverride& wanted, ModelConfig& config) {
  constexpr double kMaxFactor = 1000;
  if (!wanted.scaling) {
    if (!wanted.factor) return {};
    return invalid_argument("rope_scale says how far rope_scaling stretches; rope_scaling is not given")
        .with_param("rope_scale");
  }
  const std::optional<RopeScaling> scaling =
      *wanted.scaling == "none" ? RopeScaling::kNone : rope_scaling_from_name(*wanted.scaling);
  if (!scaling) {
    return invalid_argument("rope_scaling '" + *wanted.scaling +
                            "' is not supported; supported are none, linear, llama3 and yarn")
        .with_param("rope_scaling");
  }
  RopeConfig& rope = config.rope;
  const bool is_same = rope.scaling == *scaling && rope.freq_factors.empty();
  if (is_same && !wanted.factor) return {};  // the file's own
  if (*scaling != RopeScaling::kNone && !wanted.factor) {
    return invalid_argument("rope_scaling " + *wanted.scaling +
                            " needs rope_scale: how many times the context of " +
                            std::to_string(unscaled_context(config)) + " tokens is stretched")
        .with_param("rope_scale");
  }
  const double factor = *scaling == RopeScaling::kNone ? 1.0 : *wanted.factor;
  if (!(factor >= 1.0 && factor <= kMaxFactor))
    return invalid_argument("rope_scale must be between 1 and 1000").with_param("rope_scale");
  const int64_t context = unscaled_context(config);
  if (is_same) {
    rope.factor = factor;
    rope.attention_factor.reset();  // followed from the file's factor
  } else {
    RopeConfig plain;
    plain.theta = rope.theta;
    plain.scaling = *scaling;
    plain.factor = factor;
    plain.original_context = context;
    rope = plain;
  }
  config.context_len =
      static_cast<int64_t>(std::min(static_cast<double>(context) * factor, static_cast<double>(kMaxContext)));
  return {};
}

}  // namespace restkv

// Rotary frequencies, in f32 where transformers uses f32 (its modeling_rope_utils; yarn: arXiv 2309.00071, section 3.2-3.4).
//   theta_i = theta^(-2i/D), i = 0 .. D/2 - 1
#include <algorithm>
#include <cmath>
#include <numbers>

#include "engine/model/model_config.h"

namespace restkv {
namespace {

// Frequencies whose wavelength is above original / low are divided by the factor, those below original / high kept,
// the ones between interpolated.
void scale_llama3(const RopeConfig& rope, std::vector<float>* inv_freq) {
  const float factor = static_cast<float>(rope.factor);
  const float original = static_cast<float>(rope.original_context);
  const float low = static_cast<float>(rope.low_freq_factor),
              high = static_cast<float>(rope.high_freq_factor);
  for (float& freq : *inv_freq) {
    const float wavelength = static_cast<float>(2.0 * std::numbers::pi) / freq;
    if (wavelength > original / low) {
      freq /= factor;
    } else if (!(wavelength < original / high)) {
      const float smooth = (original / wavelength - low) / (high - low);
      freq = (1.0f - smooth) * freq / factor + smooth * freq;
    }
  }
}

// The pair index whose frequency turns `rotations` times over the original context.
double yarn_pair(double rotations, const RopeConfig& rope, int64_t head_dim) {
  return static_cast<double>(head_dim) *
         std::log(static_cast<double>(rope.original_context) / (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(rope.theta));
}

void scale_yarn(const RopeConfig& rope, int64_t head_dim, std::vector<float>* inv_freq) {
  double low = yarn_pair(rope.beta_fast, rope, head_dim), high = yarn_pair(rope.beta_slow, rope, head_dim);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(head_dim - 1));
  if (low == high) high += 0.001;
  for (size_t i = 0; i < inv_freq->size(); ++i) {
    const float ramp = std::clamp(
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f, 1.0f);
    const float kept = 1.0f - ramp;
    const float freq = (*inv_freq)[i];
    (*inv_freq)[i] = freq / static_cast<float>(rope.factor) * (1.0f - kept) + freq * kept;
  }
}

double yarn_mscale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

double yarn_attention_factor(const RopeConfig& rope) {
  if (rope.attention_factor) return *rope.attention_factor;
  if (rope.mscale.value_or(0.0) != 0.0 && rope.mscale_all_dim.value_or(0.0) != 0.0) {
    return yarn_mscale(rope.factor, *rope.mscale) / yarn_mscale(rope.factor, *rope.mscale_all_dim);
  }
  return yarn_mscale(rope.factor, 1.0);
}

}  // namespace

RopeFrequencies rope_frequencies(const RopeConfig& rope, int64_t head_dim) {
  RopeFrequencies out;
  out.inv_freq.resize(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < out.inv_freq.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    out.inv_freq[i] = 1.0f / std::pow(static_cast<float>(rope.theta), exponent);
  }
  switch (rope.scaling) {
    case RopeScaling::kNone: break;
    case RopeScaling::kLinear:
      for (float& freq : out.inv_freq) freq /= static_cast<float>(rope.factor);
      break;
    case RopeScaling::kLlama3: scale_llama3(rope, &out.inv_freq); break;
    case RopeScaling::kYarn:
      scale_yarn(rope, head_dim, &out.inv_freq);
      out.attention_factor = static_cast<float>(yarn_attention_factor(rope));
      break;
  }
  if (!rope.freq_factors.empty()) {
    CHECK(rope.freq_factors.size() == out.inv_freq.size())
        << rope.freq_factors.size() << " for D = " << head_dim;
    for (size_t i = 0; i < out.inv_freq.size(); ++i) out.inv_freq[i] /= rope.freq_factors[i];
  }
  return out;
}

}  // namespace restkv

// Any bytes as config.json and, behind a byte 0x1e, generation_config.json: an error, or a config whose sizes, scales and
// frequencies are usable.
#include <cmath>
#include <cstdint>
#include <string_view>

#include "engine/model/model_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace restkv;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t split = std::min(text.find('\x1e'), text.size());
  const std::string_view generation = split < text.size() ? text.substr(split + 1) : std::string_view();
  const Result<ModelConfig> config = parse_hf_config(text.substr(0, split), generation);
  if (!config.ok()) {
    CHECK(config.status().message().find("config.json: ") != std::string::npos) << config.status().message();
    return 0;
  }
  CHECK(config->num_heads % config->num_kv_heads == 0 && config->head_dim % 2 == 0) << config->head_dim;
  CHECK(config->layers.size() == static_cast<size_t>(config->num_layers)) << config->num_layers;
  CHECK(std::isfinite(config->attention_scale) && config->attention_scale > 0) << config->attention_scale;
  for (const RopeConfig& rope : {config->rope, config->rope_local}) {
    const RopeFrequencies frequencies = rope_frequencies(rope, config->head_dim);
    for (const float freq : frequencies.inv_freq) CHECK(std::isfinite(freq)) << freq;
    CHECK(std::isfinite(frequencies.attention_factor)) << frequencies.attention_factor;
  }
  return 0;
}

// Any bytes as a GGUF file: an error, or tensors and values inside the bytes; every key read in every way, and a config
// that is whole if it is there.
#include <cmath>
#include <cstdint>

#include "engine/model/model_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace restkv;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const Result<GgufFile> file = GgufFile::parse(bytes, "fuzz");
  if (!file.ok()) return 0;
  for (const FileTensor& tensor : file->tensors().tensors) {
    if (tensor.data == nullptr) continue;
    CHECK(tensor.data >= bytes.data() && tensor.data + tensor.num_bytes <= bytes.data() + size)
        << tensor.name;
  }
  size_t num_read = 0;
  for (const std::string& key : file->keys()) {
    num_read += file->get_int(key).ok() + file->get_float(key).ok() + file->get_bool(key).ok();
    num_read += file->get_floats(key).ok() + file->get_ints(key).ok();
    if (const auto text = file->get_string(key); text.ok()) num_read += std::string(**text).size();
    if (const auto texts = file->get_strings(key); texts.ok()) {
      for (const std::string_view text : *texts) num_read += std::string(text).size();
    }
  }
  CHECK(num_read <= 6 * file->keys().size() + size) << num_read;
  const Result<ModelConfig> config = parse_gguf_config(*file);
  if (!config.ok()) return 0;
  CHECK(config->num_heads % config->num_kv_heads == 0 && config->head_dim % 2 == 0) << config->head_dim;
  CHECK(config->layers.size() == static_cast<size_t>(config->num_layers)) << config->num_layers;
  for (const float freq : rope_frequencies(config->rope, config->head_dim).inv_freq) {
    CHECK(std::isfinite(freq)) << freq;
  }
  return 0;
}

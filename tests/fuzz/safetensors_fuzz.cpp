// Any bytes as a safetensors file: an error, or tensors that lie inside the bytes and cover them.
#include <cstdint>

#include "engine/model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace restkv;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const Result<SafetensorsFile> file = parse_safetensors(bytes, "fuzz");
  if (!file.ok()) {
    CHECK(!file.status().message().empty()) << "an error without words";
    return 0;
  }
  int64_t covered = 0;
  for (const FileTensor& tensor : file->index.tensors) {
    covered += tensor.num_bytes;
    CHECK(file->index.find(tensor.name) == &tensor) << tensor.name;
    if (tensor.data == nullptr) continue;
    CHECK(tensor.data >= bytes.data() && tensor.data + tensor.num_bytes <= bytes.data() + size)
        << tensor.name;
  }
  CHECK(covered <= static_cast<int64_t>(size)) << covered;
  return 0;
}

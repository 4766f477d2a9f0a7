// safetensors: u64 header length, JSON header, data. Hostile files get a Status (never a CHECK): overlaps,
// gaps, duplicate keys, trailing bytes, lengths past the end, shapes whose product overflows.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/model/tensor_file.h"

namespace restkv {

struct SafetensorsFile {
  TensorIndex index;
  std::map<std::string, std::string> metadata;  // __metadata__
};

Result<SafetensorsFile> parse_safetensors(std::shared_ptr<const MappedFile> file);
// The same over bytes that outlive the result (fuzzing, tests).
Result<SafetensorsFile> parse_safetensors(std::span<const std::byte> bytes, const std::string& path);
// A folder: model.safetensors, or the shards of model.safetensors.index.json (names checked against it).
Result<TensorIndex> open_safetensors_folder(const std::string& folder);

// Writes tensors in the given order (the verbs `logits` and `eval`, tests). Plain types only.
struct OutputTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
};
Status write_safetensors(const std::string& path, const std::vector<OutputTensor>& tensors,
                         const std::map<std::string, std::string>& metadata = {});

}  // namespace restkv

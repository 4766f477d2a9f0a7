// Lookup and size arithmetic of tensors in files.
#include "engine/model/tensor_file.h"

#include <algorithm>

namespace restkv {

const FileTensor* TensorIndex::find(const std::string& name) const {
  const auto found = by_name.find(name);
  return found == by_name.end() ? nullptr : &tensors[found->second];
}

bool TensorIndex::add(FileTensor tensor) {
  if (!by_name.emplace(tensor.name, tensors.size()).second) return false;
  tensors.push_back(std::move(tensor));
  return true;
}

bool tensor_size(const std::vector<uint64_t>& shape, int64_t block_elems, int64_t block_bytes,
                 TensorSize* out) {
  constexpr uint64_t kLimit = uint64_t{1} << 62;
  // A zero makes the product zero whatever the other sizes are: only after they were checked.
  uint64_t values = 1;
  bool is_empty = false;
  for (const uint64_t size : shape) {
    if (size == 0) {
      is_empty = true;
      continue;
    }
    if (size > kLimit / values) return false;
    values *= size;
  }
  if (is_empty) values = 0;
  const uint64_t blocks = values / static_cast<uint64_t>(block_elems);
  if (blocks > kLimit / static_cast<uint64_t>(block_bytes)) return false;
  out->num_values = static_cast<int64_t>(values);
  out->num_bytes = static_cast<int64_t>(blocks * static_cast<uint64_t>(block_bytes));
  return true;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void name_tensor_ranges(const TensorIndex& index) {
  std::vector<std::vector<MappedFile::NamedRange>> ranges(index.files.size());
  for (const FileTensor& tensor : index.tensors) {
    if (tensor.data == nullptr || tensor.file >= ranges.size()) continue;
    ranges[tensor.file].push_back({tensor.name, tensor.data, static_cast<size_t>(tensor.num_bytes)});
  }
  for (size_t i = 0; i < ranges.size(); ++i) index.files[i]->name_ranges(std::move(ranges[i]));
}

}  // namespace restkv

// One tensor of a model file, of either format: a name, a type, a shape and a place in the mapping.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/model/mapped_file.h"
#include "kernels/base/tensor.h"

namespace restkv {

struct FileTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // outermost first: a weight [N, C] of a product is {N, C}
  const std::byte* data = nullptr;
  int64_t num_bytes = 0;
  // A type this build does not know is kept by its name, so that the error can say which; data is null then.
  std::string unsupported_type;
  size_t file = 0;  // index into TensorIndex::files
};

// The tensors of a model, from one or several files. Views stay valid as long as `files` lives.
struct TensorIndex {
  std::vector<std::shared_ptr<const MappedFile>> files;
  std::vector<FileTensor> tensors;  // in file order
  std::unordered_map<std::string, size_t> by_name;
  const FileTensor* find(const std::string& name) const;
  bool add(FileTensor tensor);  // false: the name is there already
};

// Numbers of values and bytes of a shape read from a file; false where they do not fit 2^62.
struct TensorSize {
  int64_t num_values = 0;
  int64_t num_bytes = 0;
};
bool tensor_size(const std::vector<uint64_t>& shape, int64_t block_elems, int64_t block_bytes,
                 TensorSize* out);

std::string shape_text(const std::vector<int64_t>& shape);  // "[4096, 128]"

// Tells each mapping where its tensors lie, for the SIGBUS handler.
void name_tensor_ranges(const TensorIndex& index);

}  // namespace restkv

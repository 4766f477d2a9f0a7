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
};

// The tensors of a model, from one or several files. Views stay valid as long as `files` lives.
struct TensorIndex {
  std::vector<std::shared_ptr<const MappedFile>> files;
  std::vector<FileTensor> tensors;                       // in file order
  std::unordered_map<std::string, size_t> by_name;
  const FileTensor* find(const std::string& name) const;
};

}  // namespace restkv

// Products by cuBLASLt, which is looked for when the first product is asked for: a program without it runs, and its products are our
// own kernels' (matmul.cu).
#pragma once

#include <memory>

#include "kernels/cuda/launch_list.h"

namespace restkv::cuda {

class Blas {
 public:
  // Null: there is no libcublasLt, or it refuses. For the current card; `workspace` [workspace_bytes] of its memory.
  static std::unique_ptr<Blas> open(void* workspace, int64_t workspace_bytes);
  virtual ~Blas() = default;
  // Whether there is an algorithm for this shape; asked for once, then kept.
  virtual bool can_multiply(const Product& product) = 0;
  // Enqueues it; can_multiply() said yes.
  virtual void multiply(const Product& product, void* stream) = 0;
};

}  // namespace restkv::cuda

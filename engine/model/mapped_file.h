// A read-only file mapped into memory. Tensors are views into it: weights are never copied on the CPU.
// A file that shrinks while it is mapped raises SIGBUS; the handler names file and tensor and exits (see sigbus).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kernels/base/status.h"

namespace restkv {

class MappedFile {
 public:
  static Result<std::shared_ptr<const MappedFile>> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

 private:
  MappedFile(std::string path, const std::byte* data, size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}
  std::string path_;
  const std::byte* data_;
  size_t size_;
};

}  // namespace restkv

// A read-only file mapped into memory. Tensors are views into it: weights are never copied on the CPU.
// A file that shrinks while it is mapped raises SIGBUS on the next read past its new end. The handler,
// installed with the first mapping, finds file and tensor in a registry, writes one line to standard error
// and exits with kSigbusExitCode; an address outside all mappings gets the default action.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/status.h"

namespace restkv {

inline constexpr int kSigbusExitCode = 74;  // EX_IOERR

class MappedFile {
 public:
  static Result<std::shared_ptr<const MappedFile>> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

  // Names places of the file for the SIGBUS handler; once, before other threads read the file.
  struct NamedRange {
    std::string name;
    const std::byte* begin;
    size_t size;
  };
  void name_ranges(std::vector<NamedRange> ranges) const;

  // Brings [offset, offset + size) into memory; an error where the file has become shorter than its mapping.
  Status populate(size_t offset, size_t size) const;

 private:
  MappedFile(std::string path, const std::byte* data, size_t size);
  std::string path_;
  const std::byte* data_;
  size_t size_;
  mutable std::vector<NamedRange> ranges_;
  int slot_;  // in the handler's registry; -1 if it was full
};

}  // namespace restkv

// Whether a file is another one than when it was read: by time of change, size and inode.
#pragma once

#include <cstdint>
#include <string>

namespace restkv {

struct FileVersion {
  int64_t mtime_ns = -1, size = -1;
  uint64_t inode = 0;
  bool operator==(const FileVersion&) const = default;
};

// Of no path and of no file: the same as FileVersion().
FileVersion file_version(const std::string& path);

}  // namespace restkv

#include "server/config/file_version.h"

#include <sys/stat.h>

namespace restkv {

FileVersion file_version(const std::string& path) {
  struct stat info {};
  if (path.empty() || ::stat(path.c_str(), &info) != 0) return {};
  return {info.st_mtim.tv_sec * 1'000'000'000 + info.st_mtim.tv_nsec, info.st_size, info.st_ino};
}

}  // namespace restkv

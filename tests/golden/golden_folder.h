// Where golden cases lie and how a golden run ends: `ran R skipped S`, 77 where the default folder is absent,
// failure where a folder was named and holds nothing.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

namespace restkv::golden {

inline constexpr int kSkipped = 77;

class Run {
 public:
  // `variable` names the folder; `fallback` is used where it is not set.
  Run(const char* variable, const std::string& fallback) {
    const char* named = std::getenv(variable);
    is_named_ = named != nullptr && *named != '\0';
    folder_ = is_named_ ? named : fallback;
  }
  const std::filesystem::path& folder() const { return folder_; }
  bool has_folder() const { return std::filesystem::is_directory(folder_); }

  void ran(const std::string& name) {
    ++ran_;
    if (ran_ % 50 == 0) std::printf("... %d cases, last %s\n", ran_, name.c_str());
  }
  void skip(const std::string& name, const std::string& reason) {
    ++skipped_;
    std::printf("skipped %s: %s\n", name.c_str(), reason.c_str());
  }
  void fail(const std::string& name, const std::string& reason) {
    ++failed_;
    std::printf("FAILED %s: %s\n", name.c_str(), reason.c_str());
  }
  // The process's exit code.
  int finish() const {
    std::printf("ran %d skipped %d failed %d\n", ran_, skipped_, failed_);
    if (!has_folder() && !is_named_) {
      std::printf("no golden cases at %s\n", folder_.filename().c_str());
      return kSkipped;
    }
    return failed_ == 0 && ran_ > 0 ? 0 : 1;
  }

 private:
  std::filesystem::path folder_;
  bool is_named_ = false;
  int ran_ = 0, skipped_ = 0, failed_ = 0;
};

}  // namespace restkv::golden

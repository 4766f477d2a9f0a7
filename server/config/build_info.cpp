// RESTKV_VERSION comes from CMake, for this file alone; build_commit() is written by build_commit.cmake.
#include "server/config/build_info.h"

namespace restkv {
namespace {

#if defined(__x86_64__)
void append_if(std::string& list, bool has, std::string_view name) {
  if (has) list += (list.empty() ? "" : " ") + std::string(name);
}
#endif

}  // namespace

std::string_view build_version() { return RESTKV_VERSION; }

std::string_view build_compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

std::string cpu_features() {
  std::string list;
#if defined(__x86_64__)
  // The builtin takes literals only.
  append_if(list, __builtin_cpu_supports("sse4.2"), "sse4.2");
  append_if(list, __builtin_cpu_supports("avx"), "avx");
  append_if(list, __builtin_cpu_supports("avx2"), "avx2");
  append_if(list, __builtin_cpu_supports("fma"), "fma");
  append_if(list, __builtin_cpu_supports("avx512f"), "avx512f");
  append_if(list, __builtin_cpu_supports("avx512bw"), "avx512bw");
  append_if(list, __builtin_cpu_supports("avx512vnni"), "avx512vnni");
#endif
  return list.empty() ? "none known" : list;
}

bool has_cuda_backend() { return RESTKV_HAS_CUDA_BACKEND != 0; }

}  // namespace restkv

// What this program is: version, commit, compiler, processor.
#pragma once

#include <string>
#include <string_view>

namespace restkv {

std::string_view build_version();   // "0.1.0"
std::string_view build_commit();    // "15b2dc4", "15b2dc4+" with local changes, "unknown"
std::string_view build_compiler();  // "gcc 12.2.0"
// What of the processor matters to the kernels, as it is found at run time: "avx2 fma f16c avx512f".
std::string cpu_features();
bool has_cuda_backend();

}  // namespace restkv

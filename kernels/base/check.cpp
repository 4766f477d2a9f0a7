// The failing end of CHECK: one line on stderr, then abort (a core file shows the rest).
#include "kernels/base/check.h"

#include <cstdio>
#include <cstdlib>

namespace restkv {

CheckFailure::CheckFailure(const char* file, int line, const char* condition) {
  stream_ << "CHECK failed: " << condition << " at " << file << ":" << line << " ";
}

CheckFailure::~CheckFailure() {
  std::fprintf(stderr, "%s\n", stream_.str().c_str());
  std::fflush(stderr);
  std::abort();
}

}  // namespace restkv

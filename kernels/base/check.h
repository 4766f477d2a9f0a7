// CHECK(condition) << values: aborts with file, line, condition and values when our own code is wrong.
// DCHECK: the same in debug and sanitizer builds only. Never on outside data: that is a Status (status.h).
#pragma once

#include <sstream>

namespace restkv {

class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition);
  [[noreturn]] ~CheckFailure();
  template <class T>
  CheckFailure& operator<<(const T& value) {
    stream_ << value;
    return *this;
  }

 private:
  std::ostringstream stream_;
};

// Gives the macro's conditional operator two void arms.
struct CheckVoidify {
  void operator&(const CheckFailure&) {}
};

}  // namespace restkv

#define CHECK(condition) \
  (condition) ? (void)0 : ::restkv::CheckVoidify() & ::restkv::CheckFailure(__FILE__, __LINE__, #condition)

#ifdef NDEBUG
#define DCHECK(condition) CHECK(true || (condition))
#else
#define DCHECK(condition) CHECK(condition)
#endif

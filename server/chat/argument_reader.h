// Reads the arguments of one call by position or name, as a Python signature does.
#pragma once

#include "server/chat/context.h"

namespace restkv::chat {

// Moves the keyword argument `name` into `value` and out of `arguments`; false where there is none.
bool take_keyword(CallArguments& arguments, std::string_view name, Value& value);

class ArgumentReader {
 public:
  ArgumentReader(Context& context, const char* function, CallArguments& arguments)
      : context_(context), function_(function), arguments_(arguments) {}
  bool has(const char* name) const;
  Value take(const char* name, Value otherwise);
  Value require(const char* name);
  int64_t take_int(const char* name, int64_t otherwise);
  bool take_bool(const char* name, bool otherwise);
  void finish() const;  // an error if arguments are left

 private:
  bool take_if(const char* name, Value& value);
  Context& context_;
  const char* function_;
  CallArguments& arguments_;
  size_t next_ = 0;
};

}  // namespace restkv::chat

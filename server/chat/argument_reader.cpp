#include "server/chat/argument_reader.h"

#include <algorithm>

namespace restkv::chat {

bool take_keyword(CallArguments& arguments, std::string_view name, Value& value) {
  for (auto it = arguments.keyword.begin(); it != arguments.keyword.end(); ++it) {
    if (it->first != name) continue;
    value = std::move(it->second);
    arguments.keyword.erase(it);
    return true;
  }
  return false;
}

bool ArgumentReader::take_if(const char* name, Value& value) {
  if (next_ < arguments_.positional.size()) {
    value = arguments_.positional[next_++];
    return true;
  }
  return take_keyword(arguments_, name, value);
}

bool ArgumentReader::has(const char* name) const {
  if (next_ < arguments_.positional.size()) return true;
  return std::any_of(arguments_.keyword.begin(), arguments_.keyword.end(),
                     [&](const auto& entry) { return entry.first == name; });
}

Value ArgumentReader::take(const char* name, Value otherwise) {
  Value value;
  return take_if(name, value) ? value : otherwise;
}

Value ArgumentReader::require(const char* name) {
  Value value;
  if (!take_if(name, value)) context_.fail(std::string(function_) + "() needs the argument '" + name + "'");
  return value;
}

int64_t ArgumentReader::take_int(const char* name, int64_t otherwise) {
  Value value;
  if (!take_if(name, value)) return otherwise;
  context_.require_defined(value);
  if (!value.is_integral()) {
    context_.fail(std::string(function_) + "(): '" + name + "' must be an integer, not " + value.type_name());
  }
  return value.as_int();
}

bool ArgumentReader::take_bool(const char* name, bool otherwise) {
  Value value;
  return take_if(name, value) ? context_.truth(value) : otherwise;
}

void ArgumentReader::finish() const {
  if (next_ < arguments_.positional.size()) context_.fail(std::string(function_) + "(): too many arguments");
  if (!arguments_.keyword.empty()) {
    context_.fail(std::string(function_) + "() got an unexpected keyword argument '" +
                  arguments_.keyword[0].first + "'");
  }
}

}  // namespace restkv::chat

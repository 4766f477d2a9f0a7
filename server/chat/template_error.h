// How a template fails, inside this folder only: an exception from lexer, parser or a running template, caught once in
// chat_template.cpp and given out as a Status. (A Result at each of some hundred call sites would hide the language.)
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

namespace restkv::chat {

enum class TemplateErrorKind {
  kSyntax,   // the template cannot be parsed
  kRuntime,  // it does not fit its input
  kRaised,   // raise_exception: the template refuses the conversation, in its own words
  kLimit,    // fuel, depth, output or time
};

struct TemplateError : std::runtime_error {
  TemplateError(TemplateErrorKind kind, const std::string& message, size_t offset)
      : std::runtime_error(message), kind(kind), offset(offset) {}
  TemplateErrorKind kind;
  size_t offset;  // byte of the normalised source
};

}  // namespace restkv::chat

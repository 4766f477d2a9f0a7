// 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01: version, trace, span, flags.
#include "server/serving/trace_context.h"

#include <algorithm>

namespace restkv {
namespace {

constexpr size_t kTraceAt = 3, kTraceLen = 32, kParentAt = 36, kParentLen = 16, kFlagsAt = 53, kLen = 55;

bool is_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool is_zero(std::string_view text) { return text.find_first_not_of('0') == std::string_view::npos; }

}  // namespace

TraceContext parse_traceparent(std::string_view header) {
  if (header.size() < kLen) return {};
  const std::string_view version = header.substr(0, 2), trace = header.substr(kTraceAt, kTraceLen),
                         parent = header.substr(kParentAt, kParentLen), flags = header.substr(kFlagsAt, 2);
  if (header[2] != '-' || header[kTraceAt + kTraceLen] != '-' || header[kParentAt + kParentLen] != '-')
    return {};
  if (!is_hex(version) || !is_hex(trace) || !is_hex(parent) || !is_hex(flags) || version == "ff") return {};
  if (is_zero(trace) || is_zero(parent)) return {};
  if (header.size() > kLen && (version == "00" || header[kLen] != '-')) return {};
  return {std::string(trace), std::string(parent)};
}

}  // namespace restkv

// Writing JSON by appending to a string: a streamed token costs tens of nanoseconds here, where building and dumping a
// value costs microseconds.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace restkv {

// `text` with quotes around it. Control characters are escaped; bytes that are not UTF-8 become U+FFFD, so that the
// output is always valid JSON.
void append_json_string(std::string& out, std::string_view text);
void append_json_number(std::string& out, int64_t value);
// JSON has no infinities: -inf is -9999, as vLLM writes it; NaN is null.
void append_json_number(std::string& out, double value);
// Milliseconds and rates: three digits after the point.
void append_json_fixed(std::string& out, double value);

bool is_valid_utf8(std::string_view text);
// `text` with U+FFFD for each byte that is not UTF-8.
std::string valid_utf8(std::string_view text);
int64_t count_code_points(std::string_view text);  // of valid UTF-8

}  // namespace restkv

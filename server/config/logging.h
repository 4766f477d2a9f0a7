// The program's log: one line an event on stderr, as text or JSON, through spdlog. Set up once, used by the
// server's folders; the engine's libraries never print. Control characters are escaped, so that no client
// writes a line of its own.
//   text: 2026-11-23T23:40:00.123Z INFO request finished id=cmpl-1 status=200
//   json: {"ts":"2026-11-23T23:40:00.123Z","level":"info","event":"request
//   finished","id":"cmpl-1","status":200}
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "server/config/settings.h"

namespace restkv {

// One named value of a log line. Text must not be a prompt, an answer or a key unless
// LoggingSettings::log_content.
struct LogField {
  LogField(std::string_view name, std::string_view text) : name(name), value(text) {}
  LogField(std::string_view name, const char* text) : name(name), value(std::string_view(text)) {}
  LogField(std::string_view name, const std::string& text) : name(name), value(std::string_view(text)) {}
  LogField(std::string_view name, bool flag) : name(name), value(flag) {}
  template <std::integral T>
  LogField(std::string_view name, T number) : name(name), value(static_cast<int64_t>(number)) {}
  LogField(std::string_view name, double number) : name(name), value(number) {}

  std::string_view name;
  std::variant<std::string_view, bool, int64_t, double> value;
};

void set_up_logging(const LoggingSettings& settings);
bool logs(LogLevel level);
bool logs_as_json();  // then every line on stderr is one
// `event` is a fixed sentence, what varies goes into fields. Thread-safe.
void log_event(LogLevel level, std::string_view event, std::initializer_list<LogField> fields = {});
void log_event(LogLevel level, std::string_view event, std::span<const LogField> fields);

// The line itself without the newline; log_event writes it.
std::string log_line(LogFormat format, LogLevel level, std::string_view time, std::string_view event,
                     std::span<const LogField> fields);

// `text` with control characters, quotes and backslashes as \n, \x1b, \", \\: safe in one line of a terminal
// or a log.
std::string escape_text(std::string_view text);
// What a user gave, for a message: its first 64 bytes, escaped, between single quotes.
std::string quote_text(std::string_view text);

}  // namespace restkv

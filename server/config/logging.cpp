// One spdlog logger on stderr that writes finished lines; the form of a line is made here.
#include "server/config/logging.h"

#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>

#include <spdlog/logger.h>
#include <unistd.h>

#include "engine/text/utf8.h"
#include "server/config/log_sink.h"

namespace restkv {
namespace {

std::string lost_lines(int64_t lost);

struct Log {
  std::atomic<LogLevel> level{LogLevel::kInfo};
  std::atomic<LogFormat> format{LogFormat::kText};
  spdlog::logger logger{"restkv", std::make_shared<LogSink>(STDERR_FILENO, lost_lines)};
  Log() {
    logger.set_pattern("%v");
    logger.set_level(spdlog::level::trace);  // `level` decides
  }
};

Log& the_log() {
  static Log log;
  return log;
}

constexpr std::array<std::string_view, 4> kTextLevels = {"DEBUG", "INFO ", "WARN ", "ERROR"};
constexpr std::array<std::string_view, 4> kJsonLevels = {"debug", "info", "warning", "error"};

std::string time_text() {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto part =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  std::array<char, 80> buffer;
  std::snprintf(buffer.data(), buffer.size(), "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ", utc.tm_year + 1900,
                utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec, static_cast<int>(part));
  return buffer.data();
}

void append_escaped(std::string& out, std::string_view text, bool as_json) {
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    switch (c) {
      case '"': out += "\\\""; continue;
      case '\\': out += "\\\\"; continue;
      case '\n': out += "\\n"; continue;
      case '\r': out += "\\r"; continue;
      case '\t': out += "\\t"; continue;
      default: break;
    }
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      std::array<char, 8> code;
      std::snprintf(code.data(), code.size(), as_json ? "\\u%04x" : "\\x%02x", byte);
      out += code.data();
    } else if (byte >= 0x80 && as_json) {  // JSON is UTF-8, whatever bytes a file's name has
      const Utf8Char one = decode_utf8(text, i);
      const bool is_valid = one.state == Utf8State::kValid;
      out += is_valid ? text.substr(i, one.length) : std::string_view("\\ufffd");
      if (is_valid) i += one.length - 1;
    } else {
      out += c;
    }
  }
}

// Text values need quotes where a reader could not see their end.
bool is_word(std::string_view text) {
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte <= ' ' || byte == '"' || byte == '\\' || byte == '=' || byte == 0x7f) return false;
  }
  return !text.empty();
}

void append_value(std::string& out, const LogField& field, bool as_json) {
  if (const auto* text = std::get_if<std::string_view>(&field.value)) {
    if (!as_json && is_word(*text)) {
      out += *text;
      return;
    }
    out += '"';
    append_escaped(out, *text, as_json);
    out += '"';
  } else if (const auto* flag = std::get_if<bool>(&field.value)) {
    out += *flag ? "true" : "false";
  } else if (const auto* integer = std::get_if<int64_t>(&field.value)) {
    out += std::to_string(*integer);
  } else {
    const double number = std::get<double>(field.value);
    std::array<char, 32> digits;
    std::snprintf(digits.data(), digits.size(), "%.6g", number);
    out += as_json && !std::isfinite(number) ? "null" : digits.data();  // JSON has no inf and NaN
  }
}

std::string lost_lines(int64_t lost) {
  const LogField field("lines", lost);
  return log_line(the_log().format, LogLevel::kWarning, time_text(), "nobody read the log: lines were lost",
                  {&field, 1});
}

}  // namespace

std::string escape_text(std::string_view text) {
  std::string out;
  append_escaped(out, text, false);
  return out;
}

std::string quote_text(std::string_view text) { return "'" + escape_text(text.substr(0, 64)) + "'"; }

std::string log_line(LogFormat format, LogLevel level, std::string_view time, std::string_view event,
                     std::span<const LogField> fields) {
  std::string out;
  const auto row = static_cast<size_t>(level);
  if (format == LogFormat::kJson) {
    out = "{\"ts\":\"" + std::string(time) + "\",\"level\":\"" + std::string(kJsonLevels[row]) +
          "\",\"event\":\"";
    append_escaped(out, event, true);
    out += '"';
    for (const LogField& field : fields) {
      out += ",\"";
      append_escaped(out, field.name, true);
      out += "\":";
      append_value(out, field, true);
    }
    out += '}';
    return out;
  }
  out = std::string(time) + " " + std::string(kTextLevels[row]) + " ";
  append_escaped(out, event, false);
  for (const LogField& field : fields) {
    out += ' ';
    append_escaped(out, field.name, false);
    out += '=';
    append_value(out, field, false);
  }
  return out;
}

void set_up_logging(const LoggingSettings& settings) {
  the_log().level = settings.level;
  the_log().format = settings.format;
}

bool logs_as_json() { return the_log().format == LogFormat::kJson; }

bool logs(LogLevel level) { return level >= the_log().level.load(std::memory_order_relaxed); }

void log_event(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  log_event(level, event, std::span<const LogField>(fields.begin(), fields.size()));
}

void log_event(LogLevel level, std::string_view event, std::span<const LogField> fields) {
  if (!logs(level)) return;
  Log& log = the_log();
  log.logger.log(spdlog::level::info,
                 spdlog::string_view_t(log_line(log.format, level, time_text(), event, fields)));
}

}  // namespace restkv

// A SAX handler that builds the value itself, because only there depth and keys can be counted before memory
// is spent.
#include "engine/model/json_reader.h"

#include <cstring>
#include <string>
#include <vector>

namespace restkv {
namespace {

using nlohmann::json;

std::string place(std::string_view text, size_t offset) {
  const std::string_view before = text.substr(0, std::min(offset, text.size()));
  size_t line = 1, line_begin = 0;
  for (size_t i = 0; i < before.size(); ++i) {
    if (before[i] == '\n') {
      ++line;
      line_begin = i + 1;
    }
  }
  return "line " + std::to_string(line) + ", column " + std::to_string(before.size() - line_begin + 1);
}

class Builder : public nlohmann::json_sax<json> {
 public:
  explicit Builder(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(number_integer_t value) override { return put(value); }
  bool number_unsigned(number_unsigned_t value) override { return put(value); }
  bool number_float(number_float_t value, const string_t&) override { return put(value); }
  bool binary(binary_t&) override { return refuse("binary value"); }
  bool string(string_t& value) override {
    if (has_nul(value)) return refuse("NUL in a string");
    return put(std::move(value));
  }
  bool start_object(size_t) override { return open(json::object()); }
  bool start_array(size_t) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    if (++num_keys_ > limits_.max_keys) {
      return refuse("more than " + std::to_string(limits_.max_keys) + " keys");
    }
    if (has_nul(name)) return refuse("NUL in a key");
    auto [entry, is_new] = open_.back()->get_ref<json::object_t&>().try_emplace(std::move(name));
    if (!is_new) return refuse("an object has the same key twice");
    member_ = &entry->second;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    constexpr int kNumberOverflow = 406;
    problem_ = error.id == kNumberOverflow ? "number out of range" : "syntax error";
    position_ = position;
    return false;
  }

  json take() { return std::move(root_); }
  const std::string& problem() const { return problem_; }
  // 1-based offset of a syntax error; other refusals have none.
  size_t position() const { return position_; }

 private:
  bool has_nul(const std::string& text) const {
    return !limits_.allow_nul && text.find('\0') != std::string::npos;
  }

  bool refuse(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }

  // Where the next value belongs: elements of an array move only when a later sibling is added, so that
  // pointers to open containers stay valid.
  json* slot() {
    if (open_.empty()) return &root_;
    if (open_.back()->is_object()) return member_;
    return &open_.back()->get_ref<json::array_t&>().emplace_back();
  }

  template <class T>
  bool put(T&& value) {
    *slot() = std::forward<T>(value);
    return true;
  }

  bool open(json container) {
    if (static_cast<int>(open_.size()) >= limits_.max_depth) {
      return refuse("nested deeper than " + std::to_string(limits_.max_depth));
    }
    json* target = slot();
    *target = std::move(container);
    open_.push_back(target);
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  const JsonLimits& limits_;
  json root_;
  std::vector<json*> open_;  // containers from the root to the current one
  json* member_ = nullptr;   // the value of the key just read
  int64_t num_keys_ = 0;
  std::string problem_;
  size_t position_ = 0;
};

}  // namespace

Result<json> parse_json(std::string_view text, const JsonLimits& limits) {
  // The parser takes NUL for the end of its input.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
    return invalid_argument("invalid JSON: NUL byte at " + place(text, nul));
  }
  Builder builder(limits);
  if (!json::sax_parse(text.begin(), text.end(), &builder)) {
    const std::string where = builder.position() > 0 ? " at " + place(text, builder.position() - 1) : "";
    return invalid_argument("invalid JSON: " + builder.problem() + where);
  }
  return builder.take();
}

}  // namespace restkv

// A SAX handler that builds the value itself, because only there depth and keys can be counted before memory
// is spent.
#include "engine/model/json_reader.h"

#include <string>
#include <type_traits>
#include <unordered_set>
#include <vector>

namespace restkv {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

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

// Json: json, whose objects are sorted by key, or ordered_json, whose objects keep the text's order. An ordered object is
// gathered in a frame and becomes one when it closes: its own insertion compares with every key before, and growing it
// copies the members.
template <class Json>
class Builder : public nlohmann::json_sax<Json> {
  using Base = nlohmann::json_sax<Json>;
  static constexpr bool kIsOrdered = std::is_same_v<Json, ordered_json>;

 public:
  using typename Base::binary_t;
  using typename Base::number_float_t;
  using typename Base::number_integer_t;
  using typename Base::number_unsigned_t;
  using typename Base::string_t;

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
  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    if (++num_keys_ > limits_.max_keys) {
      return refuse("more than " + std::to_string(limits_.max_keys) + " keys");
    }
    if (has_nul(name)) return refuse("NUL in a key");
    if constexpr (kIsOrdered) {
      Frame& frame = open_.back();
      if (!frame.names.insert(name).second) return refuse("an object has the same key twice");
      frame.member = &frame.members.emplace_back(std::move(name), Json()).second;
    } else {
      auto& object = open_.back().value->template get_ref<typename Json::object_t&>();
      auto [entry, is_new] = object.try_emplace(std::move(name));
      if (!is_new) return refuse("an object has the same key twice");
      open_.back().member = &entry->second;
    }
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    constexpr int kNumberOverflow = 406;
    problem_ = error.id == kNumberOverflow ? "number out of range" : "syntax error";
    position_ = position;
    return false;
  }

  Json take() { return std::move(root_); }
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

  struct Frame {
    Json* value = nullptr;                              // the container
    Json* member = nullptr;                             // objects: the value of the key just read
    std::vector<std::pair<std::string, Json>> members;  // ordered objects: so far
    std::unordered_set<std::string> names;              // of them
  };

  // Where the next value belongs: elements of an array and members of a frame move only when a later sibling is added,
  // so that pointers to open containers stay valid.
  Json* slot() {
    if (open_.empty()) return &root_;
    if (open_.back().value->is_object()) return open_.back().member;
    return &open_.back().value->template get_ref<typename Json::array_t&>().emplace_back();
  }

  template <class T>
  bool put(T&& value) {
    *slot() = std::forward<T>(value);
    return true;
  }

  bool open(Json container) {
    if (static_cast<int>(open_.size()) >= limits_.max_depth) {
      return refuse("nested deeper than " + std::to_string(limits_.max_depth));
    }
    Json* target = slot();
    *target = std::move(container);
    open_.emplace_back().value = target;
    return true;
  }

  bool close() {
    if constexpr (kIsOrdered) {
      Frame& frame = open_.back();
      if (frame.value->is_object()) {
        auto& object = frame.value->template get_ref<typename Json::object_t&>();
        object.reserve(frame.members.size());
        for (auto& [name, value] : frame.members) object.emplace_back(std::move(name), std::move(value));
      }
    }
    open_.pop_back();
    return true;
  }

  const JsonLimits& limits_;
  Json root_;
  std::vector<Frame> open_;  // containers from the root to the current one
  int64_t num_keys_ = 0;
  std::string problem_;
  size_t position_ = 0;
};

template <class Json>
Result<Json> parse(std::string_view text, const JsonLimits& limits) {
  // The parser takes NUL for the end of its input.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
    return invalid_argument("invalid JSON: NUL byte at " + place(text, nul));
  }
  Builder<Json> builder(limits);
  if (!Json::sax_parse(text.begin(), text.end(), &builder)) {
    const std::string where = builder.position() > 0 ? " at " + place(text, builder.position() - 1) : "";
    return invalid_argument("invalid JSON: " + builder.problem() + where);
  }
  return builder.take();
}

}  // namespace

Result<json> parse_json(std::string_view text, const JsonLimits& limits) { return parse<json>(text, limits); }

Result<ordered_json> parse_ordered_json(std::string_view text, const JsonLimits& limits) {
  return parse<ordered_json>(text, limits);
}

}  // namespace restkv

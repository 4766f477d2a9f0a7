// Both formats; all errors at once.
#include "server/access/key_file.h"

#include <openssl/sha.h>

#include <algorithm>
#include <limits>
#include <unordered_set>

#include "server/config/logging.h"
#include "server/config/nearest_name.h"
#include "server/config/quantity.h"
#include "server/config/yaml_tree.h"

namespace restkv {
namespace {

constexpr std::string_view kFields[] = {
    "name",           "key",      "sha256", "requests_per_minute", "tokens_per_minute",
    "max_concurrent", "priority", "profile"};
constexpr size_t kMaxName = 64;
constexpr int64_t kMaxRate = int64_t{1} << 40;

bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= kMaxName && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
           c == '_' || c == '.' || c == '@';
  });
}

// Why `key` is none; empty: it is one. The text of the key stays out of it.
std::string key_fault(std::string_view key) {
  if (key.size() < kMinKeyBytes || key.size() > kMaxKeyBytes) {
    return "a key must have " + std::to_string(kMinKeyBytes) + " to " + std::to_string(kMaxKeyBytes) +
           " characters, not " + std::to_string(key.size());
  }
  const bool is_visible = std::all_of(key.begin(), key.end(), [](char c) { return c > ' ' && c < 0x7F; });
  return is_visible ? "" : "a key must be visible ASCII characters without spaces";
}

bool read_hash(std::string_view text, KeyHash& out) {
  if (text.size() != 2 * out.size()) return false;
  const auto digit = [](char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
  };
  for (size_t i = 0; i < out.size(); ++i) {
    const int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    out[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return true;
}

class Reader {
 public:
  Reader(const std::string& name, std::vector<std::string>& errors) : name_(name), errors_(errors) {}

  void read_lines(std::string_view text) {
    for (int line = 1; !text.empty(); ++line) {
      const size_t end = text.find_first_of("\n,");
      std::string_view item = text.substr(0, end);
      const bool is_comma = end != std::string_view::npos && text[end] == ',';
      text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
      while (!item.empty() && (item.back() == '\r' || item.back() == ' ' || item.back() == '\t'))
        item.remove_suffix(1);
      while (!item.empty() && (item.front() == ' ' || item.front() == '\t')) item.remove_prefix(1);
      const YamlPlace place{line, 1};
      if (is_comma) --line;
      if (item.empty() || item.front() == '#') continue;
      if (const std::string fault = key_fault(item); !fault.empty()) {
        report(place, fault);
        continue;
      }
      ApiKey key;
      key.name = "key" + std::to_string(keys_.size() + 1);
      key.hash = hash_of_key(item);
      add(std::move(key), place);
    }
  }

  void read_yaml(std::string_view text) {
    std::vector<YamlError> errors;
    const YamlNode root = parse_yaml(text, errors);
    // A syntax error's message may quote the line, and with it a key: its place alone is told.
    for (const YamlError& error : errors) report(error.place, "is no YAML that a key file can be");
    if (!errors.empty()) return;
    for (size_t i = 0; i < root.keys.size(); ++i) {
      const auto& [name, place] = root.keys[i];
      const YamlNode& value = root.items[i];
      if (name == "version") {
        if (value.text != "1") report(value.place, "version: only 1 is known");
      } else if (name != "keys") {
        constexpr std::string_view kKnown[] = {"version", "keys"};
        report(place, "unknown key" + suggestion(name, kKnown));
      } else if (value.kind != YamlNode::Kind::kList) {
        report(value.place, "keys: expected a list");
      } else {
        for (const YamlNode& item : value.items) read_key(item);
      }
    }
  }

  std::vector<ApiKey> take() {
    if (errors_.empty() && keys_.empty()) errors_.push_back(name_ + ": no API key in it");
    return std::move(keys_);
  }

 private:
  void report(const YamlPlace& place, const std::string& message) {
    errors_.push_back(name_ + ":" + std::to_string(place.line) + ":" + std::to_string(place.column) + ": " +
                      message);
  }

  void read_key(const YamlNode& node) {
    if (node.kind != YamlNode::Kind::kMap)
      return report(node.place, "expected name, key and limits of one API key");
    ApiKey key;
    bool has_hash = false;
    const size_t before = errors_.size();
    for (size_t i = 0; i < node.keys.size(); ++i) {
      const auto& [field, place] = node.keys[i];
      const YamlNode& value = node.items[i];
      if (std::find(std::begin(kFields), std::end(kFields), field) == std::end(kFields)) {
        report(place, "unknown key " + quote_text(field) + suggestion(field, kFields));
      } else if (value.kind != YamlNode::Kind::kScalar) {
        report(value.place, field + ": expected one value");
      } else if (field == "key" || field == "sha256") {
        if (has_hash) report(place, "an API key has either 'key' or 'sha256'");
        has_hash = true;
        read_secret(field, value, key);
      } else if (field == "name" || field == "profile") {
        if (!is_name(value.text)) report(value.place, field + ": 1 to 64 letters, digits and any of -_.@");
        (field == "name" ? key.name : key.profile) = value.text;
      } else {
        read_number(field, value, key);
      }
    }
    if (key.name.empty()) report(node.place, "an API key needs a name");
    if (!has_hash) report(node.place, "an API key needs 'key' or 'sha256'");
    if (errors_.size() == before) add(std::move(key), node.place);
  }

  void read_secret(const std::string& field, const YamlNode& value, ApiKey& key) {
    if (field == "sha256") {
      if (!read_hash(value.text, key.hash)) report(value.place, "sha256: expected 64 hexadecimal digits");
      return;
    }
    if (const std::string fault = key_fault(value.text); !fault.empty())
      return report(value.place, "key: " + fault);
    key.hash = hash_of_key(value.text);
  }

  void read_number(const std::string& field, const YamlNode& value, ApiKey& key) {
    const bool is_priority = field == "priority";
    std::string_view text = value.text;
    const bool is_negative = is_priority && text.starts_with('-');
    if (is_negative) text.remove_prefix(1);
    const Result<int64_t> number = parse_count(text);
    const int64_t most = field.ends_with("minute") ? kMaxRate : std::numeric_limits<int32_t>::max();
    if (!number.ok() || *number < 0 || *number > most) {
      return report(value.place, field + ": expected a whole number" +
                                     (is_priority ? std::string() : " from 0 to " + std::to_string(most)));
    }
    if (field == "requests_per_minute") key.requests_per_minute = *number;
    if (field == "tokens_per_minute") key.tokens_per_minute = *number;
    if (field == "max_concurrent") key.max_concurrent = static_cast<int32_t>(*number);
    if (is_priority) key.priority = static_cast<int32_t>(is_negative ? -*number : *number);
  }

  void add(ApiKey key, const YamlPlace& place) {
    if (keys_.size() >= kMaxKeys) {
      if (keys_.size() == kMaxKeys) report(place, "more than " + std::to_string(kMaxKeys) + " API keys");
      return;
    }
    if (!names_.insert(key.name).second) return report(place, "the name '" + key.name + "' is there twice");
    if (!hashes_.insert(std::string(key.hash.begin(), key.hash.end())).second)
      return report(place, "the same API key is there twice");
    keys_.push_back(std::move(key));
  }

  const std::string& name_;
  std::vector<std::string>& errors_;
  std::vector<ApiKey> keys_;
  std::unordered_set<std::string> names_, hashes_;
};

// The first line that says something.
bool looks_like_yaml(std::string_view text) {
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    const size_t begin = line.find_first_not_of(" \t\r");
    if (begin == std::string_view::npos || line[begin] == '#') continue;
    return line.starts_with("keys:") || line.starts_with("version:") || line.starts_with("---");
  }
  return false;
}

}  // namespace

KeyHash hash_of_key(std::string_view key) {
  KeyHash hash{};
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), hash.data());
  return hash;
}

std::vector<ApiKey> parse_keys(std::string_view text, const std::string& name,
                               std::vector<std::string>& errors) {
  Reader reader(name, errors);
  looks_like_yaml(text) ? reader.read_yaml(text) : reader.read_lines(text);
  return reader.take();
}

}  // namespace restkv

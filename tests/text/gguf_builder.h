// Small GGUF vocabularies for tests, built in memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/gguf.h"
#include "engine/text/tokenizer.h"

namespace restkv {

class GgufBuilder {
 public:
  GgufBuilder& string(std::string_view key, std::string_view value) {
    entry(key, GgufType::kString);
    append_string(value);
    return *this;
  }
  GgufBuilder& number(std::string_view key, uint32_t value) {
    entry(key, GgufType::kU32);
    append(value);
    return *this;
  }
  GgufBuilder& flag(std::string_view key, bool value) {
    entry(key, GgufType::kBool);
    append(static_cast<uint8_t>(value));
    return *this;
  }
  GgufBuilder& strings(std::string_view key, const std::vector<std::string>& values) {
    array(key, GgufType::kString, values.size());
    for (const std::string& value : values) append_string(value);
    return *this;
  }
  template <class T>
  GgufBuilder& numbers(std::string_view key, GgufType type, const std::vector<T>& values) {
    array(key, type, values.size());
    for (const T value : values) append(value);
    return *this;
  }
  std::string build() const {
    std::string file = "GGUF";
    append_to(&file, uint32_t{3});
    append_to(&file, uint64_t{0});
    append_to(&file, num_entries_);
    return file + body_;
  }

 private:
  template <class T>
  static void append_to(std::string* out, T value) {
    char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    out->append(bytes, sizeof(T));
  }
  template <class T>
  void append(T value) {
    append_to(&body_, value);
  }
  void append_string(std::string_view value) {
    append(uint64_t{value.size()});
    body_ += value;
  }
  void entry(std::string_view key, GgufType type) {
    append_string(key);
    append(static_cast<uint32_t>(type));
    ++num_entries_;
  }
  void array(std::string_view key, GgufType type, uint64_t count) {
    entry(key, GgufType::kArray);
    append(static_cast<uint32_t>(type));
    append(count);
  }
  std::string body_;
  uint64_t num_entries_ = 0;
};

inline Result<std::shared_ptr<const Tokenizer>> load_built(const GgufBuilder& builder) {
  const std::string bytes = builder.build();
  const auto file = GgufFile::parse(std::as_bytes(std::span(bytes.data(), bytes.size())), "built.gguf");
  if (!file.ok()) return file.status();
  return load_gguf_tokenizer(*file);
}

}  // namespace restkv

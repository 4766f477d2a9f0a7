// Bytes of model files for tests, right or wrong on purpose.
#pragma once

#include <unistd.h>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace restkv::testing {

inline std::span<const std::byte> bytes_of_text(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

template <class T>
std::string packed(T value) {
  static_assert(std::is_arithmetic_v<T>);
  std::string out(sizeof(T), '\0');
  std::memcpy(out.data(), &value, sizeof(T));
  return out;
}

// u64 header length + header + data.
inline std::string safetensors_bytes(std::string_view header, std::string_view data) {
  return packed<uint64_t>(header.size()) + std::string(header) + std::string(data);
}

// A GGUF file from its parts; counts follow the parts unless they are set.
class GgufBuilder {
 public:
  static std::string text(std::string_view value) {
    return packed<uint64_t>(value.size()) + std::string(value);
  }

  GgufBuilder& raw_key(std::string_view key, uint32_t type, std::string_view payload) {
    keys_ += text(key) + packed(type) + std::string(payload);
    ++num_keys;
    return *this;
  }
  GgufBuilder& u32(std::string_view key, uint32_t value) { return raw_key(key, 4, packed(value)); }
  GgufBuilder& f32(std::string_view key, float value) { return raw_key(key, 6, packed(value)); }
  GgufBuilder& string(std::string_view key, std::string_view value) { return raw_key(key, 8, text(value)); }
  // sizes: innermost first, as in the file.
  GgufBuilder& tensor(std::string_view name, const std::vector<uint64_t>& sizes, uint32_t type,
                      uint64_t offset) {
    tensors_ += text(name) + packed<uint32_t>(static_cast<uint32_t>(sizes.size()));
    for (const uint64_t size : sizes) tensors_ += packed(size);
    tensors_ += packed(type) + packed(offset);
    ++num_tensors;
    return *this;
  }
  GgufBuilder& data(std::string_view bytes) {
    data_ = bytes;
    return *this;
  }

  std::string build() const {
    std::string out = "GGUF" + packed(version) + packed(num_tensors) + packed(num_keys) + keys_ + tensors_;
    out.append((32 - out.size() % 32) % 32, '\0');
    return out + data_;
  }

  uint32_t version = 3;
  uint64_t num_tensors = 0, num_keys = 0;

 private:
  std::string keys_, tensors_, data_;
};

// A folder of its own for one test, gone with it.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "restkv_test_XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::string path(std::string_view name) const { return (path_ / name).string(); }
  std::string folder() const { return path_.string(); }
  std::string write(std::string_view name, std::string_view content) const {
    std::ofstream(path(name), std::ios::binary) << content;
    return path(name);
  }

 private:
  std::filesystem::path path_;
};

}  // namespace restkv::testing

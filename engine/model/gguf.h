// GGUF v2 and v3: metadata (key -> typed value) and tensors, over a mapping. Hostile files get a Status:
// every count and length is compared with the bytes that are left before anything is allocated for it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/tensor_file.h"

namespace restkv {

enum class GgufType : uint32_t {
  kU8 = 0,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};

// One metadata value. Arrays of numbers and strings stay in the mapping until asked for.
struct GgufValue {
  GgufType type = GgufType::kU8;  // of the value, or of an array's elements
  bool is_array = false;
  uint64_t count = 1;                  // elements
  std::span<const std::byte> payload;  // numbers: little endian, packed; strings: u64 length + bytes each
};

class GgufFile {
 public:
  static Result<GgufFile> parse(std::shared_ptr<const MappedFile> file);
  static Result<GgufFile> parse(std::span<const std::byte> bytes, const std::string& path);
  static Result<GgufFile> open(const std::string& path);
  // Takes over the tensors of a further part of the model, with their files.
  Status add_tensors(const GgufFile& part);
  static bool has_magic(std::span<const std::byte> bytes);

  const TensorIndex& tensors() const { return tensors_; }
  const std::string& path() const { return path_; }
  uint32_t version() const { return version_; }
  bool has(std::string_view key) const { return find(key) != nullptr; }
  const GgufValue* find(std::string_view key) const;
  const std::vector<std::string>& keys() const { return keys_; }  // in file order

  // Missing: nullopt. There, but of a type that cannot be read as asked: an error that names the key.
  Result<std::optional<int64_t>> get_int(std::string_view key) const;   // any integer type or bool that fits
  Result<std::optional<double>> get_float(std::string_view key) const;  // float or integer
  Result<std::optional<bool>> get_bool(std::string_view key) const;
  Result<std::optional<std::string_view>> get_string(std::string_view key) const;
  // Arrays; empty if missing.
  Result<std::vector<std::string_view>> get_strings(std::string_view key) const;
  Result<std::vector<float>> get_floats(std::string_view key) const;  // F32 or F64
  Result<std::vector<int64_t>> get_ints(std::string_view key) const;  // any integer type or bool

 private:
  friend class GgufParser;
  Status wrong_type(std::string_view key, const GgufValue& value, std::string_view expected) const;

  std::string path_;
  uint32_t version_ = 0;
  TensorIndex tensors_;
  std::vector<std::string> keys_;
  std::map<std::string, GgufValue, std::less<>> values_;
};

}  // namespace restkv

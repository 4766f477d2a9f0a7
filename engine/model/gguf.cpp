// File: "GGUF" | u32 version | u64 tensors | u64 keys | keys: name, u32 type, value | tensors: name, u32 n,
// u64 sizes[n] (innermost first), u32 type, u64 offset | padding to the alignment | data. Names: u64 length +
// bytes.
#include "engine/model/gguf.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace restkv {
namespace {

constexpr uint64_t kMaxKeyLen = 65535;  // the format's own limit
constexpr uint64_t kMaxTensorNameLen = 1024;
constexpr uint32_t kMaxDimensions = 4;
constexpr int64_t kDefaultAlignment = 32;
constexpr int64_t kMaxAlignment = int64_t{1} << 20;
// The fewest bytes one key and one tensor take: bound the counts before the first allocation.
constexpr uint64_t kMinKeyBytes = 8 + 1 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 4 + 4 + 8;

// Tensor types by their number in the file. Those without a DType are kept by name; size 0: layout unknown.
struct TensorType {
  uint32_t id;
  std::string_view name;
  int64_t block_elems;
  int64_t block_bytes;
};
constexpr std::array<TensorType, 19> kForeignTypes = {{{9, "Q8_1", 32, 36},
                                                       {15, "Q8_K", 256, 292},
                                                       {16, "IQ2_XXS", 256, 66},
                                                       {17, "IQ2_XS", 256, 74},
                                                       {18, "IQ3_XXS", 256, 98},
                                                       {19, "IQ1_S", 256, 50},
                                                       {21, "IQ3_S", 256, 110},
                                                       {22, "IQ2_S", 256, 82},
                                                       {24, "I8", 1, 1},
                                                       {25, "I16", 1, 2},
                                                       {27, "I64", 1, 8},
                                                       {28, "F64", 1, 8},
                                                       {29, "IQ1_M", 256, 56},
                                                       {34, "TQ1_0", 256, 54},
                                                       {35, "TQ2_0", 256, 66},
                                                       {39, "MXFP4", 32, 17},
                                                       {40, "NVFP4", 64, 36},
                                                       {4, "Q4_2", 0, 0},
                                                       {5, "Q4_3", 0, 0}}};

struct KnownType {
  uint32_t id;
  DType dtype;
};
constexpr std::array<KnownType, 16> kKnownTypes = {{{0, DType::kF32},
                                                    {1, DType::kF16},
                                                    {2, DType::kQ4_0},
                                                    {3, DType::kQ4_1},
                                                    {6, DType::kQ5_0},
                                                    {7, DType::kQ5_1},
                                                    {8, DType::kQ8_0},
                                                    {10, DType::kQ2_K},
                                                    {11, DType::kQ3_K},
                                                    {12, DType::kQ4_K},
                                                    {13, DType::kQ5_K},
                                                    {14, DType::kQ6_K},
                                                    {20, DType::kIQ4_NL},
                                                    {23, DType::kIQ4_XS},
                                                    {26, DType::kI32},
                                                    {30, DType::kBF16}}};

constexpr std::array<std::string_view, 13> kTypeNames = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};

// Bytes of one number; 0 for strings and arrays.
size_t number_bytes(GgufType type) {
  constexpr std::array<size_t, 13> kBytes = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return kBytes[static_cast<size_t>(type)];
}

template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

bool is_integer(GgufType type) {
  return type != GgufType::kString && type != GgufType::kArray && type != GgufType::kF32 &&
         type != GgufType::kF64;
}

// nullopt: a u64 above the range of int64.
std::optional<int64_t> load_integer(GgufType type, const std::byte* at) {
  switch (type) {
    case GgufType::kU8: return load<uint8_t>(at);
    case GgufType::kI8: return load<int8_t>(at);
    case GgufType::kU16: return load<uint16_t>(at);
    case GgufType::kI16: return load<int16_t>(at);
    case GgufType::kU32: return load<uint32_t>(at);
    case GgufType::kI32: return load<int32_t>(at);
    case GgufType::kBool: return load<uint8_t>(at) != 0;
    case GgufType::kI64: return load<int64_t>(at);
    case GgufType::kU64: {
      const uint64_t value = load<uint64_t>(at);
      if (value > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    case GgufType::kF32:
    case GgufType::kF64:
    case GgufType::kString:
    case GgufType::kArray: break;
  }
  return std::nullopt;
}

}  // namespace

class GgufParser {
 public:
  GgufParser(std::span<const std::byte> bytes, const std::string& path) : bytes_(bytes) { out_.path_ = path; }

  Result<GgufFile> parse() {
    if (Status status = read_header(); !status.ok()) return status;
    if (Status status = read_keys(); !status.ok()) return status;
    if (Status status = read_tensors(); !status.ok()) return status;
    return std::move(out_);
  }

 private:
  Status error(const std::string& what) const { return invalid_argument(out_.path_ + ": " + what); }
  Status truncated(const std::string& where) const {
    return error(where + " runs past the end of the file (" + std::to_string(bytes_.size()) +
                 " bytes): truncated?");
  }
  uint64_t left() const { return bytes_.size() - at_; }

  template <class T>
  bool read(T* out) {
    if (left() < sizeof(T)) return false;
    *out = load<T>(bytes_.data() + at_);
    at_ += sizeof(T);
    return true;
  }

  bool read_string(uint64_t max_len, std::string* out) {
    uint64_t size = 0;
    if (!read(&size) || size > max_len || size > left()) return false;
    out->assign(reinterpret_cast<const char*>(bytes_.data()) + at_, size);
    at_ += size;
    return true;
  }

  Status read_header() {
    if (!GgufFile::has_magic(bytes_)) return error("does not begin with 'GGUF'");
    at_ = 4;
    if (!read(&out_.version_)) return truncated("the header");
    if (out_.version_ == 0x02000000u || out_.version_ == 0x03000000u) {
      return error("big endian GGUF is not supported");
    }
    if (out_.version_ != 2 && out_.version_ != 3) {
      return error("GGUF version " + std::to_string(out_.version_) +
                   " is not supported; versions 2 and 3 are");
    }
    if (!read(&num_tensors_) || !read(&num_keys_)) return truncated("the header");
    if (num_keys_ > left() / kMinKeyBytes) return truncated(std::to_string(num_keys_) + " metadata keys");
    if (num_tensors_ > left() / kMinTensorBytes) return truncated(std::to_string(num_tensors_) + " tensors");
    return {};
  }

  Status read_keys() {
    for (uint64_t i = 0; i < num_keys_; ++i) {
      std::string key;
      if (!read_string(kMaxKeyLen, &key)) return truncated("the name of metadata key " + std::to_string(i));
      if (key.empty()) return error("metadata key " + std::to_string(i) + " has no name");
      uint32_t type = 0;
      if (!read(&type)) return truncated("metadata key '" + key + "'");
      GgufValue value;
      if (Status status = read_value(key, type, &value); !status.ok()) return status;
      if (!out_.values_.emplace(key, value).second) return error("metadata key '" + key + "' is there twice");
      out_.keys_.push_back(std::move(key));
    }
    return {};
  }

  Status read_value(const std::string& key, uint32_t type, GgufValue* value) {
    if (type >= kTypeNames.size())
      return error("metadata key '" + key + "' has the unknown type " + std::to_string(type));
    value->type = static_cast<GgufType>(type);
    if (value->type == GgufType::kArray) {
      uint32_t element = 0;
      if (!read(&element) || !read(&value->count)) return truncated("metadata array '" + key + "'");
      if (element >= kTypeNames.size()) {
        return error("metadata array '" + key + "' has the unknown element type " + std::to_string(element));
      }
      value->is_array = true;
      value->type = static_cast<GgufType>(element);
      if (value->type == GgufType::kArray)
        return error("metadata key '" + key + "': arrays of arrays are not supported");
    }
    const size_t begin = at_;
    if (value->type == GgufType::kString) {
      if (value->count > left() / sizeof(uint64_t)) return truncated("metadata key '" + key + "'");
      for (uint64_t i = 0; i < value->count; ++i) {
        uint64_t size = 0;
        if (!read(&size) || size > left()) return truncated("metadata key '" + key + "'");
        at_ += size;
      }
    } else {
      const size_t element_bytes = number_bytes(value->type);
      if (value->count > left() / element_bytes) return truncated("metadata key '" + key + "'");
      at_ += value->count * element_bytes;
    }
    value->payload = bytes_.subspan(begin, at_ - begin);
    return {};
  }

  Result<uint64_t> alignment() const {
    Result<std::optional<int64_t>> found = out_.get_int("general.alignment");
    if (!found.ok()) return found.status();
    const int64_t alignment = found->value_or(kDefaultAlignment);
    if (alignment < 8 || alignment > kMaxAlignment || (alignment & (alignment - 1)) != 0) {
      return error("general.alignment is " + std::to_string(alignment) + "; a power of two from 8 to " +
                   std::to_string(kMaxAlignment) + " is allowed");
    }
    return static_cast<uint64_t>(alignment);
  }

  Status read_tensors() {
    Result<uint64_t> alignment = this->alignment();
    if (!alignment.ok()) return alignment.status();
    std::vector<uint64_t> offsets;
    for (uint64_t i = 0; i < num_tensors_; ++i) {
      FileTensor tensor;
      uint64_t offset = 0;
      if (Status status = read_tensor_info(i, &tensor, &offset); !status.ok()) return status;
      if (offset % *alignment != 0) {
        return error("tensor '" + tensor.name + "': offset " + std::to_string(offset) +
                     " is not a multiple of " + std::to_string(*alignment));
      }
      const std::string name = tensor.name;
      if (!out_.tensors_.add(std::move(tensor))) return error("tensor '" + name + "' is there twice");
      offsets.push_back(offset);
    }
    const uint64_t padding = (*alignment - at_ % *alignment) % *alignment;
    if (num_tensors_ == 0) return {};
    if (padding > left()) return truncated("the tensor data");
    return place(bytes_.subspan(at_ + padding), offsets);
  }

  Status read_tensor_info(uint64_t index, FileTensor* tensor, uint64_t* offset) {
    if (!read_string(kMaxTensorNameLen, &tensor->name))
      return truncated("the name of tensor " + std::to_string(index));
    if (tensor->name.empty()) return error("tensor " + std::to_string(index) + " has no name");
    const auto fail = [&](const std::string& what) {
      return error("tensor '" + tensor->name + "': " + what);
    };
    uint32_t num_dimensions = 0, type = 0;
    if (!read(&num_dimensions)) return truncated("tensor '" + tensor->name + "'");
    if (num_dimensions > kMaxDimensions) {
      return fail(std::to_string(num_dimensions) + " dimensions, at most " + std::to_string(kMaxDimensions) +
                  " are allowed");
    }
    std::vector<uint64_t> shape(num_dimensions);
    for (uint32_t d = num_dimensions; d-- > 0;) {
      if (!read(&shape[d])) return truncated("tensor '" + tensor->name + "'");
    }
    if (!read(&type) || !read(offset)) return truncated("tensor '" + tensor->name + "'");

    int64_t block_elems = 1, block_bytes = 1;
    bool has_layout = true;
    const auto known = std::find_if(kKnownTypes.begin(), kKnownTypes.end(),
                                    [&](const KnownType& t) { return t.id == type; });
    if (known != kKnownTypes.end()) {
      tensor->dtype = known->dtype;
      block_elems = dtype_info(known->dtype).block_elems;
      block_bytes = dtype_info(known->dtype).block_bytes;
    } else {
      const auto foreign = std::find_if(kForeignTypes.begin(), kForeignTypes.end(),
                                        [&](const TensorType& t) { return t.id == type; });
      if (foreign == kForeignTypes.end()) {
        tensor->unsupported_type = "type " + std::to_string(type);
      } else {
        tensor->unsupported_type = foreign->name;
      }
      has_layout = foreign != kForeignTypes.end() && foreign->block_elems > 0;
      if (has_layout) {
        block_elems = foreign->block_elems;
        block_bytes = foreign->block_bytes;
      }
    }
    TensorSize size;
    if (!tensor_size(shape, block_elems, block_bytes, &size)) return fail("the size of its shape overflows");
    const uint64_t row = shape.empty() ? 1 : shape.back();
    if (row % static_cast<uint64_t>(block_elems) != 0) {
      return fail("rows of " + std::to_string(row) + " values are not whole blocks of " +
                  std::to_string(block_elems));
    }
    tensor->num_bytes = has_layout ? size.num_bytes : 0;
    tensor->shape.assign(shape.begin(), shape.end());
    return {};
  }

  // Sets each tensor's data; no tensor may leave the file or share bytes with another.
  Status place(std::span<const std::byte> data, const std::vector<uint64_t>& offsets) {
    std::vector<size_t> order(offsets.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return offsets[a] < offsets[b]; });
    uint64_t covered = 0;
    for (const size_t i : order) {
      FileTensor& tensor = out_.tensors_.tensors[i];
      const uint64_t size = static_cast<uint64_t>(tensor.num_bytes);
      if (offsets[i] > data.size() || size > data.size() - offsets[i]) {
        return error("tensor '" + tensor.name + "': " + std::to_string(size) + " bytes at offset " +
                     std::to_string(offsets[i]) + " run past the end of the data (" +
                     std::to_string(data.size()) + " bytes): truncated?");
      }
      if (offsets[i] < covered) return error("tensor '" + tensor.name + "' overlaps the one before it");
      covered = offsets[i] + size;
      if (tensor.unsupported_type.empty()) tensor.data = data.data() + offsets[i];
    }
    return {};
  }

  std::span<const std::byte> bytes_;
  size_t at_ = 0;
  uint64_t num_tensors_ = 0, num_keys_ = 0;
  GgufFile out_;
};

bool GgufFile::has_magic(std::span<const std::byte> bytes) {
  return bytes.size() >= 4 && std::memcmp(bytes.data(), "GGUF", 4) == 0;
}

Result<GgufFile> GgufFile::parse(std::span<const std::byte> bytes, const std::string& path) {
  return GgufParser(bytes, path).parse();
}

Result<GgufFile> GgufFile::parse(std::shared_ptr<const MappedFile> file) {
  Result<GgufFile> parsed = parse(file->bytes(), file->path());
  if (!parsed.ok()) return parsed;
  parsed->tensors_.files.push_back(std::move(file));
  name_tensor_ranges(parsed->tensors_);
  return parsed;
}

Result<GgufFile> GgufFile::open(const std::string& path) {
  Result<std::shared_ptr<const MappedFile>> file = MappedFile::open(path);
  if (!file.ok()) return file.status();
  return parse(*std::move(file));
}

Status GgufFile::add_tensors(const GgufFile& part) {
  const size_t base = tensors_.files.size();
  for (FileTensor tensor : part.tensors_.tensors) {
    tensor.file += base;
    const std::string name = tensor.name;
    if (!tensors_.add(std::move(tensor)))
      return invalid_argument(part.path_ + ": tensor '" + name + "' is in an earlier part, too");
  }
  tensors_.files.insert(tensors_.files.end(), part.tensors_.files.begin(), part.tensors_.files.end());
  return {};
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

Status GgufFile::wrong_type(std::string_view key, const GgufValue& value, std::string_view expected) const {
  return invalid_argument(
      path_ + ": metadata key '" + std::string(key) + "' is " + (value.is_array ? "an array of " : "") +
      std::string(kTypeNames[static_cast<size_t>(value.type)]) + "; expected " + std::string(expected));
}

Result<std::optional<int64_t>> GgufFile::get_int(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::optional<int64_t>();
  if (value->is_array || !is_integer(value->type)) return wrong_type(key, *value, "an integer");
  const std::optional<int64_t> number = load_integer(value->type, value->payload.data());
  if (!number) {
    return invalid_argument(path_ + ": metadata key '" + std::string(key) + "' is " +
                            std::to_string(load<uint64_t>(value->payload.data())) + ": too large");
  }
  return number;
}

Result<std::optional<double>> GgufFile::get_float(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::optional<double>();
  if (!value->is_array && value->type == GgufType::kF32)
    return std::optional<double>(load<float>(value->payload.data()));
  if (!value->is_array && value->type == GgufType::kF64)
    return std::optional<double>(load<double>(value->payload.data()));
  if (value->is_array || !is_integer(value->type) || value->type == GgufType::kBool) {
    return wrong_type(key, *value, "a number");
  }
  Result<std::optional<int64_t>> whole = get_int(key);
  if (!whole.ok()) return whole.status();
  return std::optional<double>(static_cast<double>(**whole));
}

Result<std::optional<bool>> GgufFile::get_bool(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::optional<bool>();
  if (value->is_array || value->type != GgufType::kBool) return wrong_type(key, *value, "a bool");
  return std::optional<bool>(load<uint8_t>(value->payload.data()) != 0);
}

Result<std::optional<std::string_view>> GgufFile::get_string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::optional<std::string_view>();
  if (value->is_array || value->type != GgufType::kString) return wrong_type(key, *value, "a string");
  const std::span<const std::byte> text = value->payload.subspan(sizeof(uint64_t));
  return std::optional<std::string_view>({reinterpret_cast<const char*>(text.data()), text.size()});
}

Result<std::vector<std::string_view>> GgufFile::get_strings(std::string_view key) const {
  std::vector<std::string_view> strings;
  const GgufValue* value = find(key);
  if (value == nullptr) return strings;
  if (!value->is_array || value->type != GgufType::kString)
    return wrong_type(key, *value, "an array of strings");
  strings.reserve(value->count);
  const std::byte* at = value->payload.data();
  for (uint64_t i = 0; i < value->count; ++i) {
    const uint64_t size = load<uint64_t>(at);
    strings.emplace_back(reinterpret_cast<const char*>(at) + sizeof(uint64_t), size);
    at += sizeof(uint64_t) + size;
  }
  return strings;
}

Result<std::vector<float>> GgufFile::get_floats(std::string_view key) const {
  std::vector<float> numbers;
  const GgufValue* value = find(key);
  if (value == nullptr) return numbers;
  const bool is_f32 = value->type == GgufType::kF32;
  if (!value->is_array || (!is_f32 && value->type != GgufType::kF64)) {
    return wrong_type(key, *value, "an array of floats");
  }
  numbers.reserve(value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    const std::byte* at = value->payload.data() + i * number_bytes(value->type);
    numbers.push_back(is_f32 ? load<float>(at) : static_cast<float>(load<double>(at)));
  }
  return numbers;
}

Result<std::vector<int64_t>> GgufFile::get_ints(std::string_view key) const {
  std::vector<int64_t> numbers;
  const GgufValue* value = find(key);
  if (value == nullptr) return numbers;
  if (!value->is_array || !is_integer(value->type)) return wrong_type(key, *value, "an array of integers");
  numbers.reserve(value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    const std::optional<int64_t> number =
        load_integer(value->type, value->payload.data() + i * number_bytes(value->type));
    if (!number) {
      return invalid_argument(path_ + ": metadata key '" + std::string(key) +
                              "' has a number above 2^63 - 1");
    }
    numbers.push_back(*number);
  }
  return numbers;
}

}  // namespace restkv

// The header is {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ..., "__metadata__": {string:
// string}}. Tensors must cover the data exactly: sorted by begin, each starts where the one before ended, the
// last ends the file.
#include "engine/model/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>

#include "engine/model/json_reader.h"

namespace restkv {
namespace {

using nlohmann::json;
static_assert(std::endian::native == std::endian::little, "both formats are little endian and read in place");

// The reference implementation's limit.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
// Keys of a header (four a tensor) and of an index: 100 MB of header hold no more of any sense.
constexpr JsonLimits kHeaderLimits = {.max_depth = 8, .max_keys = 2'000'000};
constexpr uint64_t kMaxShardIndexBytes = 100'000'000;
constexpr size_t kMaxDimensions = 8;

// Types the format names beyond ours, with their size, so that the layout of such a file can still be
// checked.
struct ForeignType {
  std::string_view name;
  int64_t bytes;
};
constexpr std::array<ForeignType, 11> kForeignTypes = {{{"BOOL", 1},
                                                        {"I8", 1},
                                                        {"F8_E4M3", 1},
                                                        {"F8_E5M2", 1},
                                                        {"F8_E8M0", 1},
                                                        {"I16", 2},
                                                        {"U16", 2},
                                                        {"U32", 4},
                                                        {"I64", 8},
                                                        {"U64", 8},
                                                        {"F64", 8}}};

struct ByteRange {
  uint64_t begin, end;
};

class HeaderParser {
 public:
  HeaderParser(std::span<const std::byte> bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  Result<SafetensorsFile> parse() {
    uint64_t header_len = 0;
    if (bytes_.size() < sizeof(header_len)) return error("shorter than the 8 bytes of the header length");
    std::memcpy(&header_len, bytes_.data(), sizeof(header_len));
    const uint64_t rest = bytes_.size() - sizeof(header_len);
    if (header_len > kMaxHeaderBytes) {
      return error("header length " + std::to_string(header_len) + " is above the limit of " +
                   std::to_string(kMaxHeaderBytes) + ": not a safetensors file?");
    }
    if (header_len > rest) {
      return error("header length " + std::to_string(header_len) + " runs past the end of the file (" +
                   std::to_string(bytes_.size()) + " bytes): truncated?");
    }
    const std::string_view text(reinterpret_cast<const char*>(bytes_.data()) + sizeof(header_len),
                                header_len);
    data_ = bytes_.subspan(sizeof(header_len) + header_len);
    if (text.empty() || text.front() != '{') return error("the header does not begin with '{'");
    Result<json> header = parse_json(text, kHeaderLimits);
    if (!header.ok()) return error("header: " + header.status().message());

    for (const auto& [name, entry] : header->items()) {
      const Status status = name == "__metadata__" ? read_metadata(entry) : read_tensor(name, entry);
      if (!status.ok()) return status;
    }
    if (const Status status = check_cover(); !status.ok()) return status;
    return std::move(out_);
  }

 private:
  Status error(const std::string& what) const { return invalid_argument(path_ + ": " + what); }
  Status error(const std::string& name, const std::string& what) const {
    return error("tensor '" + name + "': " + what);
  }

  Status read_metadata(const json& entry) {
    if (!entry.is_object()) return error("__metadata__ is not an object");
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string()) return error("__metadata__." + key + " is not a string");
      out_.metadata[key] = value.get<std::string>();
    }
    return {};
  }

  static bool read_counts(const json& entry, const char* key, std::vector<uint64_t>* out) {
    const auto list = entry.find(key);
    if (list == entry.end() || !list->is_array()) return false;
    for (const json& value : *list) {
      if (!value.is_number_unsigned()) return false;
      out->push_back(value.get<uint64_t>());
    }
    return true;
  }

  Status read_tensor(const std::string& name, const json& entry) {
    if (!entry.is_object()) return error(name, "its entry is not an object");
    const auto dtype = entry.find("dtype");
    if (dtype == entry.end() || !dtype->is_string()) return error(name, "no string 'dtype'");
    std::vector<uint64_t> shape, offsets;
    if (!read_counts(entry, "shape", &shape)) return error(name, "'shape' is not a list of counts");
    if (shape.size() > kMaxDimensions) {
      return error(name, std::to_string(shape.size()) + " dimensions, at most " +
                             std::to_string(kMaxDimensions) + " are allowed");
    }
    if (!read_counts(entry, "data_offsets", &offsets) || offsets.size() != 2 || offsets[0] > offsets[1]) {
      return error(name, "'data_offsets' is not [begin, end] with begin <= end");
    }
    if (offsets[1] > data_.size()) {
      return error(name, "its data ends at byte " + std::to_string(offsets[1]) + " of " +
                             std::to_string(data_.size()) + ": truncated?");
    }
    FileTensor tensor;
    tensor.name = name;
    tensor.num_bytes = static_cast<int64_t>(offsets[1] - offsets[0]);
    int64_t value_bytes = 0;
    const std::string& type_name = dtype->get_ref<const std::string&>();
    if (const std::optional<DType> known = dtype_from_name(type_name); known && !is_block_type(*known)) {
      tensor.dtype = *known;
      value_bytes = dtype_info(*known).block_bytes;
    } else {
      tensor.unsupported_type = type_name;
      for (const ForeignType& type : kForeignTypes) {
        if (type.name == type_name) value_bytes = type.bytes;
      }
    }
    // A type without a known size has its place checked, not its shape.
    TensorSize size;
    if (!tensor_size(shape, 1, std::max<int64_t>(value_bytes, 1), &size)) {
      return error(name, "the size of its shape overflows");
    }
    if (value_bytes > 0 && size.num_bytes != tensor.num_bytes) {
      return error(name, "shape and type need " + std::to_string(size.num_bytes) +
                             " bytes, data_offsets give " + std::to_string(tensor.num_bytes));
    }
    tensor.shape.assign(shape.begin(), shape.end());
    if (tensor.unsupported_type.empty()) tensor.data = data_.data() + offsets[0];
    extents_.push_back({offsets[0], offsets[1]});
    order_.push_back(std::move(tensor));
    return {};
  }

  // No overlap, no gap, nothing behind the last tensor; and the tensors in file order.
  Status check_cover() {
    std::vector<size_t> sorted(order_.size());
    for (size_t i = 0; i < sorted.size(); ++i) sorted[i] = i;
    std::sort(sorted.begin(), sorted.end(), [&](size_t a, size_t b) {
      return std::pair(extents_[a].begin, extents_[a].end) < std::pair(extents_[b].begin, extents_[b].end);
    });
    uint64_t covered = 0;
    for (const size_t i : sorted) {
      if (extents_[i].begin != covered) {
        return error(order_[i].name,
                     std::string(extents_[i].begin < covered ? "overlaps" : "leaves a gap behind") +
                         " the tensor before it (begins at " + std::to_string(extents_[i].begin) +
                         ", expected " + std::to_string(covered) + ")");
      }
      covered = extents_[i].end;
      CHECK(out_.index.add(std::move(order_[i]))) << "the JSON reader lets no key through twice";
    }
    if (covered != data_.size()) {
      return error(std::to_string(data_.size() - covered) + " bytes behind the last tensor");
    }
    return {};
  }

  std::span<const std::byte> bytes_;
  std::span<const std::byte> data_;
  const std::string& path_;
  SafetensorsFile out_;
  std::vector<FileTensor> order_;   // in header order
  std::vector<ByteRange> extents_;  // of order_
};

Result<std::string> read_text(const std::string& path, uint64_t limit) {
  Result<std::shared_ptr<const MappedFile>> file = MappedFile::open(path);
  if (!file.ok()) return file.status();
  const std::span<const std::byte> bytes = (*file)->bytes();
  if (bytes.size() > limit) {
    return invalid_argument(path + ": " + std::to_string(bytes.size()) + " bytes, at most " +
                            std::to_string(limit) + " are read");
  }
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

// A file beside the index, not a way out of the folder.
bool is_plain_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

Status add_shard(const std::string& path, TensorIndex* index) {
  Result<std::shared_ptr<const MappedFile>> file = MappedFile::open(path);
  if (!file.ok()) return file.status();
  Result<SafetensorsFile> shard = parse_safetensors(*file);
  if (!shard.ok()) return shard.status();
  for (FileTensor& tensor : shard->index.tensors) {
    tensor.file = index->files.size();
    const std::string name = tensor.name;
    if (!index->add(std::move(tensor)))
      return invalid_argument(path + ": tensor '" + name + "' is in another shard, too");
  }
  index->files.push_back(*file);
  return {};
}

Result<TensorIndex> open_shards(const std::string& folder, const std::string& index_path) {
  Result<std::string> text = read_text(index_path, kMaxShardIndexBytes);
  if (!text.ok()) return text.status();
  Result<json> root = parse_json(*text, kHeaderLimits);
  if (!root.ok()) return invalid_argument(index_path + ": " + root.status().message());
  const json* map = nullptr;
  if (root->is_object() && root->contains("weight_map")) map = &(*root)["weight_map"];
  if (map == nullptr || !map->is_object() || map->empty()) {
    return invalid_argument(index_path + ": no object 'weight_map' of tensor names and files");
  }
  std::set<std::string> shards;
  for (const auto& [name, shard] : map->items()) {
    if (!shard.is_string() || !is_plain_file_name(shard.get_ref<const std::string&>())) {
      return invalid_argument(index_path + ": weight_map." + name +
                              " is not the name of a file in this folder");
    }
    shards.insert(shard.get<std::string>());
  }
  TensorIndex index;
  for (const std::string& shard : shards) {
    if (const Status status = add_shard(folder + "/" + shard, &index); !status.ok()) return status;
  }
  for (const auto& [name, shard] : map->items()) {
    const FileTensor* tensor = index.find(name);
    const std::string expected = folder + "/" + shard.get<std::string>();
    if (tensor == nullptr || index.files[tensor->file]->path() != expected) {
      return invalid_argument(expected + ": tensor '" + name + "' is missing, but " + index_path +
                              " names it there");
    }
  }
  return index;
}

}  // namespace

Result<SafetensorsFile> parse_safetensors(std::span<const std::byte> bytes, const std::string& path) {
  return HeaderParser(bytes, path).parse();
}

Result<SafetensorsFile> parse_safetensors(std::shared_ptr<const MappedFile> file) {
  Result<SafetensorsFile> parsed = parse_safetensors(file->bytes(), file->path());
  if (!parsed.ok()) return parsed;
  parsed->index.files.push_back(std::move(file));
  return parsed;
}

Result<TensorIndex> open_safetensors_folder(const std::string& folder) {
  std::error_code ignored;
  const std::string single = folder + "/model.safetensors";
  const std::string index_path = folder + "/model.safetensors.index.json";
  const bool has_index = std::filesystem::exists(index_path, ignored);
  Result<TensorIndex> index = TensorIndex{};
  if (has_index && !std::filesystem::exists(single, ignored)) {
    index = open_shards(folder, index_path);
  } else if (const Status status = add_shard(single, &*index); !status.ok()) {
    if (status.code() != StatusCode::kNotFound) return status;
    return not_found(folder + " has neither model.safetensors nor model.safetensors.index.json" +
                     (std::filesystem::exists(folder + "/pytorch_model.bin", ignored)
                          ? "; pytorch_model.bin is not read: convert it to safetensors"
                          : ""));
  }
  if (index.ok()) name_tensor_ranges(*index);
  return index;
}

Status write_safetensors(const std::string& path, const std::vector<OutputTensor>& tensors,
                         const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  int64_t offset = 0;
  std::vector<int64_t> sizes;
  for (const OutputTensor& tensor : tensors) {
    CHECK(!is_block_type(tensor.dtype)) << tensor.name << " has type " << dtype_info(tensor.dtype).name;
    int64_t values = 1;
    for (const int64_t size : tensor.shape) values *= size;
    sizes.push_back(bytes_of(tensor.dtype, values));
    CHECK(!header.contains(tensor.name)) << tensor.name << " is given twice";
    header[tensor.name] = {{"dtype", dtype_info(tensor.dtype).name},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + sizes.back()}}};
    offset += sizes.back();
  }
  // Metadata may quote outside text: what is not UTF-8 is replaced, not thrown at.
  std::string text = header.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  text.append((8 - text.size() % 8) % 8, ' ');  // data aligned to 8 bytes
  const uint64_t header_len = text.size();

  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(&header_len), sizeof(header_len));
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
  for (size_t i = 0; i < tensors.size(); ++i) out.write(static_cast<const char*>(tensors[i].data), sizes[i]);
  out.close();
  if (!out) return Status(StatusCode::kFailedPrecondition, "cannot write " + path);
  return {};
}

}  // namespace restkv

// The binder: walks the family's table, looks each name up in the file and compares shape and type with the config.
#include "engine/model/weights.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "engine/model/families.h"
#include "engine/model/gguf_parts.h"
#include "engine/model/safetensors.h"

namespace restkv {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPopulateBytes = int64_t{64} << 20;  // between two calls of progress
constexpr uint64_t kMaxConfigBytes = 16 << 20;

int64_t size_of(Extent extent, const ModelConfig& config) {
  switch (extent) {
    case Extent::kOne: return 1;
    case Extent::kHidden: return config.hidden_size;
    case Extent::kQueries: return config.num_heads * config.head_dim;
    case Extent::kKeys: return config.num_kv_heads * config.head_dim;
    case Extent::kHeadDim: return config.head_dim;
    case Extent::kFfn: return config.ffn_size;
  }
  CHECK(false) << "extent " << static_cast<int>(extent);
  return 0;
}

bool is_needed(Need need, const ModelConfig& config) {
  switch (need) {
    case Need::kAlways: return true;
    case Need::kQkvBias: return config.qkv_bias;
    case Need::kOutputBias: return config.o_bias;
    case Need::kMlpBias: return config.mlp_bias;
  }
  return true;
}

class Binder {
 public:
  Binder(const ModelConfig& config, const Family& family, bool is_gguf, Weights* out)
      : config_(config), family_(family), is_gguf_(is_gguf), out_(out) {}

  Status bind() {
    if (Status status = bind_ends(); !status.ok()) return status;
    out_->layers.resize(static_cast<size_t>(config_.num_layers));
    for (int64_t l = 0; l < config_.num_layers; ++l) {
      for (const std::span<const LayerWeight> table : family_.layer_weights) {
        for (const LayerWeight& row : table) {
          ConstTensor* target = &(out_->layers[static_cast<size_t>(l)].*row.member);
          const Status status =
              bind_one(layer_name(row, l), shape_of(row), is_needed(row.need, config_), target);
          if (!status.ok()) return status;
        }
      }
    }
    return {};
  }

  // The tensors bound, each once.
  const std::vector<const FileTensor*>& bound() const { return bound_; }

 private:
  std::string layer_name(const LayerWeight& row, int64_t layer) const {
    const std::string number = std::to_string(layer) + ".";
    if (is_gguf_) return "blk." + number + std::string(row.gguf);
    return prefix_ + "layers." + number + std::string(row.hf);
  }

  Status bind_ends() {
    std::string embedding = "token_embd.weight", norm = "output_norm.weight", head = "output.weight";
    if (!is_gguf_) {
      prefix_ = family_.hf_prefixes.front();
      for (const std::string_view prefix : family_.hf_prefixes) {
        if (out_->storage.find(std::string(prefix) + "embed_tokens.weight") == nullptr) continue;
        prefix_ = prefix;
        break;
      }
      embedding = prefix_ + "embed_tokens.weight";
      norm = prefix_ + "norm.weight";
      head = "lm_head.weight";
      // A wrapped model's head may lie inside: "language_model.model." -> "language_model.lm_head.weight".
      const std::string inner_head =
          prefix_.substr(0, prefix_.size() - std::string_view("model.").size()) + head;
      if (prefix_.ends_with("model.") && out_->storage.find(inner_head) != nullptr) head = inner_head;
    }
    const int64_t vocab = config_.vocab_size, hidden = config_.hidden_size;
    if (Status status = bind_one(embedding, {vocab, hidden}, true, &out_->embedding); !status.ok())
      return status;
    if (Status status = bind_one(norm, {hidden}, true, &out_->final_norm); !status.ok()) return status;
    if (!config_.tied_embeddings) return bind_one(head, {vocab, hidden}, true, &out_->head);
    out_->head = out_->embedding;
    return {};
  }

  // {C} for vectors, {N, C} for matrices.
  std::vector<int64_t> shape_of(const LayerWeight& row) const {
    const int64_t cols = size_of(row.cols, config_);
    if (row.rows == Extent::kOne) return {cols};
    return {size_of(row.rows, config_), cols};
  }

  Status bind_one(const std::string& name, const std::vector<int64_t>& expected, bool is_needed,
                  ConstTensor* target) {
    const FileTensor* tensor = out_->storage.find(name);
    if (tensor == nullptr) {
      if (!is_needed) return {};
      return invalid_argument("tensor '" + name + "' is missing; the config asks for it");
    }
    const bool is_vector = expected.size() == 1;
    if (tensor->shape != expected) {
      return invalid_argument("tensor '" + name + "': expected shape " + shape_text(expected) + ", found " +
                              shape_text(tensor->shape));
    }
    const DType dtype = tensor->dtype;
    const bool is_number = tensor->unsupported_type.empty() && dtype != DType::kI32 && dtype != DType::kU8;
    if (!is_number || (is_vector && is_block_type(dtype))) {
      const std::string found =
          tensor->unsupported_type.empty() ? std::string(dtype_info(dtype).name) : tensor->unsupported_type;
      return unimplemented("tensor '" + name + "' has type " + found + "; supported are " +
                           supported_types(is_vector));
    }
    *target = dense(aligned(*tensor), dtype, is_vector ? 1 : expected.front(), expected.back());
    bound_.push_back(tensor);
    out_->num_bytes += tensor->num_bytes;
    return {};
  }

  std::string supported_types(bool is_vector) const {
    std::string list;
    for (int i = 0; i < kNumDTypes; ++i) {
      const DType dtype = static_cast<DType>(i);
      if (dtype == DType::kI32 || dtype == DType::kU8) continue;
      if (is_block_type(dtype) && (is_vector || !is_gguf_)) continue;
      list += (list.empty() ? "" : ", ") + std::string(dtype_info(dtype).name);
    }
    return list;
  }

  // Early safetensors files have headers of any length: their tensors lie at odd addresses, which kernels cannot read.
  const std::byte* aligned(const FileTensor& tensor) {
    const DTypeInfo& info = dtype_info(tensor.dtype);
    const bool is_plain = info.block_elems == 1;
    if (!is_plain ||
        reinterpret_cast<uintptr_t>(tensor.data) % static_cast<uintptr_t>(info.block_bytes) == 0) {
      return tensor.data;
    }
    const size_t size = static_cast<size_t>(tensor.num_bytes);
    std::shared_ptr<std::byte[]> copy(new std::byte[size]);
    std::memcpy(copy.get(), tensor.data, size);
    out_->aligned_copies.push_back(copy);
    return copy.get();
  }

  const ModelConfig& config_;
  const Family& family_;
  bool is_gguf_;
  Weights* out_;
  std::string prefix_;
  std::vector<const FileTensor*> bound_;
};

// Reads every bound tensor once, so that the first request does not wait for the disk.
Status read_ahead(const Weights& weights, const std::vector<const FileTensor*>& bound,
                  const LoadProgress& progress) {
  int64_t done = 0;
  progress(0, weights.num_bytes);
  for (const FileTensor* tensor : bound) {
    const MappedFile& file = *weights.storage.files[tensor->file];
    const size_t begin = static_cast<size_t>(tensor->data - file.bytes().data());
    for (int64_t at = 0; at < tensor->num_bytes; at += kPopulateBytes) {
      const int64_t size = std::min(kPopulateBytes, tensor->num_bytes - at);
      const Status status = file.populate(begin + static_cast<size_t>(at), static_cast<size_t>(size));
      if (!status.ok()) return status;
      done += size;
      progress(done, weights.num_bytes);
    }
  }
  return {};
}

Status bind_weights(bool is_gguf, const LoadProgress& progress, Model* model) {
  const Family* family = find_family_by_name(model->config.family);
  CHECK(family != nullptr) << model->config.family;
  Binder binder(model->config, *family, is_gguf, &model->weights);
  if (const Status status = binder.bind(); !status.ok()) {
    return Status(status.code(), model->path + ": " + status.message()).with_param(status.param());
  }
  return progress ? read_ahead(model->weights, binder.bound(), progress) : Status();
}

// The text of a small file; nullopt if there is none.
Result<std::optional<std::string>> read_file(const std::string& path) {
  Result<std::shared_ptr<const MappedFile>> file = MappedFile::open(path);
  if (!file.ok()) {
    if (file.status().code() == StatusCode::kNotFound) return std::optional<std::string>();
    return file.status();
  }
  const std::span<const std::byte> bytes = (*file)->bytes();
  if (bytes.size() > kMaxConfigBytes) {
    return invalid_argument(path + ": " + std::to_string(bytes.size()) + " bytes, at most " +
                            std::to_string(kMaxConfigBytes) + " are read");
  }
  return std::optional<std::string>({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

// Config and tensors of a .gguf file.
Status open_gguf(Model* model) {
  Result<GgufFile> file = open_gguf_parts(model->path);
  if (!file.ok()) return file.status();
  model->gguf = std::make_shared<const GgufFile>(*std::move(file));
  Result<ModelConfig> config = parse_gguf_config(*model->gguf);
  if (!config.ok()) return config.status();
  model->config = *std::move(config);
  model->weights.storage = model->gguf->tensors();
  return {};
}

// And of a Hugging Face folder.
Status open_folder(Model* model) {
  Result<std::optional<std::string>> config_text = read_file(model->path + "/config.json");
  if (!config_text.ok()) return config_text.status();
  if (!config_text->has_value())
    return not_found(model->path + " has no config.json and is not a .gguf file");
  Result<std::optional<std::string>> generation_text = read_file(model->path + "/generation_config.json");
  if (!generation_text.ok()) return generation_text.status();
  Result<ModelConfig> config = parse_hf_config(**config_text, generation_text->value_or(""));
  if (!config.ok()) {
    return Status(config.status().code(), model->path + ": " + config.status().message())
        .with_param(config.status().param());
  }
  model->config = *std::move(config);
  Result<TensorIndex> tensors = open_safetensors_folder(model->path);
  if (!tensors.ok()) return tensors.status();
  model->weights.storage = *std::move(tensors);
  return {};
}

}  // namespace

Result<std::shared_ptr<const Model>> load_model(const std::string& path, const LoadProgress& progress,
                                                const RopeOverride& rope) {
  auto model = std::make_shared<Model>();
  model->path = path;
  std::error_code ignored;
  const bool is_folder = fs::is_directory(path, ignored);
  if (Status bad = is_folder ? open_folder(model.get()) : open_gguf(model.get()); !bad.ok()) return bad;
  // Before the weights are read, which can take minutes.
  if (Status bad = override_rope(rope, model->config); !bad.ok()) return bad;
  if (Status bad = bind_weights(!is_folder, progress, model.get()); !bad.ok()) return bad;
  if (model->config.name.empty())
    model->config.name = fs::weakly_canonical(path, ignored).filename().string();
  return std::shared_ptr<const Model>(std::move(model));
}

}  // namespace restkv

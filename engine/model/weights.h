// The weights of a model as views into its mapped files, bound by the family table and checked against the config.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/model/model_config.h"
#include "engine/model/tensor_file.h"
#include "kernels/base/tensor.h"

namespace restkv {

struct LayerWeights {
  ConstTensor attn_norm;               // [1, M]
  ConstTensor q, k, v;                 // [H*D, M], [K*D, M], [K*D, M]
  ConstTensor q_bias, k_bias, v_bias;  // [1, H*D], [1, K*D], [1, K*D] or empty
  ConstTensor q_norm, k_norm;          // [1, D] or empty
  ConstTensor o;                       // [M, H*D]
  ConstTensor o_bias;                  // [1, M] or empty
  ConstTensor attn_post_norm;          // [1, M] or empty (Gemma 2, 3)
  ConstTensor ffn_norm;                // [1, M]
  ConstTensor gate, up;                // [F, M]
  ConstTensor gate_bias, up_bias;      // [1, F] or empty
  ConstTensor down;                    // [M, F]
  ConstTensor down_bias;               // [1, M] or empty
  ConstTensor ffn_post_norm;           // [1, M] or empty (Gemma 2, 3)
};

// Where the ops find each weight: in the mapped files, or in a backend's own memory.
struct WeightViews {
  ConstTensor embedding;             // [V, M]
  ConstTensor final_norm;            // [1, M]
  ConstTensor head;                  // [V, M]; the embedding itself if tied
  std::vector<LayerWeights> layers;  // [L]
};

struct Weights : WeightViews {
  TensorIndex storage;  // all tensors of the files, used or not; keeps the mappings alive
  std::vector<std::shared_ptr<std::byte[]>> aligned_copies;  // of tensors at addresses kernels cannot read
  int64_t num_bytes = 0;                                     // of the tensors used, each once
};

// A loaded model: config, weights and where it came from.
struct Model {
  ModelConfig config;
  Weights weights;
  std::string path;
  std::shared_ptr<const GgufFile> gguf;  // null for a Hugging Face folder
};
using LoadProgress = std::function<void(int64_t done, int64_t total)>;
// `rope`: rotary scaling instead of the file's. With `progress` the weights are read from disk before this returns, and it gets (done, total) bytes; without, they are
// read on first use. `path`: a .gguf file or a folder with config.json. Errors say which tensor, what shape was expected and found.
Result<std::shared_ptr<const Model>> load_model(const std::string& path, const LoadProgress& progress = {},
                                                const RopeOverride& rope = {});

}  // namespace restkv

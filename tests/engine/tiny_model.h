// A Llama with random weights, small enough for unit tests, written to a folder and loaded as users' models
// are.
#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <unistd.h>

#include "engine/model/safetensors.h"
#include "engine/model/weights.h"

namespace restkv::testing {

struct TinyShape {
  int64_t layers = 3, hidden = 32, heads = 4, kv_heads = 2, head_dim = 8, ffn = 48, vocab = 64, context = 512;
  int64_t window = 0;  // of every second layer, from the second on; 0: full attention in all
  float value_scale =
      1;  // values are so many times larger, and what the output projection makes of them is not
};

inline std::string windows_json(const TinyShape& shape) {
  if (shape.window == 0) return {};
  std::string types;
  for (int64_t layer = 0; layer < shape.layers; ++layer)
    types += std::string(layer == 0 ? "" : ", ") +
             (layer % 2 == 1 ? "\"sliding_attention\"" : "\"full_attention\"");
  return ", \"sliding_window\": " + std::to_string(shape.window) + ", \"layer_types\": [" + types + "]";
}

// May change a tensor before it is written (a NaN row of the embedding, say).
using EditTensor = std::function<void(const std::string& name, std::vector<float>& values)>;
inline constexpr const char* kEmbedding = "model.embed_tokens.weight";  // [V, M]

inline std::shared_ptr<const Model> make_tiny_model(const TinyShape& shape = {},
                                                    const EditTensor& edit = {}) {
  static int counter = 0;
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() /
      ("restkv_tiny." + std::to_string(getpid()) + "." + std::to_string(counter++));
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "config.json")
      << (shape.window > 0 ? R"({"architectures": ["MistralForCausalLM"], "model_type": "mistral", )"
                           : R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", )")
      << R"("hidden_act": "silu", "bos_token_id": 1,)"
      << R"("eos_token_id": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,)"
      << "\"num_hidden_layers\": " << shape.layers << ", \"hidden_size\": " << shape.hidden
      << ", \"num_attention_heads\": " << shape.heads << ", \"num_key_value_heads\": " << shape.kv_heads
      << ", \"head_dim\": " << shape.head_dim << ", \"intermediate_size\": " << shape.ffn
      << ", \"vocab_size\": " << shape.vocab << ", \"max_position_embeddings\": " << shape.context
      << windows_json(shape) << "}";

  std::mt19937 random(7);
  std::vector<std::vector<float>> storage;
  std::vector<OutputTensor> tensors;
  storage.reserve(256);
  const auto add = [&](const std::string& name, std::vector<int64_t> dims, float scale, float offset) {
    int64_t count = 1;
    for (const int64_t dim : dims) count *= dim;
    std::normal_distribution<float> normal(offset, scale);
    std::vector<float>& values = storage.emplace_back(static_cast<size_t>(count));
    for (float& value : values) value = normal(random);
    if (edit) edit(name, values);
    tensors.push_back({name, DType::kF32, std::move(dims), values.data()});
  };
  const float w = 1.5f / std::sqrt(static_cast<float>(shape.hidden));
  add(kEmbedding, {shape.vocab, shape.hidden}, 1.0f, 0.0f);
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    add(prefix + "input_layernorm.weight", {shape.hidden}, 0.1f, 1.0f);
    add(prefix + "self_attn.q_proj.weight", {shape.heads * shape.head_dim, shape.hidden}, w, 0);
    add(prefix + "self_attn.k_proj.weight", {shape.kv_heads * shape.head_dim, shape.hidden}, w, 0);
    add(prefix + "self_attn.v_proj.weight", {shape.kv_heads * shape.head_dim, shape.hidden},
        w * shape.value_scale, 0);
    add(prefix + "self_attn.o_proj.weight", {shape.hidden, shape.heads * shape.head_dim},
        w / shape.value_scale, 0);
    add(prefix + "post_attention_layernorm.weight", {shape.hidden}, 0.1f, 1.0f);
    add(prefix + "mlp.gate_proj.weight", {shape.ffn, shape.hidden}, w, 0);
    add(prefix + "mlp.up_proj.weight", {shape.ffn, shape.hidden}, w, 0);
    add(prefix + "mlp.down_proj.weight", {shape.hidden, shape.ffn}, w, 0);
  }
  add("model.norm.weight", {shape.hidden}, 0.1f, 1.0f);
  add("lm_head.weight", {shape.vocab, shape.hidden}, 4.0f / std::sqrt(static_cast<float>(shape.hidden)), 0);
  const Status written = write_safetensors((folder / "model.safetensors").string(), tensors);
  EXPECT_TRUE(written.ok()) << written.message();
  Result<std::shared_ptr<const Model>> model = load_model(folder.string());
  EXPECT_TRUE(model.ok()) << model.status().message();
  std::filesystem::remove_all(folder);  // the mapping keeps the weights
  return model.ok() ? *model : nullptr;
}

}  // namespace restkv::testing

// Loading whole models: every golden folder and GGUF twin binds, both styles of config agree, twins are the same model up
// to what GGUF cannot say; and the errors of weights that do not fit their config.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <sstream>

#include "engine/model/safetensors.h"
#include "engine/model/weights.h"
#include "tests/model/file_builders.h"

namespace restkv {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::TempFolder;

fs::path golden_folder() {
  const char* named = std::getenv("RESTKV_GOLDEN_MODELS_DIR");
  return named != nullptr && *named != '\0' ? named : RESTKV_SHARED_DIR "/golden/models";
}

std::vector<fs::path> golden_cases() {
  std::vector<fs::path> cases;
  for (const fs::directory_entry& entry : fs::directory_iterator(golden_folder())) {
    if (entry.is_directory()) cases.push_back(entry.path());
  }
  return cases;
}

class Golden : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!fs::is_directory(golden_folder())) GTEST_SKIP() << "no golden models at " << golden_folder();
  }
};

std::string text_of(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

std::shared_ptr<const Model> load(const fs::path& path) {
  const Result<std::shared_ptr<const Model>> model = load_model(path.string());
  EXPECT_TRUE(model.ok()) << model.status().message();
  return model.ok() ? *model : nullptr;
}

void expect_same_rope(const RopeConfig& a, const RopeConfig& b, int64_t head_dim) {
  const RopeFrequencies fa = rope_frequencies(a, head_dim), fb = rope_frequencies(b, head_dim);
  EXPECT_EQ(fa.attention_factor, fb.attention_factor);
  for (size_t i = 0; i < fa.inv_freq.size(); ++i) {
    EXPECT_NEAR(fa.inv_freq[i], fb.inv_freq[i], 2e-6 * static_cast<double>(fa.inv_freq[i])) << i;
  }
}

// Everything but names, layouts of a format and what is compared by itself.
void expect_same_shape(const ModelConfig& a, const ModelConfig& b) {
  EXPECT_EQ(a.num_layers, b.num_layers);
  EXPECT_EQ(a.hidden_size, b.hidden_size);
  EXPECT_EQ(a.num_heads, b.num_heads);
  EXPECT_EQ(a.num_kv_heads, b.num_kv_heads);
  EXPECT_EQ(a.head_dim, b.head_dim);
  EXPECT_EQ(a.ffn_size, b.ffn_size);
  EXPECT_EQ(a.vocab_size, b.vocab_size);
  EXPECT_EQ(a.context_len, b.context_len);
  EXPECT_NEAR(a.norm_eps, b.norm_eps, 1e-7 * a.norm_eps);
  EXPECT_EQ(a.activation, b.activation);
  EXPECT_EQ(a.norms, b.norms);
  EXPECT_EQ(a.tied_embeddings, b.tied_embeddings);
  EXPECT_EQ(a.qk_norm, b.qk_norm);
  EXPECT_EQ(a.embedding_scale, b.embedding_scale);
  EXPECT_EQ(a.attention_softcap, b.attention_softcap);
  EXPECT_EQ(a.final_softcap, b.final_softcap);
  EXPECT_EQ(a.bos_token_id, b.bos_token_id);
  expect_same_rope(a.rope, b.rope, a.head_dim);
  expect_same_rope(a.rope_local, b.rope_local, a.head_dim);
}

void expect_same_layers(const ModelConfig& a, const ModelConfig& b) {
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (size_t l = 0; l < a.layers.size(); ++l) {
    EXPECT_EQ(a.layers[l].window, b.layers[l].window) << l;
    EXPECT_EQ(a.layers[l].local_rope, b.layers[l].local_rope) << l;
  }
}

TEST_F(Golden, EveryGoldenFolderBinds) {
  ASSERT_FALSE(golden_cases().empty());
  for (const fs::path& folder : golden_cases()) {
    SCOPED_TRACE(folder.filename());
    const std::shared_ptr<const Model> model = load(folder);
    ASSERT_NE(model, nullptr);
    EXPECT_EQ(model->gguf, nullptr);
    EXPECT_EQ(model->config.name, folder.filename());
    const ModelConfig& config = model->config;
    EXPECT_EQ(config.layers.size(), static_cast<size_t>(config.num_layers));
    EXPECT_EQ(model->weights.head.data == model->weights.embedding.data, config.tied_embeddings);
    EXPECT_FALSE(config.eos_token_ids.empty());
    for (const LayerWeights& layer : model->weights.layers) {
      EXPECT_EQ(layer.q.rows, config.num_heads * config.head_dim);
      EXPECT_EQ(layer.v.rows, config.num_kv_heads * config.head_dim);
      EXPECT_EQ(layer.down.cols, config.ffn_size);
      EXPECT_EQ(static_cast<bool>(layer.q_norm), config.qk_norm);
      EXPECT_EQ(static_cast<bool>(layer.ffn_post_norm), config.norms == NormPlacement::kPreAndPost);
      EXPECT_EQ(static_cast<bool>(layer.q_bias), config.qkv_bias);
      EXPECT_EQ(static_cast<bool>(layer.o_bias), config.o_bias);
      EXPECT_EQ(static_cast<bool>(layer.down_bias), config.mlp_bias);
    }
  }
}

TEST_F(Golden, BothStylesOfConfigAgree) {
  int num_compared = 0;
  for (const fs::path& folder : golden_cases()) {
    if (!fs::exists(folder / "config.v5.json")) continue;
    SCOPED_TRACE(folder.filename());
    const std::string generation = text_of(folder / "generation_config.json");
    const Result<ModelConfig> released = parse_hf_config(text_of(folder / "config.json"), generation);
    const Result<ModelConfig> v5 = parse_hf_config(text_of(folder / "config.v5.json"), generation);
    ASSERT_TRUE(released.ok()) << released.status().message();
    ASSERT_TRUE(v5.ok()) << v5.status().message();
    expect_same_shape(*released, *v5);
    expect_same_layers(*released, *v5);
    EXPECT_EQ(released->attention_scale, v5->attention_scale);
    EXPECT_EQ(released->norm_offset, v5->norm_offset);
    EXPECT_EQ(released->eos_token_ids, v5->eos_token_ids);
    ++num_compared;
  }
  EXPECT_GE(num_compared, 2);
}

TEST_F(Golden, GgufTwinsAreTheSameModel) {
  int num_compared = 0;
  for (const fs::path& folder : golden_cases()) {
    for (const fs::directory_entry& file : fs::directory_iterator(folder)) {
      if (file.path().extension() != ".gguf") continue;
      SCOPED_TRACE(file.path());
      const std::shared_ptr<const Model> hf = load(folder), gguf = load(file.path());
      ASSERT_TRUE(hf != nullptr && gguf != nullptr);
      ASSERT_NE(gguf->gguf, nullptr);
      expect_same_shape(hf->config, gguf->config);
      // The llama architecture has no windows in GGUF, and rotates neighbours.
      const bool is_llama = gguf->config.family == "llama";
      if (is_llama) {
        for (const LayerConfig& layer : gguf->config.layers) EXPECT_EQ(layer.window, 0);
      } else {
        EXPECT_EQ(gguf->config.family, hf->config.family);
        expect_same_layers(hf->config, gguf->config);
      }
      EXPECT_EQ(gguf->config.rope_interleaved, is_llama);
      EXPECT_EQ(gguf->config.norm_offset, 0.0);
      EXPECT_DOUBLE_EQ(gguf->config.attention_scale,
                       1.0 / std::sqrt(static_cast<double>(hf->config.head_dim)));
      // Of a list of ends, a GGUF file's metadata name one or two.
      EXPECT_THAT(gguf->config.eos_token_ids, ::testing::Contains(hf->config.eos_token_ids.front()));
      if (file.path().filename() == "model.gguf") {
        EXPECT_EQ(gguf->weights.num_bytes, hf->weights.num_bytes);
      }
      ++num_compared;
    }
  }
  EXPECT_GE(num_compared, 7);
}

TEST_F(Golden, ProgressReachesTheTotal) {
  int64_t last = -1, total = 0;
  const Result<std::shared_ptr<const Model>> model =
      load_model((golden_folder() / "llama_sharded_bf16").string(), [&](int64_t done, int64_t all) {
        EXPECT_GT(done, last);
        last = done;
        total = all;
      });
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, (*model)->weights.num_bytes);
}

// A small Llama written by the test, to be broken in one place.
class TinyModel : public ::testing::Test {
 protected:
  void SetUp() override {
    config_ =
        R"({"architectures":["LlamaForCausalLM"],"hidden_size":4,"intermediate_size":6,"num_hidden_layers":1,
      "num_attention_heads":2,"vocab_size":5,"tie_word_embeddings":true,"rms_norm_eps":1e-5)";
    add("model.embed_tokens.weight", {5, 4});
    add("model.norm.weight", {4});
    const std::string layer = "model.layers.0.";
    add(layer + "input_layernorm.weight", {4});
    add(layer + "post_attention_layernorm.weight", {4});
    for (const char* name : {"q", "k", "v", "o"}) add(layer + "self_attn." + name + "_proj.weight", {4, 4});
    for (const char* name : {"gate", "up"}) add(layer + "mlp." + name + "_proj.weight", {6, 4});
    add(layer + "mlp.down_proj.weight", {4, 6});
  }
  void add(const std::string& name, const std::vector<int64_t>& shape, DType dtype = DType::kF32) {
    tensors_.push_back({name, dtype, shape, zeros_});
  }
  OutputTensor& find(const std::string& end) {
    for (OutputTensor& tensor : tensors_) {
      if (tensor.name.ends_with(end)) return tensor;
    }
    ADD_FAILURE() << end;
    return tensors_.front();
  }
  Result<std::shared_ptr<const Model>> load() {
    temp_.write("config.json", config_ + "}");
    EXPECT_TRUE(write_safetensors(temp_.path("model.safetensors"), tensors_).ok());
    return load_model(temp_.folder());
  }
  std::string problem() {
    const Result<std::shared_ptr<const Model>> model = load();
    return model.ok() ? "accepted" : model.status().message();
  }
  TempFolder temp_;
  std::string config_;
  std::vector<OutputTensor> tensors_;
  float zeros_[64] = {};
};

TEST_F(TinyModel, LoadsAndIgnoresMore) {
  add("model.layers.0.self_attn.rotary_emb.inv_freq", {2});
  add("model.extra", {3}, DType::kI32);
  const Result<std::shared_ptr<const Model>> model = load();
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_FALSE((*model)->weights.layers[0].q_bias);
  EXPECT_EQ((*model)->weights.num_bytes, 4 * (20 + 4 + 8 + 4 * 16 + 2 * 24 + 24));
}

TEST_F(TinyModel, BindsBiasesThatAreThere) {
  add("model.layers.0.self_attn.q_proj.bias", {4});
  const Result<std::shared_ptr<const Model>> model = load();
  ASSERT_TRUE(model.ok());
  EXPECT_TRUE((*model)->weights.layers[0].q_bias);
  EXPECT_FALSE((*model)->weights.layers[0].k_bias);
  config_ += R"(,"attention_bias":true)";
  EXPECT_THAT(problem(), HasSubstr("'model.layers.0.self_attn.k_proj.bias' is missing"));
}

TEST_F(TinyModel, WrongShapesAreNamed) {
  find("k_proj.weight").shape = {2, 4};
  EXPECT_THAT(
      problem(),
      HasSubstr("tensor 'model.layers.0.self_attn.k_proj.weight': expected shape [4, 4], found [2, 4]"));
  find("k_proj.weight").shape = {16};
  EXPECT_THAT(problem(), HasSubstr("expected shape [4, 4], found [16]"));
}

TEST_F(TinyModel, MissingTensorsAreNamed) {
  find("down_proj.weight").name = "elsewhere";
  EXPECT_THAT(problem(), HasSubstr("tensor 'model.layers.0.mlp.down_proj.weight' is missing"));
}

TEST_F(TinyModel, UntiedHeadIsNeeded) {
  config_.replace(config_.find("true"), 4, "false");
  EXPECT_THAT(problem(), HasSubstr("tensor 'lm_head.weight' is missing"));
  add("lm_head.weight", {5, 4});
  const Result<std::shared_ptr<const Model>> model = load();
  ASSERT_TRUE(model.ok());
  EXPECT_NE((*model)->weights.head.data, (*model)->weights.embedding.data);
}

TEST_F(TinyModel, ForeignTypesOfNeededTensorsAreNamed) {
  find("norm.weight").dtype = DType::kI32;
  EXPECT_THAT(problem(), AllOf(HasSubstr("'model.norm.weight' has type I32"), HasSubstr("F32, F16, BF16")));
}

TEST_F(TinyModel, OddlyPlacedTensorsAreCopied) {
  ASSERT_TRUE(load().ok());
  // One blank less or more in the header moves all data to odd addresses.
  std::string bytes = text_of(temp_.path("model.safetensors"));
  uint64_t header_len = 0;
  std::memcpy(&header_len, bytes.data(), 8);
  bytes.insert(8 + header_len, " ");
  bytes.replace(0, 8, testing::packed(header_len + 1));
  temp_.write("model.safetensors", bytes);
  const Result<std::shared_ptr<const Model>> model = load_model(temp_.folder());
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_EQ(reinterpret_cast<uintptr_t>((*model)->weights.embedding.data) % 4, 0u);
  EXPECT_FALSE((*model)->weights.aligned_copies.empty());
}

TEST_F(TinyModel, FoldersAndFilesThatAreNoModel) {
  EXPECT_THAT(load_model(temp_.folder()).status().message(), HasSubstr("has no config.json"));
  EXPECT_EQ(load_model(temp_.path("absent")).status().code(), StatusCode::kNotFound);
  EXPECT_THAT(load_model(temp_.write("x.gguf", "not a model")).status().message(), HasSubstr("'GGUF'"));
  temp_.write("config.json", config_ + "}");
  EXPECT_THAT(load_model(temp_.folder()).status().message(), HasSubstr("neither model.safetensors"));
}

}  // namespace
}  // namespace restkv

// config.json and GGUF metadata: what each field does, and that a hostile one gives an error naming key, value and what
// is allowed.
#include "engine/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/model/file_builders.h"

namespace restkv {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

json llama() {
  return json::parse(R"({"architectures":["LlamaForCausalLM"],"hidden_size":64,"intermediate_size":96,
    "num_hidden_layers":2,"num_attention_heads":8,"num_key_value_heads":2,"vocab_size":100,"hidden_act":"silu",
    "max_position_embeddings":2048,"rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":false})");
}

json with(json config, const char* key, json value) {
  config[key] = std::move(value);
  return config;
}

json without(json config, const char* key) {
  config.erase(key);
  return config;
}

json other(const char* architecture, json config = llama()) {
  return with(std::move(config), "architectures", json::array({architecture}));
}

ModelConfig parsed(const json& config, const std::string& generation = "") {
  const Result<ModelConfig> result = parse_hf_config(config.dump(), generation);
  EXPECT_TRUE(result.ok()) << result.status().message();
  return result.ok() ? *result : ModelConfig{};
}

std::string problem(const json& config, const std::string& generation = "") {
  const Result<ModelConfig> result = parse_hf_config(config.dump(), generation);
  return result.ok() ? "accepted" : result.status().message();
}

std::vector<int32_t> windows(const ModelConfig& config) {
  std::vector<int32_t> out;
  for (const LayerConfig& layer : config.layers) out.push_back(layer.window);
  return out;
}

TEST(HfConfig, ReadsSizes) {
  const ModelConfig config = parsed(llama());
  EXPECT_EQ(config.family, "llama");
  EXPECT_EQ(config.num_layers, 2);
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_EQ(config.group_size(), 4);
  EXPECT_DOUBLE_EQ(config.attention_scale, 1.0 / std::sqrt(8.0));
  EXPECT_FALSE(config.rope_interleaved);
  EXPECT_EQ(parsed(with(llama(), "head_dim", 20)).head_dim, 20);
  EXPECT_EQ(parsed(with(llama(), "num_key_value_heads", nullptr)).num_kv_heads, 8);
  EXPECT_EQ(parsed(without(llama(), "num_key_value_heads")).num_kv_heads, 8);
}

TEST(HfConfig, DefaultsOfFamilies) {
  EXPECT_EQ(parsed(without(other("MistralForCausalLM"), "num_key_value_heads")).num_kv_heads, 8);
  EXPECT_EQ(parsed(other("Qwen3ForCausalLM")).head_dim, 128);
  EXPECT_EQ(parsed(other("GemmaForCausalLM")).head_dim, 256);
  EXPECT_DOUBLE_EQ(parsed(without(llama(), "rms_norm_eps")).norm_eps, 1e-6);
  EXPECT_TRUE(parsed(without(other("GemmaForCausalLM"), "tie_word_embeddings")).tied_embeddings);
  EXPECT_FALSE(parsed(without(llama(), "tie_word_embeddings")).tied_embeddings);
  const ModelConfig gemma2 = parsed(other("Gemma2ForCausalLM"));
  EXPECT_EQ(gemma2.attention_softcap, 50.0);
  EXPECT_EQ(gemma2.final_softcap, 30.0);
  EXPECT_DOUBLE_EQ(gemma2.attention_scale, 1.0 / 16.0);
  EXPECT_DOUBLE_EQ(gemma2.embedding_scale, 8.0);
  EXPECT_EQ(gemma2.norm_offset, 1.0);
  EXPECT_EQ(gemma2.norms, NormPlacement::kPreAndPost);
  EXPECT_EQ(parsed(with(other("Gemma2ForCausalLM"), "attn_logit_softcapping", nullptr)).attention_softcap,
            0.0);
  EXPECT_TRUE(parsed(other("Qwen2ForCausalLM")).qkv_bias);
  EXPECT_FALSE(parsed(other("Qwen2ForCausalLM")).o_bias);
  EXPECT_TRUE(parsed(with(llama(), "attention_bias", true)).o_bias);
}

TEST(HfConfig, ModelTypeStandsInForArchitectures) {
  json config = with(without(llama(), "architectures"), "model_type", "qwen2");
  EXPECT_EQ(parsed(config).architecture, "Qwen2ForCausalLM");
  config["model_type"] = "mamba";
  EXPECT_THAT(problem(config), AllOf(HasSubstr("mamba"), HasSubstr("LlamaForCausalLM")));
}

TEST(HfConfig, Windows) {
  const json mistral = other("MistralForCausalLM");
  EXPECT_THAT(windows(parsed(mistral)), ElementsAre(4096, 4096));
  EXPECT_THAT(windows(parsed(with(mistral, "sliding_window", nullptr))), ElementsAre(0, 0));
  EXPECT_THAT(windows(parsed(with(mistral, "sliding_window", 16))), ElementsAre(16, 16));
  json qwen = with(with(other("Qwen2ForCausalLM"), "sliding_window", 32), "num_hidden_layers", 4);
  EXPECT_THAT(windows(parsed(qwen)), ElementsAre(0, 0, 0, 0));
  qwen["use_sliding_window"] = true;
  qwen["max_window_layers"] = 3;
  EXPECT_THAT(windows(parsed(qwen)), ElementsAre(0, 0, 0, 32));
  qwen["layer_types"] = {"full_attention", "sliding_attention", "full_attention", "full_attention"};
  EXPECT_THAT(windows(parsed(qwen)), ElementsAre(0, 32, 0, 0));
  EXPECT_THAT(windows(parsed(with(other("Gemma2ForCausalLM"), "num_hidden_layers", 3))),
              ElementsAre(4096, 0, 4096));
  json gemma3 = with(with(other("Gemma3ForCausalLM"), "num_hidden_layers", 7), "sliding_window", 8);
  EXPECT_THAT(windows(parsed(gemma3)), ElementsAre(8, 8, 8, 8, 8, 0, 8));
  gemma3["sliding_window_pattern"] = 3;
  EXPECT_THAT(windows(parsed(gemma3)), ElementsAre(8, 8, 0, 8, 8, 0, 8));
  EXPECT_TRUE(parsed(gemma3).layers[0].local_rope);
  EXPECT_FALSE(parsed(gemma3).layers[2].local_rope);
  EXPECT_THAT(problem(with(gemma3, "layer_types", json::array({"full_attention"}))),
              HasSubstr("layer_types"));
  EXPECT_THAT(
      problem(with(with(gemma3, "num_hidden_layers", 1), "layer_types", json::array({"chunked_attention"}))),
      AllOf(HasSubstr("layer_types[0] is chunked_attention"), HasSubstr("sliding_attention")));
}

TEST(HfConfig, RopeOfBothStyles) {
  const json llama3 =
      json::parse(R"({"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
    "original_max_position_embeddings":64})");
  const ModelConfig released = parsed(with(llama(), "rope_scaling", llama3));
  EXPECT_EQ(released.rope.scaling, RopeScaling::kLlama3);
  EXPECT_EQ(released.rope.original_context, 64);
  const ModelConfig v5 =
      parsed(with(without(llama(), "rope_theta"), "rope_parameters", with(llama3, "rope_theta", 7e4)));
  EXPECT_EQ(v5.rope.scaling, RopeScaling::kLlama3);
  EXPECT_EQ(v5.rope.theta, 7e4);
  EXPECT_EQ(parsed(with(llama(), "rope_scaling", {{"type", "linear"}, {"factor", 2}})).rope.scaling,
            RopeScaling::kLinear);
  const ModelConfig yarn = parsed(with(llama(), "rope_scaling", {{"type", "yarn"}, {"factor", 4.0}}));
  EXPECT_EQ(yarn.rope.original_context, 2048);
  EXPECT_EQ(yarn.context_len, 8192);
  // The original context: beside the sizes before all, else in the object, else the whole context.
  json short_llama3 = llama3;
  short_llama3.erase("original_max_position_embeddings");
  EXPECT_EQ(parsed(with(llama(), "rope_scaling", short_llama3)).rope.original_context, 2048);
  EXPECT_EQ(parsed(with(with(llama(), "rope_scaling", llama3), "original_max_position_embeddings", 32))
                .rope.original_context,
            32);
  const ModelConfig gemma3 = parsed(with(other("Gemma3ForCausalLM"), "rope_parameters", json::parse(R"({
    "full_attention":{"rope_type":"linear","factor":8,"rope_theta":200000},
    "sliding_attention":{"rope_type":"default","rope_theta":5000}})")));
  EXPECT_EQ(gemma3.rope.theta, 200000.0);
  EXPECT_EQ(gemma3.rope.factor, 8.0);
  EXPECT_EQ(gemma3.rope_local.theta, 5000.0);
  EXPECT_EQ(gemma3.rope_local.scaling, RopeScaling::kNone);
}

TEST(HfConfig, RopeThatIsNotSupported) {
  for (const char* type : {"dynamic", "longrope", "su", "mrope"}) {
    EXPECT_THAT(
        problem(with(llama(), "rope_scaling", {{"rope_type", type}, {"factor", 2.0}})),
        AllOf(HasSubstr(std::string("rope_scaling.rope_type '") + type + "'"), HasSubstr("llama3 and yarn")));
  }
  const auto scaling = [](const char* text) {
    return problem(with(llama(), "rope_scaling", json::parse(text)));
  };
  EXPECT_THAT(scaling(R"({"type":"linear"})"), HasSubstr("rope_scaling.factor is missing"));
  EXPECT_THAT(scaling(R"({"type":"linear","factor":0.5})"),
              AllOf(HasSubstr("factor is 0.5"), HasSubstr("1 to")));
  EXPECT_THAT(scaling(R"({"type":"linear","factor":"2"})"), HasSubstr("factor is \"2\""));
  EXPECT_THAT(scaling(R"({"type":7})"), HasSubstr("rope_scaling.type is 7"));
  EXPECT_THAT(scaling(R"({"type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":4,
    "original_max_position_embeddings":64})"),
              HasSubstr("high_freq_factor is 4"));
  EXPECT_THAT(scaling(R"({"type":"yarn","factor":2,"beta_fast":1,"beta_slow":2})"),
              HasSubstr("beta_fast is 1"));
  EXPECT_THAT(scaling(R"({"type":"default","partial_rotary_factor":0.5})"),
              HasSubstr("rope_scaling.partial_rotary_factor: rotating a part of a head is not supported"));
  EXPECT_THAT(scaling("[]"), HasSubstr("rope_scaling is a list of 0; an object is expected"));
  EXPECT_THAT(problem(with(llama(), "rope_theta", 0)), HasSubstr("rope_theta is 0"));
}

TEST(HfConfig, UnsupportedFeaturesAreNamed) {
  EXPECT_THAT(problem(other("MixtralForCausalLM")),
              AllOf(HasSubstr("MixtralForCausalLM is not supported"), HasSubstr("Qwen3ForCausalLM")));
  for (const char* vision : {"Qwen2VLForConditionalGeneration", "LlavaForConditionalGeneration"}) {
    EXPECT_THAT(problem(other(vision)), AllOf(HasSubstr(std::string(vision) + " is not supported"),
                                              HasSubstr("Gemma3ForConditionalGeneration")));
  }
  EXPECT_THAT(problem(with(llama(), "architectures", json::array())), HasSubstr("architectures"));
  EXPECT_THAT(problem(with(llama(), "architectures", "LlamaForCausalLM")), HasSubstr("architectures"));
  for (const char* method : {"fp8", "awq", "gptq"}) {
    EXPECT_THAT(problem(with(llama(), "quantization_config", {{"quant_method", method}})), HasSubstr(method));
  }
  EXPECT_THAT(problem(with(llama(), "quantization_config", 7)), HasSubstr("quantization_config"));
  EXPECT_THAT(problem(with(llama(), "num_experts", 8)),
              AllOf(HasSubstr("mixture of experts (num_experts)"), HasSubstr("LlamaForCausalLM")));
  EXPECT_THAT(problem(with(llama(), "partial_rotary_factor", 0.5)), HasSubstr("partial_rotary_factor"));
  EXPECT_THAT(problem(with(llama(), "hidden_act", "gelu")),
              AllOf(HasSubstr("hidden_act 'gelu'"), HasSubstr("silu")));
  EXPECT_THAT(problem(with(other("Gemma2ForCausalLM"), "hidden_activation", "relu")),
              HasSubstr("gelu_pytorch_tanh"));
  EXPECT_THAT(problem(with(llama(), "use_bidirectional_attention", true)), HasSubstr("causal"));
}

TEST(HfConfig, HostileFieldsAreNamed) {
  struct Case {
    const char* key;
    json value;
    const char* message;
  };
  const Case cases[] = {
      {"num_hidden_layers", 0, "num_hidden_layers is 0; an integer from 1 to 1024"},
      {"num_hidden_layers", -1, "num_hidden_layers is -1"},
      {"num_hidden_layers", 1'000'000'000, "num_hidden_layers is 1000000000"},
      {"num_hidden_layers", 2.5, "num_hidden_layers is 2.5"},
      {"num_hidden_layers", "2", "num_hidden_layers is \"2\""},
      {"num_hidden_layers", true, "num_hidden_layers is true"},
      {"num_hidden_layers", json::array({1, 2}), "num_hidden_layers is a list of 2"},
      {"num_hidden_layers", json::object(), "num_hidden_layers is an object"},
      {"num_hidden_layers", nullptr, "num_hidden_layers is missing"},
      {"hidden_size", 18446744073709551615u, "hidden_size is 18446744073709551615"},
      {"hidden_size", -64, "hidden_size is -64"},
      {"hidden_size", 65, "hidden_size is 65; without head_dim a multiple of num_attention_heads (8)"},
      {"num_attention_heads", 0, "num_attention_heads is 0"},
      {"num_key_value_heads", 3, "num_attention_heads is 8; a multiple of num_key_value_heads (3)"},
      {"num_key_value_heads", 0, "num_key_value_heads is 0"},
      {"head_dim", 257, "head_dim is 257"},
      {"head_dim", 7, "head_dim is 7; an even number"},
      {"head_dim", 0, "head_dim is 0"},
      {"intermediate_size", int64_t{1} << 40, "intermediate_size is 1099511627776"},
      {"vocab_size", 0, "vocab_size is 0"},
      {"vocab_size", int64_t{1} << 32, "vocab_size is 4294967296"},
      {"vocab_size", (int64_t{1} << 23) + 1, "1 to 8388608 is allowed"},
      {"max_position_embeddings", -5, "max_position_embeddings is -5"},
      {"rms_norm_eps", -1, "rms_norm_eps is -1"},
      {"rms_norm_eps", "tiny", "rms_norm_eps is \"tiny\""},
      {"tie_word_embeddings", 1, "tie_word_embeddings is 1; true or false"},
      {"eos_token_id", -1, "eos_token_id is -1"},
      {"eos_token_id", json::array({1, "x"}), "eos_token_id[1] is \"x\""},
      {"text_config", 5, "text_config is 5; an object"},
  };
  for (const Case& c : cases)
    EXPECT_THAT(problem(with(llama(), c.key, c.value)), HasSubstr(c.message)) << c.key;
  EXPECT_THAT(problem(with(other("MistralForCausalLM"), "sliding_window", 0)),
              HasSubstr("sliding_window is 0"));
  EXPECT_THAT(problem(with(other("Gemma3ForCausalLM"), "sliding_window_pattern", 0)),
              HasSubstr("sliding_window_pattern is 0"));
  EXPECT_THAT(problem(with(other("Gemma2ForCausalLM"), "query_pre_attn_scalar", 0)),
              HasSubstr("query_pre_attn_scalar is 0"));
  for (const char* key :
       {"hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size"}) {
    EXPECT_THAT(problem(without(llama(), key)), HasSubstr(std::string(key) + " is missing"));
  }
  const std::string long_text(1000, 'x');
  EXPECT_LT(problem(with(llama(), "hidden_size", long_text)).size(), 200u);
  for (const char* text : {"", "{", "[]", "7", "null"}) {
    EXPECT_THAT(parse_hf_config(text, "").status().message(), HasSubstr("config.json: ")) << text;
  }
}

TEST(HfConfig, WrappedTextModel) {
  json text = without(llama(), "architectures");
  text["head_dim"] = 16;
  const json wrapped = {{"architectures", {"Gemma3ForConditionalGeneration"}},
                        {"text_config", text},
                        {"eos_token_id", {1, 60}},
                        {"vision_config", {{"num_hidden_layers", -1}}}};
  const ModelConfig config = parsed(wrapped);
  EXPECT_EQ(config.architecture, "Gemma3ForConditionalGeneration");
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(1, 60));
  json bad = wrapped;
  bad["text_config"]["hidden_size"] = 0;
  EXPECT_THAT(problem(bad), HasSubstr("text_config.hidden_size is 0"));
}

TEST(HfConfig, GenerationConfigWidens) {
  const json config = with(llama(), "eos_token_id", 2);
  const ModelConfig widened =
      parsed(config, R"({"eos_token_id":[2,7],"temperature":0.6,"top_p":0.9,"top_k":50,"do_sample":true})");
  EXPECT_THAT(widened.eos_token_ids, ElementsAre(2, 7));
  const int64_t vocab = widened.vocab_size;
  const std::string ends = "[2," + std::to_string(vocab - 1) + "," + std::to_string(vocab) + "]";
  EXPECT_THAT(
      parsed(with(llama(), "eos_token_id", vocab + 5), R"({"eos_token_id":)" + ends + "}").eos_token_ids,
      ElementsAre(2, vocab - 1));  // nothing ever draws the others
  EXPECT_EQ(widened.sampling.temperature, 0.6);
  EXPECT_EQ(widened.sampling.top_k, 50);
  EXPECT_FALSE(widened.sampling.min_p.has_value());
  EXPECT_THAT(problem(config, R"({"temperature":-1})"),
              HasSubstr("generation_config.json: temperature is -1"));
  EXPECT_THAT(problem(config, "["), HasSubstr("generation_config.json"));
}

using testing::bytes_of_text;
using testing::GgufBuilder;

// A GGUF of one made-up embedding; `change` adds or replaces keys.
TEST(RopeOverride, ByName) {
  const auto overridden = [](const json& model, RopeOverride wanted) {
    Result<ModelConfig> config = parse_hf_config(model.dump(), "");
    EXPECT_TRUE(config.ok()) << config.status().message();
    EXPECT_TRUE(override_rope(wanted, *config).ok()) << override_rope(wanted, *config).message();
    return *config;
  };
  const ModelConfig plain = *parse_hf_config(llama().dump(), "");
  const int64_t context = plain.context_len;
  const ModelConfig yarn = overridden(llama(), {.scaling = "yarn", .factor = 4});
  EXPECT_EQ(yarn.rope.scaling, RopeScaling::kYarn);
  EXPECT_EQ(yarn.rope.original_context, context);
  EXPECT_EQ(yarn.context_len, 4 * context);
  EXPECT_EQ(yarn.rope.theta, plain.rope.theta);
  // The same as a file that says so, whatever scaling the file had before.
  const json with_yarn = with(llama(), "rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}});
  EXPECT_EQ(rope_frequencies(yarn.rope, 64).inv_freq,
            rope_frequencies(parse_hf_config(with_yarn.dump(), "")->rope, 64).inv_freq);
  const ModelConfig wider = overridden(with_yarn, {.scaling = "yarn", .factor = 8});
  EXPECT_EQ(wider.context_len, 8 * context);
  EXPECT_EQ(overridden(with_yarn, {.scaling = "yarn", .factor = {}}).context_len, 4 * context);
  // Without a factor the file's scaling is left as it is, with all that it says.
  const json exact =
      with(llama(), "rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}, {"attention_factor", 0.75}});
  EXPECT_EQ(overridden(exact, {.scaling = "yarn", .factor = {}}).rope.attention_factor, 0.75);
  EXPECT_EQ(overridden(exact, {.scaling = "yarn", .factor = 8}).rope.attention_factor, std::nullopt);
  const ModelConfig none = overridden(with_yarn, {.scaling = "none", .factor = {}});
  EXPECT_EQ(none.context_len, context);
  EXPECT_EQ(rope_frequencies(none.rope, 64).inv_freq, rope_frequencies(plain.rope, 64).inv_freq);
  EXPECT_EQ(overridden(with_yarn, {.scaling = "linear", .factor = 2}).context_len, 2 * context);
  EXPECT_EQ(overridden(llama(), {}).context_len, context);

  ModelConfig config = plain;
  EXPECT_THAT(override_rope({.scaling = "yarn", .factor = {}}, config).message(),
              HasSubstr("needs rope_scale"));
  EXPECT_THAT(override_rope({.scaling = {}, .factor = 2}, config).message(),
              HasSubstr("rope_scaling is not given"));
  EXPECT_THAT(override_rope({.scaling = "dynamic", .factor = 2}, config).message(),
              AllOf(HasSubstr("dynamic"), HasSubstr("llama3 and yarn")));
  EXPECT_EQ(config.context_len, context);
}

class GgufConfig : public ::testing::Test {
 protected:
  GgufBuilder base(const std::string& arch = "llama", const std::string& omit = "") {
    GgufBuilder builder;
    builder.string("general.architecture", arch);
    const std::pair<const char*, uint32_t> keys[] = {
        {"block_count", 2},       {"embedding_length", 64},    {"feed_forward_length", 96},
        {"context_length", 2048}, {"attention.head_count", 8}, {"attention.head_count_kv", 2}};
    for (const auto& [key, value] : keys) {
      if (key != omit) builder.u32(arch + "." + key, value);
    }
    if (omit != "attention.layer_norm_rms_epsilon")
      builder.f32(arch + ".attention.layer_norm_rms_epsilon", 1e-5f);
    builder.tensor("token_embd.weight", {64, 4}, 0, 0).data(std::string(1024, '\0'));
    return builder;
  }
  Result<ModelConfig> parse(const GgufBuilder& builder) {
    bytes_ = builder.build();
    const Result<GgufFile> file = GgufFile::parse(bytes_of_text(bytes_), "f.gguf");
    EXPECT_TRUE(file.ok()) << file.status().message();
    return parse_gguf_config(*file);
  }
  std::string problem(const GgufBuilder& builder) {
    const Result<ModelConfig> config = parse(builder);
    return config.ok() ? "accepted" : config.status().message();
  }
  std::string bytes_;
};

TEST_F(GgufConfig, ReadsSizes) {
  const Result<ModelConfig> config = parse(base());
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->architecture, "LlamaForCausalLM");
  EXPECT_EQ(config->vocab_size, 4);
  EXPECT_EQ(config->head_dim, 8);
  EXPECT_TRUE(config->rope_interleaved);
  EXPECT_TRUE(config->tied_embeddings);
  const Result<ModelConfig> gemma = parse(base("gemma2"));
  ASSERT_TRUE(gemma.ok());
  EXPECT_EQ(gemma->norm_offset, 0.0);
  EXPECT_FALSE(gemma->rope_interleaved);
  EXPECT_THAT(windows(*gemma), ElementsAre(4096, 0));
}

TEST_F(GgufConfig, Gemma27BScalesByHiddenOverHeads) {
  GgufBuilder builder = base("gemma2", "block_count");
  builder.u32("gemma2.block_count", 46).u32("gemma2.attention.key_length", 16);
  EXPECT_DOUBLE_EQ(parse(builder)->attention_scale, 1.0 / std::sqrt(8.0));
  GgufBuilder small = base("gemma2");
  small.u32("gemma2.attention.key_length", 16);
  EXPECT_DOUBLE_EQ(parse(small)->attention_scale, 0.25);
}

TEST_F(GgufConfig, WindowPattern) {
  GgufBuilder number = base("gemma3", "block_count");
  number.u32("gemma3.block_count", 4).u32("gemma3.attention.sliding_window", 9);
  GgufBuilder list = number;
  number.u32("gemma3.attention.sliding_window_pattern", 2);
  EXPECT_THAT(windows(*parse(number)), ElementsAre(9, 0, 9, 0));
  const auto flags = [](std::string_view bits) {
    return testing::packed<uint32_t>(7) + testing::packed<uint64_t>(bits.size()) + std::string(bits);
  };
  GgufBuilder wrong = list;
  list.raw_key("gemma3.attention.sliding_window_pattern", 9, flags(std::string_view("\1\1\0\1", 4)));
  EXPECT_THAT(windows(*parse(list)), ElementsAre(9, 9, 0, 9));
  wrong.raw_key("gemma3.attention.sliding_window_pattern", 9, flags("\1"));
  EXPECT_THAT(problem(wrong), HasSubstr("sliding_window_pattern is a list of 1"));
}

TEST_F(GgufConfig, Rope) {
  GgufBuilder yarn = base();
  yarn.string("llama.rope.scaling.type", "yarn").f32("llama.rope.scaling.factor", 4.0f);
  yarn.u32("llama.rope.scaling.original_context_length", 1024);
  const Result<ModelConfig> config = parse(yarn);
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->rope.scaling, RopeScaling::kYarn);
  EXPECT_EQ(config->rope.original_context, 1024);
  EXPECT_EQ(config->context_len, 4096);
  // Without a type a factor is linear scaling, as in llama.cpp; older files name it otherwise, and 0 is none.
  for (const char* key : {"llama.rope.scaling.factor", "llama.rope.scale_linear"}) {
    const Result<ModelConfig> linear = parse(base().f32(key, 2.0f));
    ASSERT_TRUE(linear.ok()) << linear.status().message();
    EXPECT_EQ(linear->rope.scaling, RopeScaling::kLinear) << key;
    EXPECT_EQ(linear->rope.factor, 2.0);
    EXPECT_EQ(parse(base().f32(key, 0.0f))->rope.scaling, RopeScaling::kNone);
  }
  EXPECT_THAT(
      problem(base().string("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 0.5f)),
      HasSubstr("llama.rope.scaling.factor is 0.5"));
  EXPECT_THAT(problem(base().string("llama.rope.scaling.type", "longrope")),
              HasSubstr("'longrope' is not supported"));
  EXPECT_THAT(problem(base().u32("llama.rope.dimension_count", 4)), HasSubstr("rope.dimension_count is 4"));
}

TEST_F(GgufConfig, EndTokens) {
  GgufBuilder builder = base();
  const auto text = [](std::string_view value) { return GgufBuilder::text(value); };
  builder.raw_key("tokenizer.ggml.tokens", 9,
                  testing::packed<uint32_t>(8) + testing::packed<uint64_t>(4) + text("a") +
                      text("<|eot_id|>") + text("<|im_end|>") + text("b"));
  const int32_t types[] = {1, 3, 1, 1};
  std::string packed_types = testing::packed<uint32_t>(5) + testing::packed<uint64_t>(4);
  for (const int32_t type : types) packed_types += testing::packed(type);
  builder.raw_key("tokenizer.ggml.token_type", 9, packed_types);
  builder.u32("tokenizer.ggml.eos_token_id", 3).u32("tokenizer.ggml.bos_token_id", 0);
  const Result<ModelConfig> config = parse(builder);
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_THAT(config->eos_token_ids, ElementsAre(3, 1));  // not 2: an ordinary token of that text
  EXPECT_EQ(config->bos_token_id, 0);
  EXPECT_THAT(problem(base().u32("tokenizer.ggml.eos_token_id", 4)), HasSubstr("eos_token_id is 4"));
}

TEST_F(GgufConfig, HostileKeysAreNamed) {
  for (const char* key : {"block_count", "embedding_length", "feed_forward_length", "context_length",
                          "attention.head_count", "attention.layer_norm_rms_epsilon"}) {
    EXPECT_THAT(problem(base("llama", key)), HasSubstr("'llama." + std::string(key) + "' is missing"));
  }
  EXPECT_THAT(problem(base("llama", "block_count").u32("llama.block_count", 0)),
              HasSubstr("llama.block_count is 0"));
  EXPECT_THAT(problem(base("llama", "block_count").u32("llama.block_count", 4'000'000'000u)),
              HasSubstr("1 to 1024"));
  EXPECT_THAT(problem(base("llama", "block_count").string("llama.block_count", "2")),
              HasSubstr("expected an integer"));
  EXPECT_THAT(problem(base("llama", "attention.head_count_kv").u32("llama.attention.head_count_kv", 3)),
              HasSubstr("a multiple of llama.attention.head_count_kv (3)"));
  EXPECT_THAT(problem(base("llama", "embedding_length").u32("llama.embedding_length", 65)),
              HasSubstr("is 65"));
  EXPECT_THAT(problem(base().u32("llama.attention.key_length", 300)), HasSubstr("key_length is 300"));
  EXPECT_THAT(problem(base().u32("llama.attention.value_length", 4)), HasSubstr("value_length is 4"));
  EXPECT_THAT(problem(base().u32("llama.expert_count", 8)), HasSubstr("mixture of experts"));
  EXPECT_THAT(problem(base("mamba")), AllOf(HasSubstr("mamba is not supported"), HasSubstr("qwen3")));
  EXPECT_THAT(problem(GgufBuilder().u32("general.architecture", 1)), HasSubstr("expected a string"));
  EXPECT_THAT(problem(GgufBuilder()), HasSubstr("'general.architecture' is missing"));
}

}  // namespace
}  // namespace restkv

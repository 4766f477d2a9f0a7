// tokenizer.json, tokenizer.model, tiktoken and tekken files: small ones written here, right and hostile, and how a
// loader is picked in a folder. Ids of the real formats are compared in compare_pypi.py and golden_tokenizers.
#include "engine/text/vocabulary_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace restkv {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr EncodeOptions kPlain{.add_special = false, .special_tokens = SpecialTokens::kAsText};
constexpr EncodeOptions kParsed{.add_special = false, .special_tokens = SpecialTokens::kParse};

// Tokens a b c ab abc, "Ġ", "Ġa"; <s> 7 (special), "word" 8 (single word), "[x]" 9 (strips both sides).
json small_json() {
  json vocab = {{"a", 0}, {"b", 1}, {"c", 2}, {"ab", 3}, {"abc", 4}, {"\u0120", 5}, {"\u0120a", 6}};
  const auto added = [](int id, const char* content) {
    return json{{"id", id},        {"content", content},  {"special", false},    {"lstrip", false},
                {"rstrip", false}, {"normalized", false}, {"single_word", false}};
  };
  json start = added(7, "<s>"), word = added(8, "word"), strips = added(9, "[x]");
  start["special"] = true;
  word["single_word"] = true;
  strips["lstrip"] = strips["rstrip"] = true;
  return {{"added_tokens", {start, word, strips}},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"post_processor", nullptr},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"a b", "ab c", "\u0120 a"}}}}};
}

Result<std::shared_ptr<const Tokenizer>> load(const json& root, const TokenizerSettings& settings = {}) {
  return load_json_tokenizer(root.dump(), settings);
}

std::shared_ptr<const Tokenizer> must_load(const json& root, const TokenizerSettings& settings = {}) {
  auto loaded = load(root, settings);
  EXPECT_TRUE(loaded.ok()) << loaded.status().message();
  return loaded.value();
}

TEST(TokenizerJson, ByteLevelBpe) {
  const auto tokenizer = must_load(small_json());
  EXPECT_THAT(tokenizer->encode("abc ab", kPlain), ElementsAre(4, 5, 3));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("abc ab", kPlain)), "abc ab");
  EXPECT_EQ(tokenizer->token_text(6), "\u0120a");
  EXPECT_EQ(tokenizer->vocab_size(), 10);
}

TEST(TokenizerJson, MergesAsPairs) {
  json root = small_json();
  root["model"]["merges"] = json::parse(R"([["a","b"],["ab","c"]])");
  EXPECT_THAT(must_load(root)->encode("abc", kPlain), ElementsAre(4));
}

TEST(TokenizerJson, AddedTokens) {
  const auto tokenizer = must_load(small_json());
  EXPECT_THAT(tokenizer->encode("a<s>b", kParsed), ElementsAre(0, 7, 1));
  EXPECT_THAT(tokenizer->encode("a [x]  b", kParsed), ElementsAre(0, 9, 1));
  EXPECT_THAT(tokenizer->encode("a word a", kParsed), ElementsAre(0, 5, 8, 6));
  EXPECT_THAT(tokenizer->encode("awordb", kParsed),
              ElementsAre(3));  // letters that are no tokens are dropped
  EXPECT_TRUE(tokenizer->is_special(7));
  EXPECT_FALSE(tokenizer->is_special(8));
}

// Found in the normalised text, where bytes have no origin any more.
TEST(TokenizerJson, NormalizedSpecialTokensThatAUserTypedStayText) {
  json root = small_json();
  root["added_tokens"][0]["normalized"] = true;
  const auto tokenizer = must_load(root);
  const auto encode = [&](std::vector<ByteSpan> plain) {
    return tokenizer->encode("<s>a<s>", {.add_special = false, .plain = plain});
  };
  EXPECT_THAT(encode({}), ElementsAre(7, 0, 7));
  EXPECT_THAT(encode({{3, 4}}), ElementsAre(7, 0, 7));
  EXPECT_THAT(encode({{3, 7}}), ElementsAre(7, 0));  // the other characters are no tokens
  EXPECT_THAT(encode({{0, 3}}), ElementsAre(0, 7));
  EXPECT_THAT(encode({{6, 7}}), ElementsAre(7, 0));
}

TEST(TokenizerJson, PostProcessorAndSettings) {
  json root = small_json();
  root["post_processor"] = json::parse(R"({"type":"TemplateProcessing",
    "single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],
    "special_tokens":{"<s>":{"id":"<s>","ids":[7],"tokens":["<s>"]}}})");
  const auto tokenizer = must_load(root);
  EXPECT_THAT(tokenizer->encode("a", {}), ElementsAre(7, 0));
  EXPECT_TRUE(tokenizer->adds_bos());
  TokenizerSettings settings;
  settings.tokenizer_config =
      R"({"add_bos_token": false, "bos_token": "<s>", "eos_token": {"content": "word"}})";
  settings.generation_config = R"({"eos_token_id": [2, 8]})";
  const auto without = must_load(root, settings);
  EXPECT_THAT(without->encode("a", {}), ElementsAre(0));
  EXPECT_EQ(without->bos_id(), 7);
  EXPECT_THAT(without->eos_ids(), ElementsAre(2, 8));
  settings.generation_config = R"({"eos_token_id": [8, 99]})";  // of a vocabulary that was cut
  EXPECT_THAT(must_load(root, settings)->eos_ids(), ElementsAre(8));
  for (const char* bad :
       {R"({"eos_token_id": -1})", R"({"eos_token_id": ["</s>"]})", R"({"eos_token_id": 2147483648})"}) {
    settings.generation_config = bad;
    EXPECT_THAT(load(root, settings).status().message(), HasSubstr("generation_config.json: eos_token_id"))
        << bad;
  }
  settings.generation_config = "{";
  EXPECT_THAT(load(root, settings).status().message(), HasSubstr("generation_config.json"));
}

TEST(TokenizerJson, LlamaStyleFallsBackToBytes) {
  json vocab = {{"<unk>", 0}, {"\u2581", 1}, {"a", 2}, {"\u2581a", 3}};
  for (int byte = 0; byte < 256; ++byte) {
    constexpr const char* kDigits = "0123456789ABCDEF";
    vocab[std::string("<0x") + kDigits[byte / 16] + kDigits[byte % 16] + ">"] = 4 + byte;
  }
  const json root = {
      {"model",
       {{"type", "BPE"},
        {"vocab", vocab},
        {"merges", {"\u2581 a"}},
        {"byte_fallback", true},
        {"unk_token", "<unk>"}}},
      {"normalizer", json::parse(R"({"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},
        {"type":"Replace","pattern":{"String":" "},"content":"▁"}]})")},
      {"decoder",
       json::parse(
           R"({"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},
        {"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]})")}};
  const auto tokenizer = must_load(root);
  EXPECT_THAT(tokenizer->encode("a a\n", kPlain), ElementsAre(3, 3, 4 + 10));
  for (const std::string text : {"a a\n", " a", "\xC3\xA9 \xFF"}) {
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, kPlain)), text);
  }
}

// What `tokenizers` gives: an unknown character waits for the next token, and bytes go before it.
// `tokenizers` drops every mark of the first token, also one inside it; those of later tokens stay.
TEST(TokenizerJson, TheMetaspaceDecoderDropsAllSpacesOfTheFirstToken) {
  json root = {
      {"model",
       {{"type", "BPE"},
        {"vocab",
         {{"<unk>", 0}, {"\u2581", 1}, {"a", 2}, {"\u2581\u2581", 3}, {"\u2581a\u2581a", 4}, {"x y", 5}}},
        {"merges", json::array()},
        {"unk_token", "<unk>"}}},
      {"decoder",
       {{"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", "always"}, {"split", false}}}};
  const auto decode = [&](std::vector<int32_t> ids) { return must_load(root)->decode(ids); };
  EXPECT_EQ(decode({3, 2}), "a");
  EXPECT_EQ(decode({4, 4}), "aa a a");
  EXPECT_EQ(decode({1, 3, 2}), "  a");
  EXPECT_EQ(decode({5, 5}), "x yx y") << "a space of its own is no mark";
  root["decoder"]["prepend_scheme"] = "never";
  EXPECT_EQ(decode({4, 4}), " a a a a");
}

TEST(TokenizerJson, BytesThatAreMissingMakeTheCharacterUnknown) {
  json root = small_json();
  root["pre_tokenizer"] = root["decoder"] = nullptr;
  root["added_tokens"] = json::array();
  root["model"] = json::parse(R"({"type":"BPE","byte_fallback":true,"unk_token":"<unk>","merges":[],
    "vocab":{"<unk>":0,"a":1,"<0xC3>":2,"<0xA9>":3}})");
  EXPECT_THAT(must_load(root)->encode("\u00fc\u00e9\u00fca", kPlain), ElementsAre(2, 3, 0, 0, 1));
  root["model"]["fuse_unk"] = true;
  EXPECT_THAT(must_load(root)->encode("\u00fc\u00e9\u00fca", kPlain), ElementsAre(2, 3, 0, 1));
}

// Two marks merge over a character that no token stands for.
TEST(TokenizerJson, DroppedCharactersDoNotCutWords) {
  json root = small_json();
  root["pre_tokenizer"] = root["decoder"] = nullptr;
  root["added_tokens"] = json::array();
  root["model"] = json::parse(R"({"type":"BPE","merges":["▁ ▁"],"vocab":{"▁":0,"▁▁":1,"a":2}})");
  EXPECT_THAT(must_load(root)->encode("▁x▁a", kPlain), ElementsAre(1, 2));
}

TEST(TokenizerJson, WithoutADecoderTokensAreWords) {
  json root = small_json();
  root["decoder"] = nullptr;
  EXPECT_EQ(must_load(root)->decode(std::vector<int32_t>{3, 2, 9}), "ab c [x]");
}

TEST(TokenizerJson, Unigram) {
  const json root = {
      {"model",
       {{"type", "Unigram"},
        {"unk_id", 0},
        {"vocab", json::parse(R"([["<unk>",0],["▁",-2],["a",-3],["b",-3],["ab",-4],["▁ab",-20]])")}}},
      {"pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", "always"}}},
      {"decoder", {{"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", "always"}}}};
  const auto tokenizer = must_load(root);
  EXPECT_THAT(tokenizer->encode("ab ba", kPlain), ElementsAre(1, 4, 1, 3, 2));
  EXPECT_THAT(tokenizer->encode("axyb", kPlain), ElementsAre(1, 2, 0, 3));
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{1, 4, 1, 3}), "ab b");
}

TEST(TokenizerJson, HostileOnesAreRefused) {
  const auto refused = [](const char* name, const char* message, auto change) {
    json root = small_json();
    change(&root);
    const auto loaded = load(root);
    ASSERT_FALSE(loaded.ok()) << name;
    EXPECT_THAT(loaded.status().message(), HasSubstr(message)) << name;
    EXPECT_LT(loaded.status().message().size(), 500u) << name;
  };
  const auto merge = [](const char* text) {
    return [text](json* r) { (*r)["model"]["merges"].push_back(text); };
  };
  refused("longer than any piece", "not in the vocabulary",
          [](json* r) { (*r)["model"]["merges"].push_back("a " + std::string(1 << 16, 'b')); });
  refused("absent", "not in the vocabulary", merge("z y"));
  refused("absent result", "not in the vocabulary", merge("c c"));
  refused("cyclic", "not in the vocabulary", merge("abc abc"));
  refused("no space", "not two tokens", merge("ab"));
  refused("two spaces", "not two tokens", merge("a b c"));
  refused("number as merge", "not two tokens", [](json* r) { (*r)["model"]["merges"].push_back(5); });
  refused("id 2^31-1", "is not a number below", [](json* r) { (*r)["model"]["vocab"]["z"] = 2147483647; });
  refused("negative id", "is not a number below", [](json* r) { (*r)["model"]["vocab"]["z"] = -1; });
  refused("id as text", "is not a number below", [](json* r) { (*r)["model"]["vocab"]["z"] = "3"; });
  refused("one id twice", "two tokens", [](json* r) { (*r)["model"]["vocab"]["z"] = 0; });
  refused("added id 2^31-1", "is not a number below",
          [](json* r) { (*r)["added_tokens"][0]["id"] = 2147483647; });
  refused("added over a token", "two tokens", [](json* r) { (*r)["added_tokens"][0]["id"] = 0; });
  refused("no vocab", "model.vocab", [](json* r) { (*r)["model"].erase("vocab"); });
  refused("model type", "WordPiece", [](json* r) { (*r)["model"]["type"] = "WordPiece"; });
  refused("normalizer", "BertNormalizer", [](json* r) { (*r)["normalizer"] = {{"type", "BertNormalizer"}}; });
  refused("pre-tokenizer", "Klingon", [](json* r) { (*r)["pre_tokenizer"] = {{"type", "Klingon"}}; });
  refused("decoder", "CTC", [](json* r) { (*r)["decoder"] = {{"type", "CTC"}}; });
  refused("pattern", "not understood", [](json* r) {
    (*r)["pre_tokenizer"] = json::parse(R"({"type":"Split","pattern":{"Regex":"(("},"behavior":"Isolated"})");
  });
  const auto repeated = [](const char* key, const char* list, const char* step, int times) {
    return [=](json* r) {
      (*r)[key] = {{"type", "Sequence"}, {list, json::array()}};
      for (int i = 0; i < times; ++i) (*r)[key][list].push_back(json::parse(step));
    };
  };
  const char* const doubling = R"({"type":"Replace","pattern":{"String":"a"},"content":"aa"})";
  refused("doubling normalizer", "times as long", repeated("normalizer", "normalizers", doubling, 40));
  refused("doubling by pattern", "times as long",
          repeated("normalizer", "normalizers",
                   R"({"type":"Replace","pattern":{"Regex":"[ab]"},"content":"aa"})", 40));
  refused("long prefix", "times as long",
          repeated("normalizer", "normalizers", R"({"type":"Prepend","prepend":"ab"})", 40));
  refused("endless normalizer", "256 steps", repeated("normalizer", "normalizers", R"({"type":"NFC"})", 257));
  refused("doubling decoder", "times as long", repeated("decoder", "decoders", doubling, 40));
  refused("many tokens before a text", "more than 64 tokens", [](json* r) {
    (*r)["post_processor"] = {{"type", "TemplateProcessing"},
                              {"single", {{{"SpecialToken", {{"id", "x"}}}}}},
                              {"special_tokens", {{"x", {{"ids", std::vector<int>(65, 0)}}}}}};
  });
  refused("suffix", "end_of_word_suffix", [](json* r) { (*r)["model"]["end_of_word_suffix"] = "</w>"; });
  EXPECT_FALSE(load_json_tokenizer("", {}).ok());
  EXPECT_FALSE(load_json_tokenizer("[1]", {}).ok());
  EXPECT_FALSE(load_json_tokenizer(std::string(100000, '['), {}).ok());
}

TEST(TokenizerJson, ACatastrophicPatternEnds) {
  json root = small_json();
  root["pre_tokenizer"] = json::parse(R"({"type":"Sequence","pretokenizers":[
    {"type":"Split","pattern":{"Regex":"(a+)+$"},"behavior":"Isolated"},
    {"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})");
  const auto tokenizer = must_load(root);
  const std::string text = std::string(40, 'a') + "b";
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, kPlain)), text);
}

// Protobuf by hand: pieces of ModelProto and the specs.
std::string field(int number, std::string_view bytes) {
  return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(bytes.size())} +
         std::string(bytes);
}
std::string field(int number, int value) {
  std::string out;
  for (uint32_t tag = static_cast<uint32_t>(number) << 3;; tag >>= 7) {
    out += static_cast<char>(tag < 0x80 ? tag : (tag & 0x7F) | 0x80);
    if (tag < 0x80) break;
  }
  return out + static_cast<char>(value);
}
std::string piece(std::string_view text, float score, int type = 1) {
  std::string bytes(4, '\0');
  std::memcpy(bytes.data(), &score, 4);
  return field(1, field(1, text) + static_cast<char>(2 << 3 | 5) + bytes + field(3, type));
}
std::string small_model(int model_type, const std::string& normalizer) {
  return piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3) + piece("\xE2\x96\x81", -3) +
         piece("a", -4) + piece("b", -5) + piece("ab", -6) +
         piece(
             "\xE2\x96\x81"
             "ab",
             -7) +
         piece("<u>", 0, 4) + field(2, field(3, model_type)) + field(3, normalizer);
}

TEST(SentencePieceFile, BpeAndUnigram) {
  for (const int model_type : {1, 2}) {
    const auto loaded = load_sentencepiece_tokenizer(small_model(model_type, field(4, 0)), {});
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    const Tokenizer& tokenizer = **loaded;
    EXPECT_THAT(tokenizer.encode("ab ab", kPlain), ElementsAre(7, 7));
    EXPECT_THAT(tokenizer.encode("<u>ab", kPlain), ElementsAre(3, 8, 6));
    EXPECT_THAT(tokenizer.encode("axb", kPlain), ElementsAre(3, 4, 0, 5));
    EXPECT_THAT(tokenizer.encode("a", {}), ElementsAre(1, 3, 4));
    EXPECT_EQ(tokenizer.decode(tokenizer.encode("ab  a", kPlain)), "ab  a");
    EXPECT_THAT(tokenizer.eos_ids(), ElementsAre(2));
  }
}

// Gemma's tokenizer.model calls its turns user-defined pieces, which are found in any text.
TEST(SentencePieceFile, ChatMarkupIsNotMadeOfWhatAUserTyped) {
  const std::string file = small_model(1, field(3, 0) + field(4, 0)) + piece("<start_of_turn>", 0, 4);
  const auto loaded = load_sentencepiece_tokenizer(file, {});
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  const std::string text = "<start_of_turn>ab<start_of_turn>";
  const auto encode = [&](std::vector<ByteSpan> plain) {
    return (*loaded)->encode(text, {.add_special = false, .plain = plain});
  };
  EXPECT_THAT(encode({}), ElementsAre(9, 6, 9));
  EXPECT_THAT(encode({{15, 17}}), ElementsAre(9, 6, 9));
  const std::vector<int32_t> ids = encode({{15, 32}});
  EXPECT_EQ(ids.front(), 9);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 9), 1);
}

// Ids of these tests: as transformers 4.57's LlamaTokenizer, use_fast=False.
TokenizerSettings with_decoder(json more = json::object()) {
  more["added_tokens_decoder"] = json::parse(R"({
    "0": {"content": "<unk>", "special": true}, "1": {"content": "<s>", "special": true},
    "9": {"content": "<|im_start|>", "special": true}, "10": {"content": "<|im_end|>", "special": true},
    "11": {"content": "word", "special": false, "lstrip": true, "rstrip": true}})");
  TokenizerSettings settings;
  settings.tokenizer_config = more.dump();
  return settings;
}

std::shared_ptr<const Tokenizer> must_load_model(const TokenizerSettings& settings, int model_type = 2) {
  auto loaded = load_sentencepiece_tokenizer(small_model(model_type, field(4, 0)), settings);
  EXPECT_TRUE(loaded.ok()) << loaded.status().message();
  return loaded.value();
}

TEST(SentencePieceFile, AddedTokensAreCutOutFirst) {
  TokenizerSettings old;
  old.added_tokens = R"({"<|im_end|>": 10, "<|im_start|>": 9, "word": 11})";
  old.special_tokens_map =
      R"({"eos_token": "<|im_end|>", "additional_special_tokens": [{"content": "<|im_start|>"}]})";
  for (const int model_type : {1, 2}) {
    for (const bool is_old : {false, true}) {
      const auto tokenizer =
          must_load_model(is_old ? old : with_decoder({{"eos_token", "<|im_end|>"}}), model_type);
      EXPECT_EQ(tokenizer->vocab_size(), 12);
      EXPECT_THAT(tokenizer->encode("<|im_start|>ab<|im_end|> ab", kParsed), ElementsAre(9, 7, 10, 3, 7));
      const std::vector<int32_t> spaces_stay = {7, 3, 11, 3, 3, 5}, spaces_go = {7, 11, 3, 5};
      EXPECT_EQ(tokenizer->encode("ab word b", kParsed), is_old ? spaces_stay : spaces_go);
      EXPECT_THAT(tokenizer->encode("wordab", kPlain), ElementsAre(11, 7));
      EXPECT_THAT(tokenizer->encode("<|im_start|>", kPlain), Not(Contains(9)));
      EXPECT_THAT(tokenizer->encode("ab", {}), ElementsAre(1, 7));
      EXPECT_TRUE(tokenizer->is_special(9));
      EXPECT_FALSE(tokenizer->is_special(11));
      EXPECT_THAT(tokenizer->eos_ids(), ElementsAre(2, 10));
      EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{9, 7, 10, 11}), "<|im_start|> ab<|im_end|>word");
      const std::vector<ByteSpan> typed = {{12, 26}};
      EXPECT_THAT(tokenizer->encode("<|im_start|>ab<|im_start|>", {.add_special = false, .plain = typed}),
                  AllOf(Contains(9).Times(1), Contains(7)));
    }
  }
}

TEST(SentencePieceFile, WithoutLegacyOnlyATextBeginsWithTheDummyPrefix) {
  const auto tokenizer = must_load_model(with_decoder({{"legacy", false}}));
  EXPECT_THAT(tokenizer->encode("ab<|im_start|>ab", kParsed), ElementsAre(7, 9, 6));
  EXPECT_THAT(tokenizer->encode("<|im_start|> ab", kParsed), ElementsAre(9, 7));
  EXPECT_THAT(tokenizer->encode(" ab", kParsed), ElementsAre(3, 7));
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{7, 9, 6}), "ab<|im_start|>ab");
  const auto without = must_load_model(with_decoder({{"legacy", false}, {"add_prefix_space", false}}));
  EXPECT_THAT(without->encode("ab<|im_start|> ab", kParsed), ElementsAre(6, 9, 7));
  // Extra spaces go, but not the one that a stretch begins with.
  const auto loaded = load_sentencepiece_tokenizer(small_model(2, ""), with_decoder({{"legacy", false}}));
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_THAT((*loaded)->encode("  ab  ab <|im_start|>  ab ", kParsed), ElementsAre(3, 7, 7, 9, 7));
}

// tokenizer_config.json names another one than the vocabulary's own.
TEST(SentencePieceFile, BosByName) {
  const auto tokenizer = must_load_model(with_decoder({{"bos_token", "<|im_start|>"}}));
  EXPECT_EQ(tokenizer->bos_id(), 9);
  EXPECT_TRUE(tokenizer->adds_bos());
  EXPECT_THAT(tokenizer->encode("ab", {}), ElementsAre(9, 7));
  const auto without =
      must_load_model(with_decoder({{"bos_token", "<|im_start|>"}, {"add_bos_token", false}}));
  EXPECT_THAT(without->encode("ab", {}), ElementsAre(7));
}

// A piece is one, too, and then no text is made of it.
TEST(SentencePieceFile, PiecesThatAreNamedAsSpecialTokens) {
  TokenizerSettings settings;
  settings.tokenizer_config = R"({"additional_special_tokens": ["<u>", "ab", "[absent]"]})";
  const auto tokenizer = must_load_model(settings);
  EXPECT_EQ(tokenizer->vocab_size(), 9);
  EXPECT_THAT(tokenizer->encode("<u>ab", kParsed), ElementsAre(8, 6));
  EXPECT_TRUE(tokenizer->is_special(6) && tokenizer->is_special(8));
  EXPECT_THAT(tokenizer->encode("bab", kPlain), ElementsAre(3, 5, 4, 5));
}

// A file that forgets to call a control piece special does not hand it to users.
TEST(SentencePieceFile, ControlPiecesAreNeverTyped) {
  TokenizerSettings settings;
  settings.tokenizer_config = R"({"added_tokens_decoder": {"2": {"content": "</s>"}}})";
  TokenizerSettings old;
  old.added_tokens = R"({"<unk>": 0, "<s>": 1, "</s>": 2})";
  for (const TokenizerSettings& files : {TokenizerSettings{}, settings, old}) {
    const auto tokenizer = must_load_model(files);
    EXPECT_THAT(tokenizer->encode("ab</s>", kPlain), Not(Contains(2)));
    EXPECT_THAT(tokenizer->encode("ab</s>", kParsed), ElementsAre(7, 2));
    EXPECT_TRUE(tokenizer->is_special(2));
  }
}

TEST(SentencePieceFile, AddedTokensThatCannotBeAreRefused) {
  const auto refused = [](const std::string& config, const std::string& file, const std::string& message) {
    TokenizerSettings settings;
    settings.tokenizer_config = config;
    settings.added_tokens = file;
    const auto loaded = load_sentencepiece_tokenizer(small_model(2, ""), settings);
    ASSERT_FALSE(loaded.ok()) << message;
    EXPECT_THAT(loaded.status().message(), HasSubstr(message));
    EXPECT_LT(loaded.status().message().size(), 300u);
  };
  for (const auto& [file, message] : std::vector<std::pair<std::string, const char*>>{
           {R"({"x": 10})", "added tokens: 'x' has id 10, but there is no token 9"},
           {R"({"x": 9, "y": 11})", "'y' has id 11, but there is no token 10"},
           {R"({"x": 9, "y": 9})", "added_tokens.json: id 9 is given to two tokens, 'x' and 'y'"},
           {R"({"x": 5})", "'x' has id 5, which in tokenizer.model is 'b'"},
           {R"({"ab": 9})", "'ab' has id 9, but in tokenizer.model it is piece 6"},
           {R"({"x": 65545})", "is not a number below 65545"},
           {R"({"x": 18446744073709551615})", "is not a number below 65545"},
           {R"({"x": -1})", "the id of 'x' is not a number"},
           {R"({"x": "9"})", "the id of 'x' is not a number"},
           {R"({"": 9})", "token 9 has no text"},
           {R"({"x": 9, "x": 10})", "added_tokens.json: "},
           {"[]", "added_tokens.json is not an object"}}) {
    refused("", file, message);
  }
  const std::string decoder = "tokenizer_config.json: added_tokens_decoder";
  for (const auto& [entries, message] : std::vector<std::pair<std::string, std::string>>{
           {R"("9": {"content": "x"}, "10": {"content": "x"})", ": 'x' has two ids, 10 and 9"},
           {R"("09": {"content": "x"})", ": '09' is not a token id"},
           {R"("-1": {"content": "x"})", ": '-1' is not a token id"},
           {R"("9": {"special": true})", ": token 9 has no text"},
           {R"("9": "x")", ": token 9 has no text"},
           {R"("0": {"content": "<s>"})", ": '<s>' has id 0, which in tokenizer.model is '<unk>'"}}) {
    refused(R"({"added_tokens_decoder": {)" + entries + "}}", "", decoder + message);
  }
  refused(R"({"added_tokens_decoder": []})", "", decoder + ": is not an object");
  for (const char* other : {R"({"<|im_start|>": 10})", R"({"word": 11, "more": 12})"})
    refused(with_decoder().tokenizer_config, other, "is not the same in added_tokens_decoder");
  TokenizerSettings both = with_decoder();
  both.added_tokens = R"({"word": 11, "<|im_start|>": 9, "<|im_end|>": 10})";
  EXPECT_EQ(must_load_model(both)->vocab_size(), 12);
}

TEST(SentencePieceFile, RemovesExtraSpacesByDefault) {
  const auto loaded = load_sentencepiece_tokenizer(small_model(2, ""), {});
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_THAT((*loaded)->encode("  ab   ab ", kPlain), ElementsAre(7, 7));
  EXPECT_TRUE((*loaded)->encode("   ", kPlain).empty());
  // Its mark, typed: a character like others, but at the end a space. As sentencepiece 0.2.3.
  EXPECT_THAT((*loaded)->encode("ab\xE2\x96\x81", kPlain), ElementsAre(7));
  EXPECT_THAT((*loaded)->encode("ab \xE2\x96\x81 ", kPlain), ElementsAre(7));
  EXPECT_THAT((*loaded)->encode("\xE2\x96\x81 ab \xE2\x96\x81 b", kPlain), ElementsAre(3, 3, 7, 3, 3, 3, 5));
  EXPECT_TRUE((*loaded)->encode("\xE2\x96\x81", kPlain).empty());
}

TEST(SentencePieceFile, EveryCutAndEveryChangedByteIsAStatusOrAVocabulary) {
  const std::string model = small_model(2, field(4, 0));
  for (size_t length = 0; length < model.size(); ++length) {
    const auto loaded = load_sentencepiece_tokenizer(std::string_view(model).substr(0, length), {});
    if (loaded.ok()) (*loaded)->encode("ab ab", kPlain);
  }
  for (size_t at = 0; at < model.size(); ++at) {
    for (const int value : {0, 0x7F, 0xFF}) {
      std::string changed = model;
      changed[at] = static_cast<char>(value);
      const auto loaded = load_sentencepiece_tokenizer(changed, {});
      if (loaded.ok()) (*loaded)->decode((*loaded)->encode("ab ab<u>", kParsed));
    }
  }
  EXPECT_FALSE(load_sentencepiece_tokenizer("", {}).ok());
  EXPECT_THAT(load_sentencepiece_tokenizer(small_model(3, ""), {}).status().message(),
              HasSubstr("model type 3"));
  EXPECT_FALSE(load_sentencepiece_tokenizer(small_model(2, field(2, "\xFF\xFF\xFF\xFFzz")), {}).ok());
}

TEST(TiktokenFile, OtherNumbersOfRanksAndBadLinesAreRefused) {
  EXPECT_THAT(load_tiktoken_tokenizer("IQ== 0\nIg== 1\n", {}).status().message(),
              HasSubstr("128000 (Llama 3)"));
  EXPECT_FALSE(load_tiktoken_tokenizer("IQ== 1\n", {}).ok());
  EXPECT_FALSE(load_tiktoken_tokenizer("I?== 0\n", {}).ok());
  EXPECT_FALSE(load_tiktoken_tokenizer("IQ==\n", {}).ok());
  EXPECT_FALSE(load_tiktoken_tokenizer("IQ== 99999999999999999999999\n", {}).ok());
}

json small_tekken() {
  json vocab = json::array();
  for (const char* bytes : {"YQ==", "Yg==", "IA==", "YWI="}) {  // a b space ab
    vocab.push_back({{"rank", vocab.size()}, {"token_bytes", bytes}, {"token_str", nullptr}});
  }
  return {{"config", {{"pattern", "[^ ]+| +"}, {"default_vocab_size", 7}, {"default_num_special_tokens", 3}}},
          {"vocab", vocab}};
}

TEST(TekkenFile, IdsFollowTheSpecialTokens) {
  const auto loaded = load_tekken_tokenizer(small_tekken().dump(), {});
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_THAT((*loaded)->encode("ab b", {}), ElementsAre(1, 6, 5, 4));
  EXPECT_THAT((*loaded)->encode("</s>", kParsed), ElementsAre(2));
  EXPECT_THAT((*loaded)->eos_ids(), ElementsAre(2));
  json root = small_tekken();
  root["config"]["default_vocab_size"] = 4000000000u;
  EXPECT_FALSE(load_tekken_tokenizer(root.dump(), {}).ok());
  root = small_tekken();
  root["vocab"][2]["rank"] = 7;
  EXPECT_FALSE(load_tekken_tokenizer(root.dump(), {}).ok());
  root = small_tekken();
  root["special_tokens"] = json::parse(R"([{"rank": 3, "token_str": "x"}])");
  EXPECT_FALSE(load_tekken_tokenizer(root.dump(), {}).ok());
}

TEST(LoadTokenizer, PicksByWhatLiesInTheFolder) {
  std::string pattern = (std::filesystem::temp_directory_path() / "restkv_tokenizer_XXXXXX").string();
  ASSERT_NE(mkdtemp(pattern.data()), nullptr);
  const std::filesystem::path folder = pattern;
  const auto write = [&](const char* name, const std::string& content) {
    std::ofstream(folder / name, std::ios::binary) << content;
  };
  EXPECT_THAT(load_tokenizer(folder.string()).status().message(), HasSubstr("tokenizer.json"));
  write("tokenizer.model", small_model(2, ""));
  EXPECT_EQ(load_tokenizer(folder.string()).value()->kind(), "SentencePiece BPE");
  write("added_tokens.json", R"({"<|im_end|>": 9})");
  write("special_tokens_map.json", R"({"eos_token": "<|im_end|>"})");
  EXPECT_TRUE(load_tokenizer(folder.string()).value()->is_special(9));
  write("tekken.json", small_tekken().dump());
  EXPECT_EQ(load_tokenizer(folder.string()).value()->kind(), "byte-level BPE (tekken)");
  write("tokenizer.json", small_json().dump());
  write("tokenizer_config.json", R"({"bos_token": "<s>", "add_bos_token": true})");
  const auto loaded = load_tokenizer(folder.string());
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ((*loaded)->kind(), "byte-level BPE (tokenizer.json)");
  EXPECT_THAT((*loaded)->encode("a", {}), ElementsAre(7, 0));
  write("tokenizer.json", "{}");
  EXPECT_FALSE(load_tokenizer(folder.string()).ok());
  EXPECT_FALSE(load_tokenizer((folder / "absent").string()).ok());
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace restkv

// Tokenizers from GGUF metadata: ids, special tokens, BOS rules, decoding and streaming, hostile files and texts.
#include "engine/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <random>
#include <thread>

#include "tests/text/small_vocabularies.h"

namespace restkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr EncodeOptions kPlain{.add_special = false, .special_tokens = SpecialTokens::kAsText};
constexpr EncodeOptions kParsed{.add_special = false, .special_tokens = SpecialTokens::kParse};

std::shared_ptr<const Tokenizer> small_bpe(const std::string& pre = "gpt-2") {
  auto loaded = load_built(SmallBpe().builder(pre));
  EXPECT_TRUE(loaded.ok()) << loaded.status().message();
  return loaded.value();
}

std::shared_ptr<const Tokenizer> small_sentencepiece() {
  auto loaded = load_built(SmallSentencePiece().builder());
  EXPECT_TRUE(loaded.ok()) << loaded.status().message();
  return loaded.value();
}

TEST(ByteLevelBpe, MergesInOrderOfRank) {
  const auto tokenizer = small_bpe();
  EXPECT_THAT(tokenizer->encode("the", kPlain), ElementsAre(SmallBpe::kThe));
  EXPECT_THAT(tokenizer->encode(" the", kPlain), ElementsAre(SmallBpe::kSpaceThe));
  EXPECT_THAT(tokenizer->encode("aaaaa", kPlain), ElementsAre(SmallBpe::kAaaa, 'a'));
  EXPECT_THAT(tokenizer->encode("aaa", kPlain), ElementsAre(SmallBpe::kAa, 'a'));
  EXPECT_TRUE(tokenizer->encode("", kPlain).empty());
  EXPECT_EQ(tokenizer->kind(), "byte-level BPE (gpt-2)");
}

TEST(ByteLevelBpe, ATokenThatNoMergeMakesComesOnlyWithIgnoreMerges) {
  SmallBpe vocabulary;
  vocabulary.tokens[SmallBpe::kAaaa] = "hat";  // no merges lead there
  vocabulary.merges.pop_back();
  const auto plain = load_built(vocabulary.builder("gpt-2"));
  ASSERT_TRUE(plain.ok()) << plain.status().message();
  EXPECT_THAT((*plain)->encode("hat", kPlain), ElementsAre('h', 'a', 't'));
  const auto ignoring = load_built(vocabulary.builder("llama-bpe"));
  ASSERT_TRUE(ignoring.ok()) << ignoring.status().message();
  EXPECT_THAT((*ignoring)->encode("hat", kPlain), ElementsAre(SmallBpe::kAaaa));
}

TEST(ByteLevelBpe, BytesThatAreNotUtf8ComeBack) {
  const auto tokenizer = small_bpe();
  for (const std::string text :
       {"\xFF", "a\xC3", "\xE2\x96", "th\x80the\xF5\xF5 x", "\xED\xA0\x80", "\xC0\x80"}) {
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, kPlain)), text);
  }
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (size_t length = random() % 80; length > 0; --length) text += static_cast<char>(random() % 256);
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, kPlain)), text);
  }
}

TEST(ByteLevelBpe, LongWordsTakeNLogN) {
  const auto tokenizer = small_bpe();
  for (const auto& [length, unit] : {std::pair{32000, "a"}, std::pair{65536, "a"}, std::pair{65536, "!"},
                                     std::pair{65536, " "}, std::pair{21845, "the"}, std::pair{65536, "\n"},
                                     std::pair{32768, "\xC3\xA9"}, std::pair{65536, "\xFF"}}) {
    std::string text;
    for (int i = 0; i < length; ++i) text += unit;
    const auto start = std::chrono::steady_clock::now();
    const auto ids = tokenizer->encode(text, kPlain);
    // Quadratic work took 10 s for 16,384 letters; this takes about 20 ms.
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5)) << unit;
    EXPECT_EQ(tokenizer->decode(ids), text);
  }
}

TEST(ByteLevelBpe, ShortAndLongWordsMergeAlike) {
  const auto tokenizer = small_bpe();
  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    // One word of letters: its first 20 symbols have no merge with "x", so the tail must encode the same alone.
    std::string tail;
    for (int i = 0; i < 20; ++i) tail += "theaa"[random() % 5];
    const std::string head(30, 'x');
    const auto whole = tokenizer->encode(head + tail, kPlain);
    const auto alone = tokenizer->encode(tail, kPlain);
    ASSERT_GE(whole.size(), head.size());
    EXPECT_EQ(std::vector<int32_t>(whole.begin() + 30, whole.end()), alone) << tail;
  }
}

TEST(SpecialTokens, AreTextUnlessParsed) {
  const auto tokenizer = small_bpe();
  const std::string text = "the<|im_end|>the";
  EXPECT_THAT(tokenizer->encode(text, kParsed), ElementsAre(SmallBpe::kThe, SmallBpe::kEnd, SmallBpe::kThe));
  for (const int32_t id : tokenizer->encode(text, kPlain)) EXPECT_FALSE(tokenizer->is_special(id));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, kPlain)), text);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, kParsed)), text);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, kParsed), true), "thethe");
}

TEST(SpecialTokens, WithIgnoreMergesTypedOnesStayText) {
  const auto tokenizer = small_bpe("llama-bpe");
  for (const std::string text : {"<|im_end|>", "<|start|>", "<|start|>the"}) {
    for (const int32_t id : tokenizer->encode(text, kPlain)) EXPECT_FALSE(tokenizer->is_special(id)) << text;
  }
}

TEST(SpecialTokens, WhatAUserWroteInARenderedTemplateStaysText) {
  for (const char* pre : {"gpt-2", "llama-bpe"}) {
    const auto tokenizer = small_bpe(pre);
    const std::string text = "<|im_end|>the<|im_end|>";
    const auto encode = [&](std::vector<ByteSpan> plain) {
      return tokenizer->encode(text, {.add_special = false, .plain = plain});
    };
    const auto count = [&](const std::vector<int32_t>& ids) {
      return std::count(ids.begin(), ids.end(), SmallBpe::kEnd);
    };
    EXPECT_THAT(encode({}), ElementsAre(SmallBpe::kEnd, SmallBpe::kThe, SmallBpe::kEnd));
    EXPECT_THAT(encode({{10, 13}}), ElementsAre(SmallBpe::kEnd, SmallBpe::kThe, SmallBpe::kEnd));
    EXPECT_EQ(count(encode({{10, 23}})), 1);
    EXPECT_EQ(count(encode({{0, 10}})), 1);
    EXPECT_EQ(count(encode({{0, 23}})), 0);
    EXPECT_EQ(count(encode({{9, 10}, {22, 23}})), 0);
    EXPECT_EQ(tokenizer->decode(encode({{0, 23}})), text);
  }
}

TEST(SpecialTokens, UserDefinedOnesAreAlwaysFoundAndShown) {
  const auto tokenizer = small_bpe();
  EXPECT_THAT(tokenizer->encode("a<user>a", kPlain), ElementsAre('a', SmallBpe::kUser, 'a'));
  EXPECT_FALSE(tokenizer->is_special(SmallBpe::kUser));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("a<user>a", kPlain), true), "a<user>a");
}

TEST(Bos, AsTheFileSaysElseAsThePreTokenizerImplies) {
  const EncodeOptions with_special{};
  EXPECT_FALSE(small_bpe()->adds_bos());
  EXPECT_THAT(small_bpe()->encode("the", with_special), ElementsAre(SmallBpe::kThe));
  const auto llama = small_bpe("llama-bpe");
  EXPECT_TRUE(llama->adds_bos());
  EXPECT_THAT(llama->encode("the", with_special), ElementsAre(SmallBpe::kStart, SmallBpe::kThe));
  EXPECT_THAT(llama->encode("", with_special), ElementsAre(SmallBpe::kStart));

  GgufBuilder both = SmallBpe().builder("llama-bpe");
  both.flag("tokenizer.ggml.add_bos_token", false).flag("tokenizer.ggml.add_eos_token", true);
  const auto eos_only = load_built(both);
  ASSERT_TRUE(eos_only.ok());
  EXPECT_FALSE((*eos_only)->adds_bos());
  EXPECT_THAT((*eos_only)->encode("the", with_special), ElementsAre(SmallBpe::kThe, SmallBpe::kStart));
}

TEST(Bos, EndTokensAreThoseOfTheFileAndOfTheChatFormats) {
  EXPECT_THAT(small_bpe()->eos_ids(), ElementsAre(SmallBpe::kStart, SmallBpe::kEnd));
}

TEST(SentencePiece, MergesByScoreWithTheDummyPrefix) {
  const auto tokenizer = small_sentencepiece();
  using V = SmallSentencePiece;
  // "▁the" would need "▁t" + "he": both are pieces, and "he" has the best score.
  EXPECT_THAT(tokenizer->encode("the", kPlain), ElementsAre(V::kSpaceThe));
  EXPECT_THAT(tokenizer->encode("a the", kPlain), ElementsAre(V::kSpace, V::kA, V::kSpaceThe));
  EXPECT_THAT(tokenizer->encode(" ", kPlain), ElementsAre(V::kSpace, V::kSpace));
  EXPECT_TRUE(tokenizer->encode("", kPlain).empty());
  EXPECT_THAT(tokenizer->encode("", {}), ElementsAre(1));
  EXPECT_EQ(tokenizer->leading_spaces(), LeadingSpaces::kOneGoes);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("the a", kPlain)), "the a");
  EXPECT_EQ(tokenizer->token_text(V::kSpaceThe), "\xE2\x96\x81the");
  EXPECT_EQ(tokenizer->token_bytes(V::kSpaceThe), " the");
}

TEST(SentencePiece, UnknownCharactersAndBytesFallBack) {
  const auto tokenizer = small_sentencepiece();
  using V = SmallSentencePiece;
  EXPECT_THAT(tokenizer->encode("\xC3\xA9", kPlain),
              ElementsAre(V::kSpace, V::kByte + 0xC3, V::kByte + 0xA9));
  EXPECT_THAT(tokenizer->encode("\xFF\n", kPlain), ElementsAre(V::kSpace, V::kByte + 0xFF, V::kByte + 0x0A));
  for (const std::string text : {"\xFF", "x\xC3 y", "  th  e  ", "t\x01h"}) {
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, kPlain)), text);
  }
}

TEST(SentencePiece, UserDefinedPiecesAreFoundControlTokensOnlyIfParsed) {
  const auto tokenizer = small_sentencepiece();
  using V = SmallSentencePiece;
  EXPECT_THAT(tokenizer->encode("[u]", kPlain), ElementsAre(V::kUser));
  EXPECT_THAT(tokenizer->encode("<s>", kParsed), ElementsAre(1));
  for (const int32_t id : tokenizer->encode("<s></s>", kPlain)) EXPECT_FALSE(tokenizer->is_special(id));
}

TEST(SentencePiece, LongTextsTakeNLogN) {
  const auto tokenizer = small_sentencepiece();
  for (const std::string unit : {"a", "the", " ", "\xC3\xA9", "he"}) {
    std::string text;
    while (text.size() < 65536) text += unit;
    const auto start = std::chrono::steady_clock::now();
    const auto ids = tokenizer->encode(text, kPlain);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5)) << unit;
    EXPECT_EQ(tokenizer->decode(ids), text);
  }
}

TEST(Streaming, NeverSplitsACodePoint) {
  const auto tokenizer = small_bpe();
  const std::string text = "the \xF0\x9F\x98\x80 and \xE6\x88\x91\xC3\xA9!";
  StreamingDetokenizer stream(*tokenizer);
  std::string all;
  for (const int32_t id : tokenizer->encode(text, kPlain)) {
    const std::string piece = stream.append(id);
    EXPECT_EQ(valid_utf8_length(piece, 0), piece.size());
    all += piece;
  }
  EXPECT_EQ(all, text);
  EXPECT_EQ(stream.finish(), "");
}

TEST(Streaming, EqualsDecodeForEveryTokenizer) {
  std::mt19937 random(9);
  for (const auto& tokenizer : {small_bpe(), small_sentencepiece()}) {
    for (int round = 0; round < 200; ++round) {
      std::string text;
      for (size_t length = random() % 40; length > 0; --length) append_utf8(&text, 0x20 + random() % 0xD000);
      const auto ids = tokenizer->encode(text, kPlain);
      StreamingDetokenizer stream(*tokenizer, true, true);
      std::string all;
      for (const int32_t id : ids) all += stream.append(id);
      all += stream.finish();
      EXPECT_EQ(all, tokenizer->decode(ids, true));
    }
  }
}

TEST(Streaming, BrokenBytesAreReplacedAsPythonDoes) {
  const auto tokenizer = small_bpe();
  const auto streamed = [&](std::string_view bytes) {
    StreamingDetokenizer stream(*tokenizer);
    std::string all;
    for (const char byte : bytes) all += stream.append(static_cast<unsigned char>(byte));
    return all + stream.finish();
  };
  const std::string bad = "\xEF\xBF\xBD";
  EXPECT_EQ(streamed("a\xFFz"), "a" + bad + "z");
  EXPECT_EQ(streamed("\xE6\x88z"), bad + "z");
  EXPECT_EQ(streamed("\xE6\x88"), bad);
  EXPECT_EQ(streamed("\xF0\x80\x80"), bad + bad + bad);
  EXPECT_EQ(streamed("\xED\xA0\x80"), bad + bad + bad);
}

TEST(Streaming, AnAnswerKeepsItsFirstSpaceATextDoesNot) {
  const auto tokenizer = small_sentencepiece();
  StreamingDetokenizer answer(*tokenizer), text(*tokenizer, true, true);
  EXPECT_EQ(answer.append(SmallSentencePiece::kSpaceThe), " the");
  EXPECT_EQ(text.append(1), "");  // BOS is hidden
  EXPECT_EQ(text.append(SmallSentencePiece::kSpaceThe), "the");
  EXPECT_EQ(text.append(SmallSentencePiece::kSpaceThe), " the");
}

TEST(Streaming, SpecialTokensAreHiddenUnlessAskedFor) {
  const auto tokenizer = small_bpe();
  StreamingDetokenizer hidden(*tokenizer), shown(*tokenizer, false);
  EXPECT_EQ(hidden.append(SmallBpe::kEnd), "");
  EXPECT_EQ(shown.append(SmallBpe::kEnd), "<|im_end|>");
  EXPECT_EQ(hidden.append(-1) + hidden.append(1 << 30), "");  // not tokens
}

TEST(Threads, ShareATokenizer) {
  const auto tokenizer = small_bpe();
  std::string text;
  for (int i = 0; i < 2000; ++i) text += i % 3 ? " the" : " aaaa x";
  const auto expected = small_bpe()->encode(text, kPlain);
  std::vector<std::vector<int32_t>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) threads.emplace_back([&] { result = tokenizer->encode(text, kPlain); });
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, expected);
}

struct Hostile {
  const char* name;
  GgufBuilder file;
  const char* message;
};

std::vector<Hostile> hostile_files() {
  std::vector<Hostile> files;
  const auto bpe = [&](const char* name, const char* message, auto change) {
    SmallBpe vocabulary;
    change(&vocabulary);
    files.push_back({name, vocabulary.builder(), message});
  };
  bpe("merge longer than any piece", "not in the vocabulary",
      [](SmallBpe* v) { v->merges.push_back("t " + std::string(10000, 'h')); });
  bpe("absent result", "not in the vocabulary", [](SmallBpe* v) { v->merges.push_back("h t"); });
  bpe("cyclic merge", "not in the vocabulary", [](SmallBpe* v) {
    v->merges.insert(v->merges.end(), {"the t", "thet the"});
  });
  bpe("merge of one token", "two tokens", [](SmallBpe* v) { v->merges.push_back("th"); });
  bpe("empty half", "two tokens", [](SmallBpe* v) { v->merges.push_back("th "); });
  bpe("no merges", "merges is missing", [](SmallBpe* v) { v->merges.clear(); });
  bpe("duplicate", "written the same", [](SmallBpe* v) { v->tokens[10] = v->tokens[11]; });
  bpe("types too short", "token_type", [](SmallBpe* v) { v->types.pop_back(); });
  bpe("unknown type", "type 77", [](SmallBpe* v) { v->types[3] = 77; });
  bpe("no tokens", "tokens", [](SmallBpe* v) { v->tokens.clear(), v->types.clear(); });
  const auto metadata = [&](const char* name, const char* message, auto change) {
    GgufBuilder file = SmallBpe().builder();
    change(&file);
    files.push_back({name, file, message});
  };
  metadata("eot id 2^31-1", "eot_token_id",
           [](GgufBuilder* f) { f->number("tokenizer.ggml.eot_token_id", 2147483647); });
  metadata("eom id 2^32-1", "eom_token_id",
           [](GgufBuilder* f) { f->number("tokenizer.ggml.eom_token_id", 4294967295u); });
  const auto pieces = [&](const char* name, const char* message, auto change) {
    SmallSentencePiece vocabulary;
    change(&vocabulary);
    files.push_back({name, vocabulary.builder(), message});
  };
  pieces("NaN score", "NaN", [](SmallSentencePiece* v) { v->scores[260] = std::nanf(""); });
  pieces("scores too short", "scores", [](SmallSentencePiece* v) { v->scores.pop_back(); });
  pieces("huge piece", "at most 1024", [](SmallSentencePiece* v) { v->add(std::string(100000, 'a'), 0, 1); });
  GgufBuilder u8_scores;
  u8_scores.string("tokenizer.ggml.model", "llama").strings("tokenizer.ggml.tokens", {"a", "b"});
  u8_scores.numbers("tokenizer.ggml.scores", GgufType::kU8, std::vector<uint8_t>{1, 2});
  files.push_back({"scores typed u8", u8_scores, "scores"});
  GgufBuilder other;
  other.string("tokenizer.ggml.model", "rwkv").strings("tokenizer.ggml.tokens", {"a"});
  files.push_back({"unsupported model", other, "rwkv"});
  files.push_back({"unsupported pre-tokenizer", SmallBpe().builder("klingon"), "klingon"});
  files.push_back({"no tokenizer", GgufBuilder().number("x", 1), "no tokenizer"});
  return files;
}

TEST(Hostile, FilesAreRefusedWithTheReason) {
  for (const Hostile& hostile : hostile_files()) {
    const auto loaded = load_built(hostile.file);
    ASSERT_FALSE(loaded.ok()) << hostile.name;
    EXPECT_THAT(loaded.status().message(), HasSubstr(hostile.message)) << hostile.name;
    EXPECT_LT(loaded.status().message().size(), 400u) << hostile.name;
  }
}

TEST(Hostile, AVocabularyWithoutSomeBytesDropsThem) {
  GgufBuilder file;
  file.string("tokenizer.ggml.model", "gpt2").strings("tokenizer.ggml.tokens", {"a", "b", "ab"});
  file.strings("tokenizer.ggml.merges", {"a b"});
  const auto loaded = load_built(file);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_THAT((*loaded)->encode("zab", kPlain), ElementsAre(2));
  EXPECT_TRUE((*loaded)->eos_ids().empty());
  EXPECT_EQ((*loaded)->bos_id(), -1);
}

}  // namespace
}  // namespace restkv

// The parts a tokenizer is made of: UTF-8, regular expressions, splitting, normal forms, added tokens, models.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>

#include "engine/text/added_tokens.h"
#include "engine/text/base64.h"
#include "engine/text/bpe_model.h"
#include "engine/text/charsmap.h"
#include "engine/text/normalizer.h"
#include "engine/text/pre_tokenizer.h"
#include "engine/text/unigram_model.h"
#include "engine/text/utf8.h"

namespace restkv {
namespace {

using ::testing::ElementsAre;

TEST(Utf8, StatesAndLengths) {
  const auto state = [](std::string_view text) { return decode_utf8(text, 0); };
  EXPECT_EQ(state("a").code, U'a');
  EXPECT_EQ(state("\xF0\x9F\x98\x80").code, char32_t{0x1F600});
  EXPECT_EQ(state("\xF0\x9F\x98").state, Utf8State::kIncomplete);
  EXPECT_EQ(state("\xF0\x9F\x98").length, 3u);
  for (const char* bad : {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
                          "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF"}) {
    EXPECT_EQ(state(bad).state, Utf8State::kInvalid) << bad;
    EXPECT_EQ(state(bad).length, 1u);
  }
  EXPECT_EQ(state("\xE6\x88z").length, 2u);
  for (char32_t code = 1; code < 0x110000; code += 37) {
    if (code >= 0xD800 && code < 0xE000) continue;
    std::string text;
    append_utf8(&text, code);
    EXPECT_EQ(decode_utf8(text, 0).code, code);
    EXPECT_EQ(valid_utf8_length(text, 0), text.size());
  }
}

TEST(Utf8, TheByteAlphabetIsOneToOne) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  EXPECT_EQ(bytes_of_alphabet_text(alphabet_text_of_bytes(all)), all);
  EXPECT_EQ(alphabet_text_of_bytes(" "), "\xC4\xA0");
  EXPECT_EQ(bytes_of_alphabet_text("a b"), std::nullopt);
  EXPECT_EQ(bytes_of_alphabet_text("\xE6\x88\x91"), std::nullopt);
}

std::vector<std::string> words(const PreTokenizer& pre_tokenizer, std::string_view text, bool first = true) {
  WordList list;
  pre_tokenizer.split(text, first, &list);
  return {list.words.begin(), list.words.end()};
}

TEST(PreTokenizer, PublishedPatterns) {
  const auto split = [](const char* name, std::string_view text) {
    return words(named_pre_tokenizer(name).value().pre_tokenizer, text);
  };
  EXPECT_THAT(split("gpt-2", "I'll  go 123!\n"), ElementsAre("I", "'ll", " ", " go", " 123", "!", "\n"));
  EXPECT_THAT(split("smollm", "go 123"), ElementsAre("go", " ", "1", "2", "3"));
  EXPECT_THAT(split("llama-bpe", "I'LL go12345\n\n x"),
              ElementsAre("I", "'LL", " go", "123", "45", "\n\n", " x"));
  EXPECT_THAT(split("qwen2", "(go)12"), ElementsAre("(go", ")", "1", "2"));
  EXPECT_THAT(split("tekken", "HelloWorld a/"), ElementsAre("Hello", "World", " a", "/"));
  EXPECT_FALSE(named_pre_tokenizer("").ok());
}

TEST(PreTokenizer, WhiteSpaceIsUnicodes) {
  const PreTokenizer gpt2 = std::move(named_pre_tokenizer("gpt-2").value().pre_tokenizer);
  EXPECT_THAT(words(gpt2, "a\u3000b"), ElementsAre("a", "\u3000", "b"));
  EXPECT_THAT(words(gpt2, "a\u180e"), ElementsAre("a", "\u180e"));
  EXPECT_THAT(words(gpt2, " \u180e"), ElementsAre(" \u180e"));  // not white space: joins the space before it
}

TEST(PreTokenizer, LosesNothing) {
  std::mt19937 random(1);
  for (const char* name : {"gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"}) {
    const PreTokenizer pre_tokenizer = std::move(named_pre_tokenizer(name).value().pre_tokenizer);
    for (int round = 0; round < 200; ++round) {
      std::string text, joined;
      for (size_t length = random() % 60; length > 0; --length) {
        if (random() % 8 == 0) {
          text += static_cast<char>(random() % 256);
        } else {
          append_utf8(&text, 1 + random() % 0x3000);
        }
      }
      for (const std::string& word : words(pre_tokenizer, text)) joined += word;
      EXPECT_EQ(joined, text);
    }
  }
}

TEST(PreTokenizer, Behaviors) {
  const auto split = [](SplitBehavior behavior, bool invert, std::string_view text) {
    PreTokenizer pre_tokenizer;
    pre_tokenizer.add_literal("-", behavior, invert);
    return words(pre_tokenizer, text);
  };
  // The example of the tokenizers library: "the-final--countdown".
  const std::string_view text = "the-final--countdown";
  EXPECT_THAT(split(SplitBehavior::kRemoved, false, text), ElementsAre("the", "final", "countdown"));
  EXPECT_THAT(split(SplitBehavior::kIsolated, false, text),
              ElementsAre("the", "-", "final", "-", "-", "countdown"));
  EXPECT_THAT(split(SplitBehavior::kMergedWithPrevious, false, text),
              ElementsAre("the-", "final-", "-", "countdown"));
  EXPECT_THAT(split(SplitBehavior::kMergedWithNext, false, text),
              ElementsAre("the", "-final", "-", "-countdown"));
  EXPECT_THAT(split(SplitBehavior::kContiguous, false, text),
              ElementsAre("the", "-", "final", "--", "countdown"));
  EXPECT_THAT(split(SplitBehavior::kRemoved, true, text), ElementsAre("-", "-", "-"));
}

TEST(PreTokenizer, MetaspaceAndCuts) {
  const std::string mark = "\xE2\x96\x81";
  PreTokenizer first, cuts;
  first.add_metaspace(mark, PreTokenizer::Prepend::kFirst, true);
  EXPECT_THAT(words(first, "a  b"), ElementsAre(mark + "a", mark, mark + "b"));
  EXPECT_THAT(words(first, "a", false), ElementsAre("a"));
  cuts.add_cut_before(" ");
  EXPECT_THAT(words(cuts, "  ab c   d "), ElementsAre("  ab", " c", "   d", " "));
}

std::vector<std::string> pieces(const char* pattern, std::string_view text,
                                RegexDialect dialect = RegexDialect::kOniguruma) {
  PreTokenizer pre_tokenizer;
  Result<Regex> regex = Regex::compile(pattern, dialect);
  if (!regex.ok()) return {"error: " + regex.status().message()};
  pre_tokenizer.add_pattern(std::move(regex).value(), SplitBehavior::kIsolated, false);
  return words(pre_tokenizer, text);
}

// What `tokenizers` 0.23 gives for a Split with the pattern.
TEST(Regex, ReadsPatternsAsOnigurumaDoes) {
  EXPECT_THAT(pieces("\\w+", "e\u0301_1 \u00bd\u24d0"), ElementsAre("e\u0301_1", " \u00bd", "\u24d0"));
  EXPECT_THAT(pieces("[\\w]+", "a\u00bd"), ElementsAre("a", "\u00bd"));
  EXPECT_THAT(pieces("\\b", "ab, c"), ElementsAre("ab", ", ", "c"));
  EXPECT_THAT(pieces("^.", "ab\ncd"), ElementsAre("a", "b\n", "c", "d"));
  EXPECT_THAT(pieces("\\s$", "a \nb \n"), ElementsAre("a", " ", "\nb", " ", "\n"));
  EXPECT_THAT(pieces("(?m:a.b)", "xa\nby"), ElementsAre("x", "a\nb", "y"));
  EXPECT_THAT(pieces("\\h+", "xyz1fg"), ElementsAre("xyz", "1f", "g"));
  EXPECT_THAT(pieces("[[a-c]0-9]+", "xa1d"), ElementsAre("x", "a1", "d"));
  EXPECT_THAT(pieces("[^(\\s|[.,])]+", "a.b c"), ElementsAre("a", ".", "b", " ", "c"));
}

// Digits in threes from the right: a match of no length cuts, too.
TEST(Regex, EmptyMatchesCut) {
  EXPECT_THAT(pieces("(?=(\\d{3})+(?!\\d))", "x1234567"), ElementsAre("x1", "234", "567"));
  EXPECT_THAT(pieces("x?", "axb"), ElementsAre("a", "x", "b"));
  EXPECT_THAT(pieces("b*", "日b本"), ElementsAre("日", "b", "本"));
}

TEST(Regex, DollarOfRustIsTheEndOfTheText) {
  EXPECT_THAT(pieces("a$", "a\n", RegexDialect::kRust), ElementsAre("a\n"));
  EXPECT_THAT(pieces("\\w+", "a\u200db", RegexDialect::kRust), ElementsAre("a\u200db"));
  EXPECT_THAT(pieces("\\p{N}{1,3}+", "12345", RegexDialect::kRust), ElementsAre("123", "45"));
}

TEST(Regex, RefusesWhatItCannotDo) {
  for (const RegexDialect dialect : {RegexDialect::kRust, RegexDialect::kOniguruma}) {
    EXPECT_FALSE(Regex::compile("(", dialect).ok());
    EXPECT_FALSE(Regex::compile(std::string(100000, 'a'), dialect).ok());
    EXPECT_TRUE(Regex::compile("[\\s\\]]+|\\S", dialect).ok());
    for (const char* pattern : {"[a-z&&[^b]]", "[a[^b]]", "[[:punct:]]", "[\\W]", "[", "\\p{Letter}"}) {
      EXPECT_FALSE(Regex::compile(pattern, dialect).ok()) << pattern;
    }
  }
  EXPECT_EQ(pieces("\\p{N}{1,3}+", "1"),
            std::vector<std::string>{
                "error: the regular expression '\\p{N}{1,3}+' has '+' behind {n,m} at 5, which is "
                "not supported"});
}

TEST(Normalizer, Steps) {
  const auto run = [](const Normalizer::Step& step, const std::string& text) { return step(text); };
  EXPECT_EQ(run(unicode_form_step(UnicodeForm::kNfc), "e\u0301\xFFx"), "\u00e9\xFFx");
  EXPECT_EQ(run(unicode_form_step(UnicodeForm::kNfd), "\u00e9"), "e\u0301");
  EXPECT_EQ(run(unicode_form_step(UnicodeForm::kNfkc), "\ufb01\u2460"), "fi1");
  EXPECT_EQ(run(lowercase_step(), "\u00c9\u0130A"), "\u00e9i\u0307a");
  EXPECT_EQ(run(strip_accents_step(), "e\u0301"), "e");
  EXPECT_EQ(run(strip_step(true, false), " \u3000a "), "a ");
  EXPECT_EQ(run(strip_step(true, true), " \n"), "");
  EXPECT_EQ(run(prepend_step("_"), ""), "");
  EXPECT_EQ(run(replace_step("aa", "b"), "aaaaa"), "bba");
}

TEST(AddedTokens, LongestFromTheLeft) {
  AddedTokens tokens;
  for (const auto& [id, text] : {std::pair{1, "<a>"}, std::pair{2, "<a><b>"}, std::pair{3, "b>c"}}) {
    AddedToken token;
    token.id = id;
    token.text = text;
    tokens.add(token);
  }
  std::vector<AddedTokens::Part> parts;
  tokens.split("x<a><b>c<a>", AddedScope::kAll, &parts);
  ASSERT_EQ(parts.size(), 4u);
  EXPECT_EQ(parts[1].id, 2);
  EXPECT_EQ(parts[2].text, "c");
  EXPECT_EQ(parts[3].id, 1);
  parts.clear();
  tokens.split("x<a>", AddedScope::kWithoutSpecial, &parts);
  ASSERT_EQ(parts.size(), 1u);
  EXPECT_EQ(parts[0].text, "x<a>");
}

// Special tokens, and chat markup that a file calls ordinary, are never made of a plain byte; other pieces are.
TEST(AddedTokens, PlainBytesMakeNoGuardedToken) {
  AddedTokens tokens;
  for (const auto& [id, text, special] :
       {std::tuple{1, "<s>", true}, std::tuple{2, "<|user|>", false}, std::tuple{3, "<b>", false}}) {
    AddedToken token;
    token.id = id;
    token.text = text;
    token.special = special;
    tokens.add(token);
  }
  const auto ids = [&](std::string_view text, const std::vector<ByteSpan>& plain) {
    std::vector<AddedTokens::Part> parts;
    tokens.split(text, AddedScope::kAll, &parts, plain);
    std::vector<int32_t> found;
    for (const auto& part : parts) found.push_back(part.id);
    return found;
  };
  EXPECT_THAT(ids("<s><|user|><b>", {}), ElementsAre(1, 2, 3));
  EXPECT_THAT(ids("<s><|user|><b>", {{0, 14}}), ElementsAre(-1, 3));
  EXPECT_THAT(ids("<s><|user|><b>", {{2, 3}}), ElementsAre(-1, 2, 3));  // a single byte is enough
  EXPECT_THAT(ids("<s><|user|><b>", {{3, 4}}), ElementsAre(1, -1, 3));
  EXPECT_THAT(ids("<s><s><s>", {{3, 6}}), ElementsAre(1, -1, 1));
  EXPECT_TRUE(tokens.finds_guarded("x<s>"));
  EXPECT_TRUE(tokens.finds_guarded("<|user|>"));
  EXPECT_FALSE(tokens.finds_guarded("<b><s"));
}

// Plain rescanning BPE, to compare with.
std::vector<int32_t> naive_bpe(std::vector<int32_t> ids, const std::vector<std::array<int32_t, 3>>& merges) {
  for (;;) {
    size_t best_rank = merges.size(), best_at = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank][0] == ids[i] && merges[rank][1] == ids[i + 1]) best_rank = rank, best_at = i;
      }
    }
    if (best_rank == merges.size()) return ids;
    ids[best_at] = merges[best_rank][2];
    ids.erase(ids.begin() + static_cast<long>(best_at) + 1);
  }
}

TEST(BpeModel, EqualsRescanningForRandomMerges) {
  std::mt19937 random(2);
  for (int round = 0; round < 60; ++round) {
    std::vector<std::string> tokens = {"a", "b", "c"};
    std::vector<std::array<int32_t, 3>> merges;
    std::vector<std::pair<std::string, std::string>> texts;
    for (int i = 0; i < 30; ++i) {
      const int32_t left = static_cast<int32_t>(random() % tokens.size());
      const int32_t right = static_cast<int32_t>(random() % tokens.size());
      const std::string whole = tokens[left] + tokens[right];
      if (whole.size() > 12 || std::find(tokens.begin(), tokens.end(), whole) != tokens.end()) continue;
      merges.push_back({left, right, static_cast<int32_t>(tokens.size())});
      texts.emplace_back(tokens[left], tokens[right]);
      tokens.push_back(whole);
    }
    Vocabulary vocabulary;
    for (const std::string& token : tokens) vocabulary.add(token, token, TokenType::kNormal);
    BytesIndex ids_of_texts;
    for (int32_t id = 0; id < vocabulary.size(); ++id) ids_of_texts.insert(vocabulary.text(id), id);
    BpeModel model(vocabulary, {});
    for (const auto& [left, right] : texts) ASSERT_TRUE(model.add_merge(left, right, ids_of_texts).ok());
    std::vector<size_t> lengths = {1, 5, 20, 32, 33, 100};
    if (round == 0) lengths.push_back(5000);  // from 4,096 pairs on they are sorted in another way
    for (const size_t length : lengths) {
      std::string word;
      std::vector<int32_t> symbols, ids;
      for (size_t i = 0; i < length; ++i) {
        symbols.push_back(static_cast<int32_t>(random() % 3));
        word += "abc"[symbols.back()];
      }
      model.encode(word, &ids);
      EXPECT_EQ(ids, naive_bpe(symbols, merges)) << word;
    }
  }
}

TEST(UnigramModel, FindsTheBestOfAllCuts) {
  Vocabulary vocabulary;
  std::vector<double> scores;
  for (const auto& [piece, score] : {std::pair{"a", -1.0}, std::pair{"b", -1.5}, std::pair{"ab", -2.0},
                                     std::pair{"ba", -2.6}, std::pair{"aba", -3.9}, std::pair{"bb", -2.0}}) {
    vocabulary.add(piece, piece, TokenType::kNormal);
    scores.push_back(score);
  }
  const auto model = UnigramModel::make(vocabulary, scores, {});
  ASSERT_TRUE(model.ok());
  std::mt19937 random(4);
  for (int round = 0; round < 100; ++round) {
    std::string word;
    for (size_t length = 1 + random() % 10; length > 0; --length) word += "ab"[random() % 2];
    // All cuts by counting down from the end.
    std::vector<double> best(word.size() + 1, -1e9);
    best[word.size()] = 0;
    for (size_t begin = word.size(); begin-- > 0;) {
      for (int32_t id = 0; id < vocabulary.size(); ++id) {
        const auto piece = vocabulary.bytes(id);
        if (!std::string_view(word).substr(begin).starts_with(piece)) continue;
        best[begin] = std::max(best[begin], scores[static_cast<size_t>(id)] + best[begin + piece.size()]);
      }
    }
    std::vector<int32_t> ids;
    (*model)->encode(word, &ids);
    std::string joined;
    double sum = 0;
    for (const int32_t id : ids) joined += vocabulary.bytes(id), sum += scores[static_cast<size_t>(id)];
    EXPECT_EQ(joined, word);
    EXPECT_NEAR(sum, best[0], 1e-4);
  }
}

TEST(Base64, Decodes) {
  std::string bytes;
  EXPECT_TRUE(decode_base64("AP/+", &bytes));
  EXPECT_EQ(bytes, std::string("\0\xFF\xFE", 3));
  EXPECT_TRUE(decode_base64("YQ==", &bytes));
  EXPECT_EQ(bytes, "a");
  EXPECT_FALSE(decode_base64("Y", &bytes));
  EXPECT_FALSE(decode_base64("Y Q=", &bytes));
}

TEST(CharsMap, HostileBlobsNeverReadOutside) {
  std::mt19937 random(6);
  EXPECT_FALSE(CharsMap::parse("").ok());
  EXPECT_FALSE(CharsMap::parse(std::string("\xFF\xFF\xFF\x7Fxxxx", 8)).ok());
  for (int round = 0; round < 2000; ++round) {
    std::string blob = {char(64), 0, 0, 0};
    for (int i = 0; i < 80; ++i) blob += static_cast<char>(random() % (round % 2 ? 256 : 8));
    const auto map = CharsMap::parse(blob);
    ASSERT_TRUE(map.ok());
    map->apply(std::string("ab\x01\x02\xC3\xA9\xFF", 7));
  }
}

}  // namespace
}  // namespace restkv

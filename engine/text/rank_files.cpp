// Vocabularies given as bytes and ranks: tiktoken's files and tekken.json. A pair merges if its bytes together are a
// token, the lowest rank first; a word that is a token is that token.
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "engine/model/json_reader.h"
#include "engine/text/base64.h"
#include "engine/text/bpe_model.h"
#include "engine/text/tokenizer_settings.h"
#include "engine/text/utf8.h"
#include "engine/text/vocabulary_files.h"

namespace restkv {
namespace {

// What both formats come down to; the ids of normal tokens are in the order of their ranks.
struct RankedVocabulary {
  std::vector<std::string> tokens;  // [vocab], bytes; specials: their text
  std::vector<TokenType> types;     // [vocab]
};

Result<std::shared_ptr<const Tokenizer>> make_ranked(const RankedVocabulary& ranked, TokenizerParts parts,
                                                     const TokenizerSettings& settings) {
  auto vocabulary = std::make_unique<Vocabulary>();
  for (size_t id = 0; id < ranked.tokens.size(); ++id) {
    const std::string& bytes = ranked.tokens[id];
    const bool special = ranked.types[id] == TokenType::kControl;
    vocabulary->add(special ? bytes : alphabet_text_of_bytes(bytes), bytes, ranked.types[id]);
  }
  BpeOptions options;
  options.ignore_merges = true;
  auto model = std::make_unique<BpeModel>(*vocabulary, options);
  Status status = model->derive_merges([](int32_t id) { return static_cast<uint32_t>(id); });
  if (!status.ok()) return status;
  add_special_tokens(*vocabulary, &parts.added);
  for (const int32_t id : chat_end_ids(*vocabulary)) parts.eos_ids.push_back(id);
  parts.vocabulary = std::move(vocabulary);
  parts.model = std::move(model);
  if (parts.bos_id >= 0) parts.prefix_ids.push_back(parts.bos_id);
  if (status = apply_settings(settings, &parts); !status.ok()) return status;
  return finish_tokenizer(std::move(parts));
}

// Special tokens of the families that publish rank files; they follow the ranks and are not in the file.
struct RankFamily {
  const char* name;
  const char* pre_tokenizer;
  size_t num_ranks;
  std::vector<std::string> (*specials)();
  int32_t bos_offset;           // into the specials, -1: none
  std::array<int32_t, 3> ends;  // offsets into the specials, -1: none
  bool nfc;
};

std::vector<std::string> numbered(const std::string& stem, int from, int to) {
  std::vector<std::string> names;
  for (int i = from; i < to; ++i) names.push_back(stem + std::to_string(i) + "|>");
  return names;
}

std::vector<std::string> llama3_specials() {
  std::vector<std::string> names = {"<|begin_of_text|>",
                                    "<|end_of_text|>",
                                    "<|reserved_special_token_0|>",
                                    "<|reserved_special_token_1|>",
                                    "<|finetune_right_pad_id|>",
                                    "<|reserved_special_token_2|>",
                                    "<|start_header_id|>",
                                    "<|end_header_id|>",
                                    "<|eom_id|>",
                                    "<|eot_id|>",
                                    "<|python_tag|>"};
  for (std::string& name : numbered("<|reserved_special_token_", 3, 248)) names.push_back(std::move(name));
  return names;
}

std::vector<std::string> qwen_specials() {
  std::vector<std::string> names = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  for (std::string& name : numbered("<|extra_", 0, 205)) names.push_back(std::move(name));
  return names;
}

const std::array<RankFamily, 2> kRankFamilies = {{
    {"Llama 3", "llama-bpe", 128000, llama3_specials, 0, {1, 8, 9}, false},
    {"Qwen", "qwen2", 151643, qwen_specials, -1, {0, 2, -1}, true},
}};

}  // namespace

Result<std::shared_ptr<const Tokenizer>> load_tiktoken_tokenizer(std::string_view bytes,
                                                                 const TokenizerSettings& settings) {
  RankedVocabulary ranked;
  std::string token;
  for (size_t pos = 0; pos < bytes.size();) {
    const size_t line_end = std::min(bytes.find('\n', pos), bytes.size());
    std::string_view line = bytes.substr(pos, line_end - pos);
    pos = line_end + 1;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    const size_t space = line.find(' ');
    uint64_t rank = 0;
    const bool has_rank =
        space != line.npos && std::from_chars(line.data() + space + 1, line.data() + line.size(), rank).ptr ==
                                  line.data() + line.size();
    if (!has_rank || !decode_base64(line.substr(0, space), &token) || token.empty() ||
        rank != ranked.tokens.size()) {
      return invalid_argument("line " + std::to_string(ranked.tokens.size() + 1) +
                              " is not 'base64 rank' with ranks counting up from 0");
    }
    ranked.tokens.push_back(token);
  }
  std::string known;
  for (const RankFamily& family : kRankFamilies) {
    known += (known.empty() ? "" : ", ") + std::to_string(family.num_ranks) + " (" + family.name + ")";
    if (family.num_ranks != ranked.tokens.size()) continue;
    ranked.types.assign(ranked.tokens.size(), TokenType::kNormal);
    const int32_t first_special = static_cast<int32_t>(ranked.tokens.size());
    for (std::string& name : family.specials()) ranked.tokens.push_back(std::move(name));
    ranked.types.resize(ranked.tokens.size(), TokenType::kControl);
    TokenizerParts parts;
    Result<NamedPreTokenizer> named = named_pre_tokenizer(family.pre_tokenizer);
    if (!named.ok()) return named.status();
    parts.pre_tokenizer = std::move(named->pre_tokenizer);
    parts.kind = std::string("byte-level BPE (tiktoken ranks of ") + family.name + ")";
    if (family.nfc) parts.normalizer.add(unicode_form_step(UnicodeForm::kNfc));
    if (family.bos_offset >= 0) parts.bos_id = first_special + family.bos_offset;
    for (const int32_t offset : family.ends) {
      if (offset >= 0) parts.eos_ids.push_back(first_special + offset);
    }
    return make_ranked(ranked, std::move(parts), settings);
  }
  return unimplemented("a rank file with " + std::to_string(ranked.tokens.size()) +
                       " ranks is of no known family; these are: " + known);
}

Result<std::shared_ptr<const Tokenizer>> load_tekken_tokenizer(std::string_view bytes,
                                                               const TokenizerSettings& settings) {
  using nlohmann::json;
  constexpr JsonLimits kLimits{.max_depth = 64, .max_keys = 8'000'000, .allow_nul = true};
  const Result<json> parsed = parse_json(bytes, kLimits);
  if (!parsed.ok()) return parsed.status();
  const auto member = [](const json& object, const char* key) -> const json& {
    static const json null;
    if (!object.is_object()) return null;
    const auto found = object.find(key);
    return found == object.end() ? null : *found;
  };
  const json& config = member(*parsed, "config");
  const json& vocab = member(*parsed, "vocab");
  const auto number = [&](const char* key) -> uint64_t {
    const json& value = member(config, key);
    return value.is_number_unsigned() ? value.get<uint64_t>() : 0;
  };
  const uint64_t num_tokens = number("default_vocab_size"),
                 num_special = number("default_num_special_tokens");
  const json& pattern = member(config, "pattern");
  if (!vocab.is_array() || !pattern.is_string() || num_special > num_tokens ||
      num_tokens - num_special > vocab.size() || num_special > 65536 || num_tokens == 0) {
    return invalid_argument(
        "tekken.json needs config.pattern, config.default_vocab_size, "
        "config.default_num_special_tokens that fit, and vocab");
  }
  RankedVocabulary ranked;
  for (uint64_t id = 0; id < num_special; ++id)
    ranked.tokens.push_back("<SPECIAL_" + std::to_string(id) + ">");
  ranked.types.assign(num_special, TokenType::kControl);
  // Older files list no special tokens: these are the first ones of the time.
  constexpr std::array<const char*, 17> kFirst = {"<unk>",
                                                  "<s>",
                                                  "</s>",
                                                  "[INST]",
                                                  "[/INST]",
                                                  "[AVAILABLE_TOOLS]",
                                                  "[/AVAILABLE_TOOLS]",
                                                  "[TOOL_RESULTS]",
                                                  "[/TOOL_RESULTS]",
                                                  "[TOOL_CALLS]",
                                                  "[IMG]",
                                                  "<pad>",
                                                  "[IMG_BREAK]",
                                                  "[IMG_END]",
                                                  "[PREFIX]",
                                                  "[MIDDLE]",
                                                  "[SUFFIX]"};
  const json& specials = member(*parsed, "special_tokens");
  if (specials.is_array()) {
    for (const json& special : specials) {
      const json& rank = member(special, "rank");
      const json& text = member(special, "token_str");
      if (!rank.is_number_unsigned() || rank.get<uint64_t>() >= num_special || !text.is_string()) {
        return invalid_argument(
            "tekken.json: a special token without token_str, or with a rank past the special tokens");
      }
      ranked.tokens[rank.get<uint64_t>()] = text.get<std::string>();
    }
  } else {
    for (size_t i = 0; i < kFirst.size() && i < num_special; ++i) ranked.tokens[i] = kFirst[i];
  }
  std::string token;
  for (uint64_t rank = 0; rank < num_tokens - num_special; ++rank) {
    const json& entry = vocab[rank];
    const json& text = member(entry, "token_bytes");
    const json& given = member(entry, "rank");
    if (!text.is_string() || !decode_base64(text.get_ref<const std::string&>(), &token) || token.empty() ||
        !given.is_number_unsigned() || given.get<uint64_t>() != rank) {
      return invalid_argument("tekken.json: entry " + std::to_string(rank) +
                              " of vocab has no such rank or no token_bytes");
    }
    ranked.tokens.push_back(token);
    ranked.types.push_back(TokenType::kNormal);
  }
  TokenizerParts parts;
  Result<Regex> regex = Regex::compile(pattern.get<std::string>(), RegexDialect::kRust);
  if (!regex.ok()) return regex.status();
  parts.pre_tokenizer.add_pattern(std::move(regex).value(), SplitBehavior::kIsolated, false);
  parts.kind = "byte-level BPE (tekken)";
  for (uint64_t id = 0; id < num_special; ++id) {
    if (ranked.tokens[id] == "<s>") parts.bos_id = static_cast<int32_t>(id);
    if (ranked.tokens[id] == "</s>") parts.eos_ids.push_back(static_cast<int32_t>(id));
  }
  return make_ranked(ranked, std::move(parts), settings);
}

}  // namespace restkv

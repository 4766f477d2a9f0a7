// Hugging Face's tokenizer.json: model BPE or Unigram, added tokens, and the steps around them (json_steps.h).
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "engine/model/json_reader.h"
#include "engine/text/bpe_model.h"
#include "engine/text/json_steps.h"
#include "engine/text/tokenizer_settings.h"
#include "engine/text/unigram_model.h"
#include "engine/text/utf8.h"
#include "engine/text/vocabulary_files.h"

namespace restkv {
namespace {

using nlohmann::json;

constexpr size_t kMaxAroundText = 64;  // special tokens at one side

class JsonTokenizerReader {
 public:
  explicit JsonTokenizerReader(const json& root) : root_(root), model_(json_member(root, "model")) {}
  Result<std::shared_ptr<const Tokenizer>> read(const TokenizerSettings& settings);

 private:
  struct Entry {
    std::string_view text;  // in root_
    double score = 0;
    bool in_model = false;
    bool added = false, special = false, normalized = false;
  };
  Status read_entries();
  Status put(std::string_view text, const json& id, Entry** entry);
  Status build_vocabularies(const DecoderSteps& decoder);
  Status read_added_tokens();
  Status build_bpe();
  Status build_unigram();
  Status read_post_processor(const json& spec);
  Result<int32_t> unknown_id() const;

  const json& root_;
  const json& model_;
  bool is_bpe_ = true, byte_level_ = false, byte_fallback_ = false;
  size_t max_entries_ = 0;
  std::vector<Entry> entries_;  // [vocab]
  TokenizerParts parts_;
};

// Room for holes in the numbering, but none for an id that would fill the memory.
Status JsonTokenizerReader::put(std::string_view text, const json& id, Entry** entry) {
  const uint64_t limit = uint64_t{max_entries_} * 2 + 65536;
  if (!id.is_number_unsigned() || id.get<uint64_t>() >= limit) {
    return malformed_tokenizer("the id of token '" + std::string(text.substr(0, 40)) +
                               "' is not a number below " + std::to_string(limit));
  }
  const size_t index = id.get<size_t>();
  if (index >= entries_.size()) entries_.resize(index + 1);
  *entry = &entries_[index];
  const bool taken = (*entry)->in_model || (*entry)->added;
  if (taken && (*entry)->text != text) {
    return malformed_tokenizer("id " + std::to_string(index) + " is given to two tokens");
  }
  (*entry)->text = text;
  return {};
}

Status JsonTokenizerReader::read_entries() {
  const json& vocab = json_member(model_, "vocab");
  const json& added = json_member(root_, "added_tokens");
  max_entries_ = vocab.size() + added.size();
  Entry* entry = nullptr;
  if (is_bpe_) {
    if (!vocab.is_object()) return malformed_tokenizer("model.vocab is not an object");
    for (auto token = vocab.begin(); token != vocab.end(); ++token) {
      if (Status status = put(token.key(), token.value(), &entry); !status.ok()) return status;
      entry->in_model = true;
    }
  } else {
    if (!vocab.is_array()) return malformed_tokenizer("model.vocab is not a list");
    for (size_t id = 0; id < vocab.size(); ++id) {
      const json& pair = vocab[id];
      if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string() || !pair[1].is_number()) {
        return malformed_tokenizer("entry " + std::to_string(id) + " of model.vocab is not [token, score]");
      }
      if (Status status = put(pair[0].get_ref<const std::string&>(), json(id), &entry); !status.ok())
        return status;
      entry->in_model = true;
      entry->score = pair[1].get<double>();
    }
  }
  if (!added.is_array() && !added.is_null()) return malformed_tokenizer("added_tokens is not a list");
  for (const json& token : added) {
    const json& content = json_member(token, "content");
    if (!content.is_string()) return malformed_tokenizer("an added token without content");
    if (Status status = put(content.get_ref<const std::string&>(), json_member(token, "id"), &entry);
        !status.ok()) {
      return status;
    }
    entry->added = true;
    entry->special = json_flag(token, "special", false);
    entry->normalized = json_flag(token, "normalized", !entry->special) && !parts_.normalizer.empty();
  }
  if (entries_.empty()) return malformed_tokenizer("the vocabulary is empty");
  return {};
}

Status JsonTokenizerReader::build_vocabularies(const DecoderSteps& decoder) {
  auto shown = std::make_unique<Vocabulary>();
  auto model = std::make_unique<Vocabulary>();
  for (const Entry& entry : entries_) {
    const std::string text(entry.text);
    TokenType type = TokenType::kNormal;
    if (entry.added) type = entry.special ? TokenType::kControl : TokenType::kUserDefined;
    if (!entry.added && !entry.in_model) type = TokenType::kUnused;
    // A normalised added token is found, and decoded, as the normaliser leaves it.
    const std::string added = entry.normalized ? decoder.replaced(parts_.normalizer.apply(text)) : text;
    const std::string decoded = entry.added ? added : decoder.bytes_of(text);
    shown->add(text, decoder.puts_spaces_between ? " " + decoded : decoded, type);
    std::string bytes = text;
    TokenType model_type = entry.in_model && !entry.special ? TokenType::kNormal : TokenType::kUnused;
    if (byte_level_) {
      if (auto mapped = bytes_of_alphabet_text(text)) {
        bytes = std::move(*mapped);
      } else {
        model_type = TokenType::kUnused;
      }
    } else if (const int byte = byte_of_token(text); byte_fallback_ && byte >= 0) {
      bytes = std::string(1, static_cast<char>(byte));
      model_type = TokenType::kByte;
    }
    model->add(text, bytes, model_type);
  }
  parts_.vocabulary = std::move(shown);
  parts_.model_vocabulary = std::move(model);
  return {};
}

Status JsonTokenizerReader::read_added_tokens() {
  for (const json& spec : json_member(root_, "added_tokens")) {
    AddedToken token;
    token.id = json_member(spec, "id").get<int32_t>();
    token.text = json_text(spec, "content");
    token.special = json_flag(spec, "special", false);
    token.left_strip = json_flag(spec, "lstrip", false);
    token.right_strip = json_flag(spec, "rstrip", false);
    token.single_word = json_flag(spec, "single_word", false);
    const bool normalized = entries_[static_cast<size_t>(token.id)].normalized;
    if (normalized) token.text = parts_.normalizer.apply(token.text);
    (normalized ? parts_.added_normalized : parts_.added).add(std::move(token));
  }
  return {};
}

// The id of model.unk_token (BPE) or model.unk_id (Unigram); -1: none.
Result<int32_t> JsonTokenizerReader::unknown_id() const {
  if (!is_bpe_) {
    const json& id = json_member(model_, "unk_id");
    if (id.is_null()) return -1;
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= entries_.size()) {
      return malformed_tokenizer("model.unk_id is not a token");
    }
    return id.get<int32_t>();
  }
  const json& name = json_member(model_, "unk_token");
  if (!name.is_string()) return -1;
  for (size_t id = 0; id < entries_.size(); ++id) {
    if (entries_[id].text == name.get_ref<const std::string&>()) return static_cast<int32_t>(id);
  }
  return malformed_tokenizer("model.unk_token is not in the vocabulary");
}

Status JsonTokenizerReader::build_bpe() {
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!json_text(model_, key).empty()) return unimplemented(std::string("tokenizer.json: model.") + key);
  }
  const json& dropout = json_member(model_, "dropout");
  if (dropout.is_number() && dropout.get<double>() != 0)
    return unimplemented("tokenizer.json: model.dropout");
  const Result<int32_t> unknown = unknown_id();
  if (!unknown.ok()) return unknown.status();
  const Vocabulary& vocabulary = *parts_.model_vocabulary;
  BytesIndex ids_of_texts;
  ids_of_texts.reserve(entries_.size());
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    if (entries_[static_cast<size_t>(id)].in_model) ids_of_texts.insert(vocabulary.text(id), id);
  }
  BpeOptions options;
  options.byte_symbols = byte_level_;
  options.byte_fallback = byte_fallback_;
  options.ignore_merges = json_flag(model_, "ignore_merges", false);
  options.fuse_unknown = json_flag(model_, "fuse_unk", false);
  options.unknown_id = *unknown;
  auto model = std::make_unique<BpeModel>(vocabulary, options);
  const json& merges = json_member(model_, "merges");
  if (!merges.is_array()) return malformed_tokenizer("model.merges is not a list");
  size_t number = 0;
  for (const json& merge : merges) {
    std::string_view left, right;
    if (merge.is_string()) {
      const std::string_view both = merge.get_ref<const std::string&>();
      const size_t space = both.find(' ');
      if (space != both.npos && both.find(' ', space + 1) == both.npos) {
        left = both.substr(0, space);
        right = both.substr(space + 1);
      }
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      left = merge[0].get_ref<const std::string&>();
      right = merge[1].get_ref<const std::string&>();
    }
    if (left.empty() || right.empty())
      return malformed_tokenizer("merge " + std::to_string(number) + " is not two tokens");
    if (Status status = model->add_merge(left, right, ids_of_texts); !status.ok()) return status;
    ++number;
  }
  parts_.model = std::move(model);
  parts_.kind = byte_level_ ? "byte-level BPE (tokenizer.json)" : "BPE (tokenizer.json)";
  // Where unknown characters are dropped, a merge may cross the gap and so the cut.
  const bool drops_characters = *unknown < 0 && !byte_fallback_;
  if (!byte_level_ && !drops_characters && can_cut_before(vocabulary, kSpaceMark))
    parts_.pre_tokenizer.add_cut_before(kSpaceMark);
  return {};
}

Status JsonTokenizerReader::build_unigram() {
  const Result<int32_t> unknown = unknown_id();
  if (!unknown.ok()) return unknown.status();
  std::vector<double> scores;
  for (const Entry& entry : entries_) scores.push_back(entry.score);
  UnigramOptions options;
  options.unknown_id = *unknown;
  options.byte_fallback = byte_fallback_;
  options.single_precision = false;
  Result<std::unique_ptr<UnigramModel>> model = UnigramModel::make(*parts_.model_vocabulary, scores, options);
  if (!model.ok()) return model.status();
  parts_.model = std::move(model).value();
  parts_.kind = "unigram (tokenizer.json)";
  return {};
}

Status JsonTokenizerReader::read_post_processor(const json& spec) {
  if (spec.is_null()) return {};
  const std::string type = json_text(spec, "type");
  if (type == "ByteLevel") return {};
  if (type == "Sequence") {
    for (const json& entry : json_member(spec, "processors")) {
      if (Status status = read_post_processor(entry); !status.ok()) return status;
    }
    return {};
  }
  if (type != "TemplateProcessing") {
    return unimplemented("tokenizer.json: the post-processor '" + type + "' is not supported");
  }
  bool behind_text = false;
  for (const json& piece : json_member(spec, "single")) {
    const json& special = json_member(piece, "SpecialToken");
    if (special.is_null()) {
      behind_text = true;
      continue;
    }
    const json& known = json_member(spec, "special_tokens");
    const json& ids = json_member(json_member(known, json_text(special, "id").c_str()), "ids");
    if (!ids.is_array()) return malformed_tokenizer("the post-processor names a special token without ids");
    for (const json& id : ids) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() >= entries_.size()) {
        return malformed_tokenizer("the post-processor puts in a token that is not in the vocabulary");
      }
      std::vector<int32_t>& put_in = behind_text ? parts_.suffix_ids : parts_.prefix_ids;
      put_in.push_back(id.get<int32_t>());
      if (put_in.size() > kMaxAroundText) {
        return malformed_tokenizer("the post-processor puts more than " + std::to_string(kMaxAroundText) +
                                   " tokens before or behind a text");
      }
    }
  }
  return {};
}

Result<std::shared_ptr<const Tokenizer>> JsonTokenizerReader::read(const TokenizerSettings& settings) {
  const std::string type = json_text(model_, "type");
  is_bpe_ = type == "BPE" || (type.empty() && json_member(model_, "merges").is_array());
  if (!is_bpe_ && type != "Unigram") {
    return unimplemented("tokenizer.json: the model '" + type +
                         "' is not supported; these are: BPE, Unigram");
  }
  byte_fallback_ = json_flag(model_, "byte_fallback", false);
  if (Status status = add_normalizer(json_member(root_, "normalizer"), &parts_.normalizer); !status.ok())
    return status;
  if (Status status = read_entries(); !status.ok()) return status;
  const json& pre_tokenizer = json_member(root_, "pre_tokenizer");
  if (Status status = add_pre_tokenizer(pre_tokenizer, &parts_.pre_tokenizer, &byte_level_); !status.ok()) {
    return status;
  }
  DecoderSteps decoder;
  const json& decoder_spec = json_member(root_, "decoder");
  if (Status status = add_decoder(decoder_spec, &decoder); !status.ok()) return status;
  if (decoder_spec.is_null()) {
    decoder.puts_spaces_between = true;
    decoder.leading_spaces = LeadingSpaces::kOneGoes;
  }
  parts_.leading_spaces = decoder.leading_spaces;
  if (Status status = build_vocabularies(decoder); !status.ok()) return status;
  if (Status status = read_added_tokens(); !status.ok()) return status;
  if (Status status = is_bpe_ ? build_bpe() : build_unigram(); !status.ok()) return status;
  if (Status status = read_post_processor(json_member(root_, "post_processor")); !status.ok()) return status;
  for (const int32_t id : chat_end_ids(*parts_.vocabulary)) parts_.eos_ids.push_back(id);
  if (Status status = apply_settings(settings, &parts_); !status.ok()) return status;
  if (parts_.bos_id < 0 && !parts_.prefix_ids.empty()) parts_.bos_id = parts_.prefix_ids.front();
  return finish_tokenizer(std::move(parts_));
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> load_json_tokenizer(std::string_view bytes,
                                                             const TokenizerSettings& settings) {
  constexpr JsonLimits kLimits{.max_depth = 64, .max_keys = 8'000'000, .allow_nul = true};
  const Result<json> root = parse_json(bytes, kLimits);
  if (!root.ok()) return Status(root.status().code(), "tokenizer.json: " + root.status().message());
  return JsonTokenizerReader(*root).read(settings);
}

}  // namespace restkv

// Tokenizers from GGUF metadata: tokenizer.ggml.model "gpt2" is byte-level BPE with listed merges, "llama" is
// SentencePiece BPE with scores. What a file does not say is what llama.cpp assumes.
#include <string>
#include <utility>

#include "engine/model/gguf.h"
#include "engine/text/sentencepiece_bpe.h"
#include "engine/text/text_tokenizer.h"
#include "engine/text/utf8.h"

namespace restkv {
namespace {

constexpr const char* kPrefix = "tokenizer.ggml.";

class GgufVocabularyReader {
 public:
  explicit GgufVocabularyReader(const GgufFile& file) : file_(file) {}
  Result<std::shared_ptr<const Tokenizer>> read();

 private:
  Status read_vocabulary();
  Status read_special_ids();
  Status read_byte_level_bpe();
  Status read_sentencepiece();
  // A token id of the metadata; -1 where the key is missing.
  Result<int32_t> id_of(const std::string& key) const;
  Result<bool> flag(const std::string& key, bool otherwise) const;

  const GgufFile& file_;
  bool byte_level_ = true;
  std::vector<std::string_view> texts_;  // [vocab], in the mapping
  int32_t unknown_id_ = -1, eos_id_ = -1;
  bool adds_bos_ = false;  // where the file does not say
  TokenizerParts parts_;
};

Result<int32_t> GgufVocabularyReader::id_of(const std::string& key) const {
  const Result<std::optional<int64_t>> value = file_.get_int(kPrefix + key);
  if (!value.ok()) return value.status();
  if (!value->has_value()) return -1;
  const int64_t id = **value;
  if (!parts_.vocabulary->contains(id)) {
    return invalid_argument(kPrefix + key + " is " + std::to_string(id) + ", but the vocabulary has " +
                            std::to_string(parts_.vocabulary->size()) + " tokens");
  }
  return static_cast<int32_t>(id);
}

Result<bool> GgufVocabularyReader::flag(const std::string& key, bool otherwise) const {
  const Result<std::optional<bool>> value = file_.get_bool(kPrefix + key);
  if (!value.ok()) return value.status();
  return value->value_or(otherwise);
}

Status GgufVocabularyReader::read_vocabulary() {
  Result<std::vector<std::string_view>> texts = file_.get_strings("tokenizer.ggml.tokens");
  if (!texts.ok()) return texts.status();
  texts_ = std::move(texts).value();
  constexpr size_t kMaxTokens = 1 << 24;
  if (texts_.empty() || texts_.size() > kMaxTokens) {
    return invalid_argument("tokenizer.ggml.tokens has " + std::to_string(texts_.size()) +
                            " tokens; 1 to 16777216 are supported");
  }
  const Result<std::vector<int64_t>> types = file_.get_ints("tokenizer.ggml.token_type");
  if (!types.ok()) return types.status();
  if (!types->empty() && types->size() != texts_.size()) {
    return invalid_argument("tokenizer.ggml.token_type has " + std::to_string(types->size()) +
                            " entries for " + std::to_string(texts_.size()) + " tokens");
  }
  auto vocabulary = std::make_unique<Vocabulary>();
  size_t num_bytes = 0;
  for (const std::string_view text : texts_) num_bytes += text.size();
  vocabulary->reserve(texts_.size(), 2 * num_bytes);
  for (size_t id = 0; id < texts_.size(); ++id) {
    int64_t type = types->empty() ? 1 : (*types)[id];
    if (type == 0) type = static_cast<int64_t>(TokenType::kNormal);  // "undefined"
    if (type < 1 || type > 6) {
      return invalid_argument("token " + std::to_string(id) + " has the unknown type " +
                              std::to_string(type));
    }
    const TokenType token_type = static_cast<TokenType>(type);
    std::string bytes(texts_[id]);
    if (!byte_level_) {
      bytes = sentencepiece_bytes(texts_[id], token_type);
    } else if (token_type == TokenType::kNormal || token_type == TokenType::kUnused) {
      if (auto mapped = bytes_of_alphabet_text(texts_[id])) bytes = std::move(*mapped);
    }
    vocabulary->add(texts_[id], bytes, token_type);
  }
  parts_.vocabulary = std::move(vocabulary);
  return {};
}

Status GgufVocabularyReader::read_special_ids() {
  const Result<int32_t> bos = id_of("bos_token_id");
  if (!bos.ok()) return bos.status();
  parts_.bos_id = *bos;
  for (const char* key : {"eos_token_id", "eot_token_id", "eom_token_id"}) {
    const Result<int32_t> id = id_of(key);
    if (!id.ok()) return id.status();
    if (*id < 0) continue;
    parts_.eos_ids.push_back(*id);
    if (std::string_view(key) == "eos_token_id") eos_id_ = *id;
  }
  const Result<int32_t> unknown = id_of("unknown_token_id");
  if (!unknown.ok()) return unknown.status();
  unknown_id_ = *unknown;
  for (const int32_t id : chat_end_ids(*parts_.vocabulary)) parts_.eos_ids.push_back(id);
  add_special_tokens(*parts_.vocabulary, &parts_.added);
  add_user_defined_tokens(*parts_.vocabulary, &parts_.added);
  return {};
}

Status GgufVocabularyReader::read_byte_level_bpe() {
  const Result<std::optional<std::string_view>> name = file_.get_string("tokenizer.ggml.pre");
  if (!name.ok()) return name.status();
  const std::string pre(name->value_or("default"));
  Result<NamedPreTokenizer> named = named_pre_tokenizer(pre);
  if (!named.ok()) return named.status();
  parts_.pre_tokenizer = std::move(named->pre_tokenizer);
  adds_bos_ = named->adds_bos;
  parts_.kind = "byte-level BPE (" + pre + ")";
  BytesIndex ids_of_texts;
  ids_of_texts.reserve(texts_.size());
  for (size_t id = 0; id < texts_.size(); ++id) {
    if (!ids_of_texts.insert(texts_[id], static_cast<int32_t>(id))) {
      return invalid_argument("tokens " + std::to_string(ids_of_texts.find(texts_[id])) + " and " +
                              std::to_string(id) + " are written the same");
    }
  }
  BpeOptions options;
  options.ignore_merges = named->ignore_merges;
  options.unknown_id = unknown_id_;
  auto model = std::make_unique<BpeModel>(*parts_.vocabulary, options);
  const Result<std::vector<std::string_view>> merges = file_.get_strings("tokenizer.ggml.merges");
  if (!merges.ok()) return merges.status();
  if (merges->empty()) return invalid_argument("tokenizer.ggml.merges is missing or empty");
  for (size_t i = 0; i < merges->size(); ++i) {
    const std::string_view merge = (*merges)[i];
    const size_t space = merge.find(' ', 1);
    if (space == merge.npos || space + 1 == merge.size()) {
      return invalid_argument("merge " + std::to_string(i) + " is not two tokens with a space between them");
    }
    Status status = model->add_merge(merge.substr(0, space), merge.substr(space + 1), ids_of_texts);
    if (!status.ok()) return status;
  }
  parts_.model = std::move(model);
  return {};
}

Status GgufVocabularyReader::read_sentencepiece() {
  parts_.kind = "SentencePiece BPE";
  adds_bos_ = true;
  const GgufValue* value = file_.find("tokenizer.ggml.scores");
  if (value == nullptr) return invalid_argument("tokenizer.ggml.scores is missing");
  if (!value->is_array || (value->type != GgufType::kF32 && value->type != GgufType::kF64)) {
    return invalid_argument("tokenizer.ggml.scores is not an array of floating-point numbers");
  }
  const Result<std::vector<float>> scores = file_.get_floats("tokenizer.ggml.scores");
  if (!scores.ok()) return scores.status();
  if (scores->size() != texts_.size()) {
    return invalid_argument("tokenizer.ggml.scores has " + std::to_string(scores->size()) + " entries for " +
                            std::to_string(texts_.size()) + " tokens");
  }
  const Result<bool> space_prefix = flag("add_space_prefix", true);
  if (!space_prefix.ok()) return space_prefix.status();
  if (*space_prefix) {
    // In front of every stretch, also behind user-defined pieces: as llama.cpp, whose format this is.
    parts_.normalizer.add(prepend_step(" "));
    parts_.leading_spaces = LeadingSpaces::kOneGoes;
  }
  parts_.normalizer.add(replace_step(kSpaceMark, " "));
  if (can_cut_before(*parts_.vocabulary, " ")) parts_.pre_tokenizer.add_cut_before(" ");
  Result<std::unique_ptr<BpeModel>> model =
      make_sentencepiece_bpe(*parts_.vocabulary, *scores, unknown_id_, true);
  if (!model.ok()) return model.status();
  parts_.model = std::move(model).value();
  return {};
}

Result<std::shared_ptr<const Tokenizer>> GgufVocabularyReader::read() {
  const Result<std::optional<std::string_view>> kind = file_.get_string("tokenizer.ggml.model");
  if (!kind.ok()) return kind.status();
  if (!kind->has_value())
    return invalid_argument("the file has no tokenizer (tokenizer.ggml.model is missing)");
  if (**kind != "gpt2" && **kind != "llama") {
    return unimplemented("the tokenizer model '" + std::string(**kind) +
                         "' is not supported; these are: gpt2 (byte-level BPE), llama (SentencePiece BPE)");
  }
  byte_level_ = **kind == "gpt2";
  if (Status status = read_vocabulary(); !status.ok()) return status;
  if (Status status = read_special_ids(); !status.ok()) return status;
  if (Status status = byte_level_ ? read_byte_level_bpe() : read_sentencepiece(); !status.ok()) return status;
  const Result<bool> bos = flag("add_bos_token", adds_bos_);
  if (!bos.ok()) return bos.status();
  const Result<bool> eos = flag("add_eos_token", false);
  if (!eos.ok()) return eos.status();
  if (*bos && parts_.bos_id >= 0) parts_.prefix_ids.push_back(parts_.bos_id);
  if (*eos && eos_id_ >= 0) parts_.suffix_ids.push_back(eos_id_);
  return finish_tokenizer(std::move(parts_));
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> load_gguf_tokenizer(const GgufFile& file) {
  return GgufVocabularyReader(file).read();
}

}  // namespace restkv

// tokenizer.model: a protobuf ModelProto, read by hand. Fields (sentencepiece_model.proto): 1 pieces {1 text, 2 score,
// 3 type}, 2 trainer_spec {3 model_type, 24 space as suffix, 35 byte_fallback, 40-42 unk, bos, eos},
// 3 normalizer_spec {1 name, 2 character map, 3 add_dummy_prefix, 4 remove_extra_whitespaces, 5 escape_whitespaces}.
#include <cstring>
#include <string>
#include <utility>

#include "engine/text/added_token_files.h"
#include "engine/text/charsmap.h"
#include "engine/text/json_steps.h"
#include "engine/text/sentencepiece_bpe.h"
#include "engine/text/tokenizer_settings.h"
#include "engine/text/unigram_model.h"
#include "engine/text/vocabulary_files.h"

namespace restkv {
namespace {

// Goes over the fields of one message.
class ProtoReader {
 public:
  explicit ProtoReader(std::string_view bytes) : bytes_(bytes) {}

  // False at the end or at the first malformed byte (then ok() is false).
  bool next() {
    if (!ok_ || pos_ >= bytes_.size()) return false;
    uint64_t tag = 0;
    if (!varint(&tag)) return false;
    number_ = tag >> 3;
    wire_ = static_cast<int>(tag & 7);
    payload_ = {};
    value_ = 0;
    switch (wire_) {
      case 0: return varint(&value_);
      case 1: return take(8);
      case 2: {
        uint64_t length = 0;
        return varint(&length) && take(length);
      }
      case 5: return take(4);
      default: return ok_ = false;
    }
  }
  bool ok() const { return ok_; }
  bool is_bytes(uint64_t number) const { return number_ == number && wire_ == 2; }
  bool is_varint(uint64_t number) const { return number_ == number && wire_ == 0; }
  bool is_float(uint64_t number) const { return number_ == number && wire_ == 5; }
  std::string_view bytes() const { return payload_; }
  uint64_t value() const { return value_; }
  float as_float() const {
    float out = 0;
    std::memcpy(&out, payload_.data(), 4);
    return out;
  }

 private:
  bool varint(uint64_t* out) {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && pos_ < bytes_.size(); shift += 7) {
      const unsigned char byte = static_cast<unsigned char>(bytes_[pos_++]);
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) {
        *out = value;
        return true;
      }
    }
    return ok_ = false;
  }
  bool take(uint64_t length) {
    if (length > bytes_.size() - pos_) return ok_ = false;
    payload_ = bytes_.substr(pos_, length);
    pos_ += length;
    return true;
  }

  std::string_view bytes_, payload_;
  size_t pos_ = 0;
  uint64_t number_ = 0, value_ = 0;
  int wire_ = 0;
  bool ok_ = true;
};

constexpr uint64_t kUnigram = 1, kBpe = 2;

struct ModelProto {
  struct Piece {
    std::string_view text;
    float score = 0;
    uint64_t type = 1;
  };
  std::vector<Piece> pieces;
  uint64_t model_type = kUnigram;
  bool space_is_suffix = false, byte_fallback = false;
  int32_t unknown_id = 0, bos_id = 1, eos_id = 2;  // the proto's defaults
  std::string_view normalizer, chars_map;
  bool dummy_prefix = true, remove_extra_spaces = true, escape_spaces = true;
};

Status malformed() {
  return invalid_argument("the file is neither SentencePiece's ModelProto nor a rank file");
}

Result<ModelProto> parse_model(std::string_view bytes) {
  ModelProto model;
  ProtoReader fields(bytes);
  while (fields.next()) {
    ProtoReader inner(fields.bytes());
    if (fields.is_bytes(1)) {
      ModelProto::Piece piece;
      while (inner.next()) {
        if (inner.is_bytes(1)) piece.text = inner.bytes();
        if (inner.is_float(2)) piece.score = inner.as_float();
        if (inner.is_varint(3)) piece.type = inner.value();
      }
      if (piece.type < 1 || piece.type > 6) return malformed();
      model.pieces.push_back(piece);
    } else if (fields.is_bytes(2)) {
      while (inner.next()) {
        if (inner.is_varint(3)) model.model_type = inner.value();
        if (inner.is_varint(24)) model.space_is_suffix = inner.value() != 0;
        if (inner.is_varint(35)) model.byte_fallback = inner.value() != 0;
        if (inner.is_varint(40)) model.unknown_id = static_cast<int32_t>(inner.value());
        if (inner.is_varint(41)) model.bos_id = static_cast<int32_t>(inner.value());
        if (inner.is_varint(42)) model.eos_id = static_cast<int32_t>(inner.value());
      }
    } else if (fields.is_bytes(3)) {
      while (inner.next()) {
        if (inner.is_bytes(1)) model.normalizer = inner.bytes();
        if (inner.is_bytes(2)) model.chars_map = inner.bytes();
        if (inner.is_varint(3)) model.dummy_prefix = inner.value() != 0;
        if (inner.is_varint(4)) model.remove_extra_spaces = inner.value() != 0;
        if (inner.is_varint(5)) model.escape_spaces = inner.value() != 0;
      }
    }
    if (!inner.ok()) return malformed();
  }
  if (!fields.ok() || model.pieces.empty()) return malformed();
  return model;
}

// Runs of spaces become one.
std::string with_single_spaces(std::string text) {
  std::string out;
  for (const char c : text) {
    if (c != ' ' || out.empty() || out.back() != ' ') out += c;
  }
  return out;
}

// And none stays at the front.
std::string without_extra_spaces(std::string text) {
  text = with_single_spaces(std::move(text));
  return text.starts_with(' ') ? text.substr(1) : text;
}

std::string without_trailing_spaces(std::string text) {
  text.resize(text.find_last_not_of(' ') + 1);
  return text;
}

// Where the dummy prefix goes, as transformers' LlamaTokenizer reads tokenizer_config.json.
enum class PrefixRule : uint8_t {
  kEachStretch,  // between added tokens ("legacy": true, also where nothing is said); libsentencepiece's own way
  kStart,    // of a text alone; no stretch loses the space that it begins with, and a typed mark is a space
  kNowhere,  // else as kStart
};

PrefixRule prefix_rule(const nlohmann::json& config) {
  if (json_flag(config, "legacy", true)) return PrefixRule::kEachStretch;
  const auto prefix = config.find("add_prefix_space");
  return prefix == config.end() || *prefix == true ? PrefixRule::kStart : PrefixRule::kNowhere;
}

Status fill_normalizer(const ModelProto& model, PrefixRule prefix, TokenizerParts* parts) {
  if (model.space_is_suffix || !model.escape_spaces) {
    return unimplemented(
        "SentencePiece models with treat_whitespace_as_suffix or without escape_whitespaces");
  }
  const bool each_stretch = prefix == PrefixRule::kEachStretch;
  if (!each_stretch) parts->normalizer.add(replace_step(kSpaceMark, " "));
  if (model.dummy_prefix && prefix == PrefixRule::kStart)
    parts->normalizer.add_first(prepend_step(kSpaceMark));
  if (!model.chars_map.empty()) {
    Result<CharsMap> map = CharsMap::parse(model.chars_map);
    if (!map.ok()) return map.status();
    // User-defined pieces pass as they are.
    parts->normalizer.add([map = std::move(map).value(), pieces = parts->added_normalized](std::string text) {
      std::vector<AddedTokens::Part> stretches;
      pieces.split(text, AddedScope::kWithoutSpecial, &stretches);
      std::string out;
      for (const AddedTokens::Part& part : stretches)
        out += part.id < 0 ? map.apply(part.text) : std::string(part.text);
      return out;
    });
  } else if (!model.normalizer.empty() && model.normalizer != "identity") {
    return unimplemented("the normalizer '" + std::string(model.normalizer) + "' without its character map");
  }
  if (model.remove_extra_spaces)
    parts->normalizer.add(each_stretch ? without_extra_spaces : with_single_spaces);
  if (model.dummy_prefix && each_stretch) parts->normalizer.add(prepend_step(" "));
  if (model.dummy_prefix && prefix != PrefixRule::kNowhere) parts->leading_spaces = LeadingSpaces::kOneGoes;
  parts->normalizer.add(replace_step(kSpaceMark, " "));
  // Behind the rest: at the end of a text the mark itself counts as a space, and so does the dummy prefix.
  if (model.remove_extra_spaces) parts->normalizer.add(without_trailing_spaces);
  return {};
}

// [vocab]: what words are made of, and what there is with the added tokens (by id).
struct Vocabularies {
  std::unique_ptr<Vocabulary> pieces = std::make_unique<Vocabulary>(), all = std::make_unique<Vocabulary>();
};

Vocabularies make_vocabularies(const ModelProto& model, std::span<const AddedToken> added) {
  Vocabularies made;
  const auto added_type = [](const AddedToken& token) {
    return token.special ? TokenType::kControl : TokenType::kUserDefined;
  };
  for (const ModelProto::Piece& piece : model.pieces) {
    const auto type = static_cast<TokenType>(piece.type);
    TokenType in_words = type, in_all = type;
    if (!added.empty() && added.front().id == made.all->size()) {
      const bool is_text = type == TokenType::kNormal || type == TokenType::kUserDefined;
      if (is_text) in_all = added_type(added.front());
      if (in_all == TokenType::kControl) in_words = TokenType::kUnused;  // not of what users type
      added = added.subspan(1);
    }
    made.pieces->add(piece.text, sentencepiece_bytes(piece.text, in_words), in_words);
    made.all->add(piece.text, sentencepiece_bytes(piece.text, in_all), in_all);
  }
  for (const AddedToken& token : added) made.all->add(token.text, token.text, added_type(token));
  return made;
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> load_sentencepiece_tokenizer(std::string_view bytes,
                                                                      const TokenizerSettings& settings) {
  const Result<ModelProto> parsed = parse_model(bytes);
  if (!parsed.ok()) return parsed.status();
  const ModelProto& model = *parsed;
  if (model.model_type != kUnigram && model.model_type != kBpe) {
    return unimplemented("SentencePiece model type " + std::to_string(model.model_type) +
                         " is not supported; these are: 1 (unigram), 2 (BPE)");
  }
  const Result<nlohmann::json> config = parse_settings(settings.tokenizer_config, "tokenizer_config.json");
  if (!config.ok()) return config.status();
  std::vector<std::string_view> texts;
  std::vector<float> scores;
  for (const ModelProto::Piece& piece : model.pieces) {
    texts.push_back(piece.text);
    scores.push_back(piece.score);
  }
  const Result<std::vector<AddedToken>> added = read_added_tokens(texts, *config, settings);
  if (!added.ok()) return added.status();
  Vocabularies made = make_vocabularies(model, *added);
  const Vocabulary& pieces = *made.pieces;
  TokenizerParts parts;
  const auto id_or_none = [&](int32_t id) { return pieces.contains(id) ? id : -1; };
  parts.bos_id = id_or_none(model.bos_id);
  if (const int32_t eos = id_or_none(model.eos_id); eos >= 0) parts.eos_ids.push_back(eos);
  for (const int32_t id : chat_end_ids(*made.all)) parts.eos_ids.push_back(id);
  if (parts.bos_id >= 0) parts.prefix_ids.push_back(parts.bos_id);
  const int32_t unknown_id = id_or_none(model.unknown_id);
  for (AddedToken token : *added) {
    // A control piece is one of its own accord, whatever a file says of it: users do not type it.
    const TokenType type = made.all->type(token.id);
    token.special |= type == TokenType::kControl || type == TokenType::kUnknown;
    parts.added.add(std::move(token));
  }
  add_special_tokens(pieces, &parts.added);
  add_user_defined_tokens(pieces, &parts.added_normalized);
  if (Status status = fill_normalizer(model, prefix_rule(*config), &parts); !status.ok()) return status;
  if (model.model_type == kBpe) {
    parts.kind = "SentencePiece BPE";
    if (can_cut_before(pieces, " ")) parts.pre_tokenizer.add_cut_before(" ");
    Result<std::unique_ptr<BpeModel>> bpe =
        make_sentencepiece_bpe(pieces, scores, unknown_id, model.byte_fallback);
    if (!bpe.ok()) return bpe.status();
    parts.model = std::move(bpe).value();
  } else {
    parts.kind = "SentencePiece unigram";
    UnigramOptions options;
    options.unknown_id = unknown_id;
    options.byte_fallback = model.byte_fallback;
    const std::vector<double> wide(scores.begin(), scores.end());
    Result<std::unique_ptr<UnigramModel>> unigram = UnigramModel::make(pieces, wide, options);
    if (!unigram.ok()) return unigram.status();
    parts.model = std::move(unigram).value();
  }
  parts.vocabulary = std::move(made.all);
  parts.model_vocabulary = std::move(made.pieces);
  if (Status status = apply_settings(settings, &parts); !status.ok()) return status;
  return finish_tokenizer(std::move(parts));
}

}  // namespace restkv

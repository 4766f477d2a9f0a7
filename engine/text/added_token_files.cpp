// One list of ids and texts for both kinds of file, each of them once.
#include "engine/text/added_token_files.h"

#include <array>
#include <charconv>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "engine/text/json_steps.h"
#include "engine/text/tokenizer_settings.h"
#include "engine/text/utf8.h"

namespace restkv {
namespace {

using nlohmann::json;

constexpr const char* kConfig = "tokenizer_config.json: added_tokens_decoder";
constexpr const char* kFile = "added_tokens.json";
constexpr size_t kMaxAdded = 65536;  // beyond the pieces

Status malformed(const char* where, const std::string& what) {
  return invalid_argument(std::string(where) + ": " + what);
}

// "32000", as json writes a number.
bool read_id(const std::string& key, size_t* id) {
  const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), *id);
  return error == std::errc() && std::to_string(*id) == key;
}

class AddedTokenReader {
 public:
  explicit AddedTokenReader(std::span<const std::string_view> pieces) : pieces_(pieces) {
    ids_of_pieces_.reserve(pieces.size());
    for (size_t id = 0; id < pieces.size(); ++id) {
      if (!pieces[id].empty()) ids_of_pieces_.insert(pieces[id], static_cast<int32_t>(id));
    }
  }

  Status read_decoder(const json& decoder);
  Status read_file(const json& file, const std::set<std::string>& special);
  // Nothing that the two say apart.
  Status compare(const json& file) const;
  // Pieces are tokens of their own where a file calls them special.
  void add_special_pieces(const std::set<std::string>& special);
  Result<std::vector<AddedToken>> finish();

 private:
  Status add(AddedToken token, size_t id, const char* where);

  std::span<const std::string_view> pieces_;
  BytesIndex ids_of_pieces_;
  std::map<size_t, AddedToken> tokens_;
  std::map<std::string, size_t, std::less<>> ids_;  // of tokens_
};

Status AddedTokenReader::add(AddedToken token, size_t id, const char* where) {
  const size_t limit = pieces_.size() + kMaxAdded;
  if (token.text.empty()) return malformed(where, "token " + std::to_string(id) + " has no text");
  if (id >= limit) {
    return malformed(where, "the id of " + in_quotes(token.text) + " is not a number below " +
                                std::to_string(limit) + ", the pieces of tokenizer.model and " +
                                std::to_string(kMaxAdded) + " more");
  }
  if (id < pieces_.size() && pieces_[id] != token.text) {
    return malformed(where, in_quotes(token.text) + " has id " + std::to_string(id) +
                                ", which in tokenizer.model is " + in_quotes(pieces_[id]));
  }
  if (const int32_t piece = ids_of_pieces_.find(token.text); id >= pieces_.size() && piece >= 0) {
    return malformed(where, in_quotes(token.text) + " has id " + std::to_string(id) +
                                ", but in tokenizer.model it is piece " + std::to_string(piece));
  }
  if (const auto other = tokens_.find(id); other != tokens_.end()) {
    return malformed(where, "id " + std::to_string(id) + " is given to two tokens, " +
                                in_quotes(other->second.text) + " and " + in_quotes(token.text));
  }
  if (const auto [other, is_new] = ids_.emplace(token.text, id); !is_new) {
    return malformed(where, in_quotes(token.text) + " has two ids, " + std::to_string(other->second) +
                                " and " + std::to_string(id));
  }
  token.id = static_cast<int32_t>(id);
  tokens_.emplace(id, std::move(token));
  return {};
}

Status AddedTokenReader::read_decoder(const json& decoder) {
  if (!decoder.is_object()) return malformed(kConfig, "is not an object");
  for (auto entry = decoder.begin(); entry != decoder.end(); ++entry) {
    size_t id = 0;
    if (!read_id(entry.key(), &id)) return malformed(kConfig, in_quotes(entry.key()) + " is not a token id");
    AddedToken token;
    token.text = json_text(*entry, "content");
    token.special = json_flag(*entry, "special", false);
    token.left_strip = json_flag(*entry, "lstrip", false);
    token.right_strip = json_flag(*entry, "rstrip", false);
    token.single_word = json_flag(*entry, "single_word", false);
    if (Status status = add(std::move(token), id, kConfig); !status.ok()) return status;
  }
  return {};
}

Status AddedTokenReader::read_file(const json& file, const std::set<std::string>& special) {
  for (auto entry = file.begin(); entry != file.end(); ++entry) {
    if (!entry->is_number_unsigned())
      return malformed(kFile, "the id of " + in_quotes(entry.key()) + " is not a number");
    AddedToken token;
    token.text = entry.key();
    token.special = special.contains(entry.key());
    if (Status status = add(std::move(token), entry->get<size_t>(), kFile); !status.ok()) return status;
  }
  return {};
}

Status AddedTokenReader::compare(const json& file) const {
  for (auto entry = file.begin(); entry != file.end(); ++entry) {
    const auto here = ids_.find(entry.key());
    if (here != ids_.end() && *entry == here->second) continue;
    return malformed(kFile, in_quotes(entry.key()) +
                                " is not the same in added_tokens_decoder of "
                                "tokenizer_config.json; one of the two is of another model");
  }
  return {};
}

void AddedTokenReader::add_special_pieces(const std::set<std::string>& special) {
  for (const std::string& text : special) {
    const int32_t piece = ids_of_pieces_.find(text);
    if (text.empty() || piece < 0 || !ids_.emplace(text, piece).second) continue;
    AddedToken& token = tokens_[static_cast<size_t>(piece)];
    token.id = piece;
    token.text = text;
  }
}

Result<std::vector<AddedToken>> AddedTokenReader::finish() {
  std::vector<AddedToken> tokens;
  size_t next = pieces_.size();
  for (auto& [id, token] : tokens_) {
    if (id >= pieces_.size() && id != next++) {
      return invalid_argument("added tokens: " + in_quotes(token.text) + " has id " + std::to_string(id) +
                              ", but there is no token " + std::to_string(next - 1) +
                              "; tokenizer.model has " + std::to_string(pieces_.size()) +
                              " pieces, and added tokens follow them without a hole");
    }
    tokens.push_back(std::move(token));
  }
  return tokens;
}

// The texts that a file names as special tokens.
void add_names(const json& config, std::set<std::string>* names) {
  constexpr std::array<const char*, 7> kKeys = {"bos_token", "eos_token", "unk_token", "sep_token",
                                                "pad_token", "cls_token", "mask_token"};
  for (const char* key : kKeys) {
    if (auto name = token_name(json_member(config, key))) names->insert(std::move(*name));
  }
  const json& more = json_member(config, "additional_special_tokens");
  if (!more.is_array()) return;
  for (const json& entry : more) {
    if (auto name = token_name(entry)) names->insert(std::move(*name));
  }
}

}  // namespace

Result<std::vector<AddedToken>> read_added_tokens(std::span<const std::string_view> pieces,
                                                  const json& config, const TokenizerSettings& settings) {
  const Result<json> map = parse_settings(settings.special_tokens_map, "special_tokens_map.json");
  if (!map.ok()) return map.status();
  const Result<json> file = parse_settings(settings.added_tokens, kFile);
  if (!file.ok()) return file.status();
  const json& decoder = json_member(config, "added_tokens_decoder");
  std::set<std::string> special;
  add_names(config, &special);
  if (decoder.is_null()) add_names(*map, &special);
  AddedTokenReader reader(pieces);
  Status status = decoder.is_null() ? reader.read_file(*file, special) : reader.read_decoder(decoder);
  if (status.ok() && !decoder.is_null()) status = reader.compare(*file);
  if (!status.ok()) return status;
  reader.add_special_pieces(special);
  return reader.finish();
}

}  // namespace restkv

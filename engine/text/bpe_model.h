// Byte-pair encoding: a word starts as one symbol per byte or character; the adjacent pair of lowest rank (the leftmost
// of equals) becomes one symbol, until no pair has a rank. n log n in the length of the word.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "engine/text/flat_map.h"
#include "engine/text/subword_model.h"
#include "engine/text/vocabulary.h"
#include "kernels/base/status.h"

namespace restkv {

struct BpeOptions {
  bool byte_symbols = true;    // symbols start as bytes; else as characters
  bool ignore_merges = false;  // a word that is a token is that token, whatever the merges
  bool byte_fallback = false;  // a character that is no token becomes its bytes' tokens <0x00>..<0xFF>
  bool fuse_unknown = false;   // neighbouring unknown characters are one unknown token
  int32_t unknown_id = -1;     // -1: unknown characters are dropped
};

class BpeModel : public SubwordModel {
 public:
  // `vocabulary` must outlive the model and not change any more.
  BpeModel(const Vocabulary& vocabulary, const BpeOptions& options);

  // Merges as listed in a file: "left right", the earlier the stronger. `texts` maps the tokens as written to ids.
  Status add_merge(std::string_view left, std::string_view right, const BytesIndex& texts);
  // Merges of a vocabulary that has none listed (SentencePiece, tiktoken): every pair of tokens whose bytes together are
  // a token. rank_of(id): lower merges first, equal ranks from the left.
  Status derive_merges(const std::function<uint32_t(int32_t)>& rank_of);

  void encode(std::string_view word, std::vector<int32_t>* ids) const override;

 private:
  bool encodes_to_itself(int32_t id) const;
  void encode_symbols(std::string_view word, std::vector<int32_t>* ids) const;
  void merge_short(int32_t* symbols, size_t* count) const;
  void merge_long(std::vector<int32_t>* symbols) const;

  const Vocabulary& vocabulary_;
  BpeOptions options_;
  BytesIndex pieces_;                  // bytes -> id of the normal tokens
  std::array<int32_t, 256> byte_ids_;  // symbol of each byte; -1: none
  PairMap merges_;                     // (left id, right id) -> rank << 32 | id
  uint32_t next_rank_ = 0;
  enum : uint8_t { kNotKnown, kItself, kOther };
  mutable std::vector<std::atomic<uint8_t>> self_;  // [vocab], found out when first asked
};

}  // namespace restkv

// Unigram language model: of all ways to cut a word into pieces, the one with the highest sum of scores (Viterbi).
// Time is the length of the word times the length of the longest piece.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <vector>

#include "engine/text/flat_map.h"
#include "engine/text/subword_model.h"
#include "engine/text/vocabulary.h"
#include "kernels/base/status.h"

namespace restkv {

struct UnigramOptions {
  int32_t unknown_id = -1;       // -1: unknown characters are dropped
  bool byte_fallback = false;    // an unknown character becomes its bytes' tokens
  bool single_precision = true;  // sums in f32, as SentencePiece; else f64
};

class UnigramModel : public SubwordModel {
 public:
  // scores: [vocab], no NaN.
  static Result<std::unique_ptr<UnigramModel>> make(const Vocabulary& vocabulary,
                                                    std::span<const double> scores,
                                                    const UnigramOptions& options);
  void encode(std::string_view word, std::vector<int32_t>* ids) const override;

 private:
  explicit UnigramModel(const UnigramOptions& options) : options_(options) { byte_ids_.fill(-1); }
  UnigramOptions options_;
  ByteTrie trie_;               // pieces -> id
  std::vector<double> scores_;  // [vocab]
  double unknown_score_ = 0;
  std::array<int32_t, 256> byte_ids_;  // -1: none
};

}  // namespace restkv

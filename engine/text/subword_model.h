// A word -> ids. The two kinds of vocabulary: BPE (bpe_model.h) and unigram (unigram_model.h).
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace restkv {

class SubwordModel {
 public:
  virtual ~SubwordModel() = default;
  // Puts the ids of `word` (any bytes, not empty) behind `ids`. Thread-safe.
  virtual void encode(std::string_view word, std::vector<int32_t>* ids) const = 0;
};

}  // namespace restkv

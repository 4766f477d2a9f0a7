// Equal scores share a rank, so that the leftmost of equal pairs merges first.
#include "engine/text/sentencepiece_bpe.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

namespace restkv {

std::string sentencepiece_bytes(std::string_view piece, TokenType type) {
  if (type == TokenType::kByte) {
    const int byte = byte_of_token(piece);
    return byte < 0 ? std::string(piece) : std::string(1, static_cast<char>(byte));
  }
  if (type == TokenType::kControl || type == TokenType::kUnknown) return std::string(piece);
  return replace_all(piece, kSpaceMark, " ");
}

Result<std::unique_ptr<BpeModel>> make_sentencepiece_bpe(const Vocabulary& vocabulary,
                                                         std::span<const float> scores, int32_t unknown_id,
                                                         bool byte_fallback) {
  CHECK(scores.size() == static_cast<size_t>(vocabulary.size()));
  std::vector<uint32_t> order(scores.size()), rank(scores.size());
  for (size_t id = 0; id < scores.size(); ++id) {
    if (std::isnan(scores[id]))
      return invalid_argument("the score of token " + std::to_string(id) + " is NaN");
  }
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return scores[a] > scores[b]; });
  for (size_t i = 1; i < order.size(); ++i) {
    rank[order[i]] = rank[order[i - 1]] + (scores[order[i]] < scores[order[i - 1]] ? 1 : 0);
  }
  BpeOptions options;
  options.byte_symbols = false;
  options.byte_fallback = byte_fallback;
  options.unknown_id = unknown_id;
  options.fuse_unknown = true;
  auto model = std::make_unique<BpeModel>(vocabulary, options);
  Status status = model->derive_merges([&](int32_t id) { return rank[static_cast<size_t>(id)]; });
  if (!status.ok()) return status;
  return model;
}

}  // namespace restkv

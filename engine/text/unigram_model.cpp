// Kudo 2018, section 3. A character that no piece begins with costs the lowest score and ten more; neighbours that stay
// unknown are one token.
#include "engine/text/unigram_model.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "engine/text/utf8.h"

namespace restkv {
namespace {

constexpr size_t kMaxPieceBytes = 512;
constexpr double kUnknownPenalty = 10;

}  // namespace

Result<std::unique_ptr<UnigramModel>> UnigramModel::make(const Vocabulary& vocabulary,
                                                         std::span<const double> scores,
                                                         const UnigramOptions& options) {
  CHECK(scores.size() == static_cast<size_t>(vocabulary.size()));
  std::unique_ptr<UnigramModel> model(new UnigramModel(options));
  model->scores_.assign(scores.begin(), scores.end());
  double lowest = 0;
  bool any = false;
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    const double score = scores[static_cast<size_t>(id)];
    if (!std::isfinite(score))
      return invalid_argument("the score of token " + std::to_string(id) + " is not finite");
    const std::string_view bytes = vocabulary.bytes(id);
    const TokenType type = vocabulary.type(id);
    if (type == TokenType::kByte && bytes.size() == 1) {
      model->byte_ids_[static_cast<unsigned char>(bytes[0])] = id;
    }
    if (type != TokenType::kNormal || bytes.empty()) continue;
    if (bytes.size() > kMaxPieceBytes) {
      return invalid_argument("token " + std::to_string(id) + " has " + std::to_string(bytes.size()) +
                              " bytes; at most 512 are supported");
    }
    model->trie_.insert(bytes, id);
    lowest = any ? std::min(lowest, score) : score;
    any = true;
  }
  model->unknown_score_ = lowest - kUnknownPenalty;
  if (options.single_precision) model->unknown_score_ = static_cast<float>(model->unknown_score_);
  return model;
}

void UnigramModel::encode(std::string_view word, std::vector<int32_t>* ids) const {
  struct Best {
    double score = 0;
    uint32_t begin = ~uint32_t{0};  // of the piece that ends here; ~0: not reached
    int32_t id = -1;                // -1: an unknown character
  };
  std::vector<Best> best(word.size() + 1);  // [bytes + 1], by where a piece ends
  best[0].begin = 0;
  const auto offer = [&](size_t begin, size_t end, int32_t id, double score) {
    double sum = best[begin].score + score;
    if (options_.single_precision) sum = static_cast<float>(sum);
    Best& at = best[end];
    if (at.begin == ~uint32_t{0} || sum > at.score) at = {sum, static_cast<uint32_t>(begin), id};
  };
  for (size_t begin = 0; begin < word.size();) {
    const size_t length = utf8_step(word, begin);
    bool has_single = false;
    uint32_t node = 0;
    for (size_t end = begin; end < word.size();) {
      node = trie_.step(node, static_cast<unsigned char>(word[end]));
      if (node == ByteTrie::kNoNode) break;
      ++end;
      const int32_t id = trie_.value(node);
      if (id < 0) continue;
      offer(begin, end, id, scores_[static_cast<size_t>(id)]);
      has_single |= end == begin + length;
    }
    if (!has_single) offer(begin, begin + length, -1, unknown_score_);
    begin += length;
  }
  struct Piece {
    size_t begin, end;
    int32_t id;
  };
  std::vector<Piece> path;
  for (size_t end = word.size(); end > 0; end = best[end].begin)
    path.push_back({best[end].begin, end, best[end].id});
  std::reverse(path.begin(), path.end());
  bool last_unknown = false;
  for (const Piece& piece : path) {
    if (piece.id >= 0) {
      ids->push_back(piece.id);
      last_unknown = false;
      continue;
    }
    const std::string_view bytes = word.substr(piece.begin, piece.end - piece.begin);
    const bool as_bytes = options_.byte_fallback && std::all_of(bytes.begin(), bytes.end(), [&](char c) {
                            return byte_ids_[static_cast<unsigned char>(c)] >= 0;
                          });
    if (as_bytes) {
      for (const char c : bytes) ids->push_back(byte_ids_[static_cast<unsigned char>(c)]);
    } else if (options_.unknown_id >= 0 && !last_unknown) {
      ids->push_back(options_.unknown_id);
    }
    last_unknown = !as_bytes;
  }
}

}  // namespace restkv

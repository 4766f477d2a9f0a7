// Most words of a text are one token; whether the merges agree is remembered per token, so that they cost one lookup.
// Other words: up to kShortWord symbols a scan over the ranks for each merge, beyond that a heap and a linked list.
#include "engine/text/bpe_model.h"

#include <algorithm>
#include <queue>
#include <string>

#include "engine/text/utf8.h"

namespace restkv {
namespace {

constexpr size_t kShortWord = 32;
constexpr size_t kMaxDerivedBytes = 1024;

std::string quoted(std::string_view text) {
  constexpr size_t kShown = 40;
  std::string out = "'" + std::string(text.substr(0, kShown));
  return out + (text.size() > kShown ? "...'" : "'");
}

}  // namespace

BpeModel::BpeModel(const Vocabulary& vocabulary, const BpeOptions& options)
    : vocabulary_(vocabulary), options_(options), self_(static_cast<size_t>(vocabulary.size())) {
  pieces_.reserve(static_cast<size_t>(vocabulary.size()));
  byte_ids_.fill(-1);
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    const TokenType type = vocabulary.type(id);
    const std::string_view bytes = vocabulary.bytes(id);
    if (type == TokenType::kByte) {
      if (bytes.size() == 1 && options.byte_fallback) byte_ids_[static_cast<unsigned char>(bytes[0])] = id;
    } else if (type == TokenType::kNormal && !bytes.empty()) {
      pieces_.insert(bytes, id);
      if (options.byte_symbols && bytes.size() == 1) byte_ids_[static_cast<unsigned char>(bytes[0])] = id;
    }
  }
}

Status BpeModel::add_merge(std::string_view left, std::string_view right, const BytesIndex& texts) {
  const uint32_t rank = next_rank_++;
  const auto absent = [&](std::string_view text) {
    return invalid_argument("merge " + std::to_string(rank) + " (" + quoted(left) + " + " + quoted(right) +
                            ") needs the token " + quoted(text) + ", which is not in the vocabulary");
  };
  const int32_t left_id = texts.find(left), right_id = texts.find(right);
  if (left.empty() || left_id < 0) return absent(left);
  if (right.empty() || right_id < 0) return absent(right);
  const std::string whole = std::string(left) + std::string(right);
  const int32_t id = texts.find(whole);
  if (id < 0) return absent(whole);
  merges_.insert(static_cast<uint32_t>(left_id), static_cast<uint32_t>(right_id),
                 uint64_t{rank} << 32 | static_cast<uint32_t>(id));
  return {};
}

Status BpeModel::derive_merges(const std::function<uint32_t(int32_t)>& rank_of) {
  for (int32_t id = 0; id < vocabulary_.size(); ++id) {
    const std::string_view bytes = vocabulary_.bytes(id);
    if (vocabulary_.type(id) != TokenType::kNormal) continue;
    if (bytes.size() > kMaxDerivedBytes) {
      return invalid_argument("token " + std::to_string(id) + " has " + std::to_string(bytes.size()) +
                              " bytes; at most 1024 are supported");
    }
    if (pieces_.find(bytes) != id) continue;  // empty, or a second token of the same bytes
    const uint64_t value = uint64_t{rank_of(id)} << 32 | static_cast<uint32_t>(id);
    for (size_t cut = 1; cut < bytes.size(); ++cut) {
      const int32_t left = pieces_.find(bytes.substr(0, cut));
      if (left < 0) continue;
      const int32_t right = pieces_.find(bytes.substr(cut));
      if (right >= 0) merges_.insert(static_cast<uint32_t>(left), static_cast<uint32_t>(right), value);
    }
  }
  return {};
}

void BpeModel::encode(std::string_view word, std::vector<int32_t>* ids) const {
  const int32_t whole = pieces_.find(word);
  if (whole >= 0 && (options_.ignore_merges || encodes_to_itself(whole))) {
    ids->push_back(whole);
    return;
  }
  encode_symbols(word, ids);
}

bool BpeModel::encodes_to_itself(int32_t id) const {
  std::atomic<uint8_t>& known = self_[static_cast<size_t>(id)];
  uint8_t state = known.load(std::memory_order_relaxed);
  if (state == kNotKnown) {
    std::vector<int32_t> ids;
    encode_symbols(vocabulary_.bytes(id), &ids);
    state = ids.size() == 1 && ids[0] == id ? kItself : kOther;
    known.store(state, std::memory_order_relaxed);
  }
  return state == kItself;
}

void BpeModel::encode_symbols(std::string_view word, std::vector<int32_t>* ids) const {
  int32_t short_symbols[kShortWord];
  std::vector<int32_t> long_symbols;
  size_t count = 0;
  const bool is_short = word.size() <= kShortWord;
  if (!is_short) long_symbols.reserve(word.size());
  const auto push = [&](int32_t id) {
    if (is_short) {
      short_symbols[count++] = id;
    } else {
      long_symbols.push_back(id);
    }
  };
  // As in `tokenizers`: a character that is no token waits, so that further ones can join it, and the bytes of others
  // that fall back go before it.
  bool has_unknown = false;
  const auto flush_unknown = [&] {
    if (has_unknown) push(options_.unknown_id);
    has_unknown = false;
  };
  for (size_t pos = 0; pos < word.size();) {
    const size_t length = options_.byte_symbols ? 1 : utf8_step(word, pos);
    int32_t id = options_.byte_symbols ? byte_ids_[static_cast<unsigned char>(word[pos])]
                                       : pieces_.find(word.substr(pos, length));
    if (id >= 0) {
      flush_unknown();
      push(id);
    } else {
      bool has_bytes = options_.byte_fallback;
      for (size_t i = 0; i < length && has_bytes; ++i) {
        has_bytes = byte_ids_[static_cast<unsigned char>(word[pos + i])] >= 0;
      }
      if (has_bytes) {
        for (size_t i = 0; i < length; ++i) push(byte_ids_[static_cast<unsigned char>(word[pos + i])]);
      } else if (options_.unknown_id >= 0) {
        if (!options_.fuse_unknown) flush_unknown();
        has_unknown = true;
      }
    }
    pos += length;
  }
  flush_unknown();
  if (is_short) {
    merge_short(short_symbols, &count);
    ids->insert(ids->end(), short_symbols, short_symbols + count);
  } else {
    merge_long(&long_symbols);
    ids->insert(ids->end(), long_symbols.begin(), long_symbols.end());
  }
}

void BpeModel::merge_short(int32_t* symbols, size_t* count) const {
  uint64_t values[kShortWord];  // of the pair (i, i + 1): rank << 32 | id
  size_t n = *count;
  const auto value_at = [&](size_t i) {
    return merges_.find(static_cast<uint32_t>(symbols[i]), static_cast<uint32_t>(symbols[i + 1]));
  };
  for (size_t i = 0; i + 1 < n; ++i) values[i] = value_at(i);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) {
      if (values[i] >> 32 < values[best] >> 32) best = i;
    }
    if (values[best] == PairMap::kNone) break;
    symbols[best] = static_cast<int32_t>(values[best] & 0xFFFFFFFFu);
    std::copy(symbols + best + 2, symbols + n, symbols + best + 1);
    if (best + 2 < n) std::copy(values + best + 2, values + n - 1, values + best + 1);
    --n;
    if (best + 1 < n) values[best] = value_at(best);
    if (best > 0) values[best - 1] = value_at(best - 1);
  }
  *count = n;
}

void BpeModel::merge_long(std::vector<int32_t>* symbols) const {
  struct Candidate {
    uint64_t value;  // rank << 32 | id
    uint32_t pos;
    int32_t left, right;  // what the two symbols were when this was pushed
    bool operator>(const Candidate& other) const {
      const uint64_t rank = value >> 32, other_rank = other.value >> 32;
      return rank != other_rank ? rank > other_rank : pos > other.pos;
    }
  };
  constexpr uint32_t kEnd = ~uint32_t{0};
  std::vector<int32_t>& ids = *symbols;
  const uint32_t n = static_cast<uint32_t>(ids.size());
  std::vector<uint32_t> prev(n), next(n);
  std::vector<Candidate> heap;
  heap.reserve(n);
  const auto candidate = [&](uint32_t pos, Candidate* out) {
    const int32_t left = ids[pos], right = ids[next[pos]];
    const uint64_t value = merges_.find(static_cast<uint32_t>(left), static_cast<uint32_t>(right));
    *out = {value, pos, left, right};
    return value != PairMap::kNone;
  };
  for (uint32_t i = 0; i < n; ++i) {
    prev[i] = i == 0 ? kEnd : i - 1;
    next[i] = i + 1 == n ? kEnd : i + 1;
  }
  Candidate found;
  for (uint32_t i = 0; i + 1 < n; ++i) {
    if (candidate(i, &found)) heap.push_back(found);
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(std::greater<>(),
                                                                               std::move(heap));
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    // A symbol that was merged away holds -1; one that changed or lost its neighbour no longer fits.
    if (ids[best.pos] != best.left || next[best.pos] == kEnd || ids[next[best.pos]] != best.right) continue;
    const uint32_t gone = next[best.pos];
    ids[best.pos] = static_cast<int32_t>(best.value & 0xFFFFFFFFu);
    ids[gone] = -1;
    next[best.pos] = next[gone];
    if (next[gone] != kEnd) prev[next[gone]] = best.pos;
    if (next[best.pos] != kEnd && candidate(best.pos, &found)) queue.push(found);
    if (prev[best.pos] != kEnd && candidate(prev[best.pos], &found)) queue.push(found);
  }
  std::erase(ids, -1);
}

}  // namespace restkv

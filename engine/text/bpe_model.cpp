// Most words of a text are one token; whether the merges agree is remembered per token, so that they cost one lookup.
// Other words: up to kShortWord symbols a scan over the ranks for each merge, beyond that a heap and a linked list.
#include "engine/text/bpe_model.h"

#include <algorithm>
#include <array>
#include <queue>
#include <string>
#include <utility>

#include "engine/text/utf8.h"

namespace restkv {
namespace {

constexpr size_t kShortWord = 32;
constexpr size_t kMaxDerivedBytes = 1024;

// By the upper halves, which are few different ones of many; stable.
void sort_by_rank(std::vector<uint64_t>* keys) {
  constexpr int kBits = 11;
  constexpr size_t kFew = 4096;
  if (keys->size() < kFew) {
    std::sort(keys->begin(), keys->end());  // equal ranks by position, as they came
    return;
  }
  uint64_t all = 0;
  for (const uint64_t key : *keys) all |= key;
  std::vector<uint64_t> sorted(keys->size());
  for (int shift = 32; shift < 64 && all >> shift != 0; shift += kBits) {
    std::array<size_t, size_t{1} << kBits> begins{};
    const auto digit = [shift](uint64_t key) { return key >> shift & ((uint64_t{1} << kBits) - 1); };
    for (const uint64_t key : *keys) ++begins[digit(key)];
    size_t begin = 0;
    for (size_t& count : begins) begin += std::exchange(count, begin);
    for (const uint64_t key : *keys) sorted[begins[digit(key)]++] = key;
    keys->swap(sorted);
  }
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
    return invalid_argument("merge " + std::to_string(rank) + " (" + in_quotes(left) + " + " +
                            in_quotes(right) + ") needs the token " + in_quotes(text) +
                            ", which is not in the vocabulary");
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

// Of the pairs that the word begins with most merge, so they are sorted once; those that come up later wait in a heap, which stays
// small. A key is rank << 32 | position, and is stale where the pair at its position has another rank by now.
void BpeModel::merge_long(std::vector<int32_t>* symbols) const {
  constexpr uint32_t kEnd = ~uint32_t{0};
  std::vector<int32_t>& ids = *symbols;
  const auto n = static_cast<uint32_t>(ids.size());
  std::vector<uint32_t> prev(n), next(n);
  std::vector<uint64_t> values(n, PairMap::kNone);  // of the pair (i, next[i]): rank << 32 | id
  const auto find = [&](uint32_t pos) {
    values[pos] = next[pos] == kEnd
                      ? PairMap::kNone
                      : merges_.find(static_cast<uint32_t>(ids[pos]), static_cast<uint32_t>(ids[next[pos]]));
    return values[pos] != PairMap::kNone;
  };
  const auto key_of = [&](uint32_t pos) { return values[pos] >> 32 << 32 | pos; };
  for (uint32_t i = 0; i < n; ++i) {
    prev[i] = i == 0 ? kEnd : i - 1;
    next[i] = i + 1 == n ? kEnd : i + 1;
  }
  std::vector<uint64_t> first;
  first.reserve(n);
  for (uint32_t i = 0; i < n; ++i) {
    if (find(i)) first.push_back(key_of(i));
  }
  sort_by_rank(&first);
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> later;
  for (size_t at = 0; at < first.size() || !later.empty();) {
    uint64_t key = 0;
    if (later.empty() || (at < first.size() && first[at] < later.top())) {
      key = first[at++];
    } else {
      key = later.top();
      later.pop();
    }
    const auto pos = static_cast<uint32_t>(key);
    if (values[pos] >> 32 != key >> 32) continue;
    const uint32_t gone = next[pos];
    ids[pos] = static_cast<int32_t>(values[pos] & 0xFFFFFFFFu);
    ids[gone] = -1;
    values[gone] = PairMap::kNone;
    next[pos] = next[gone];
    if (next[gone] != kEnd) prev[next[gone]] = pos;
    if (find(pos)) later.push(key_of(pos));
    if (prev[pos] != kEnd && find(prev[pos])) later.push(key_of(prev[pos]));
  }
  std::erase(ids, -1);
}

}  // namespace restkv

// LEB128 numbers and f16 scores, one cut behind the other.
#include "engine/eviction/trace.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/base/check.h"
#include "kernels/base/float16.h"

namespace restkv {
namespace {

constexpr uint64_t kHasScores = 1, kHasBins = 2;  // of a head

class Reader {
 public:
  explicit Reader(const uint8_t* at) : at_(at) {}
  uint64_t number() {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const uint8_t byte = *at_++;
      value |= uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return value;
    }
  }
  uint8_t byte() { return *at_++; }
  float half() {
    const auto bits = static_cast<uint16_t>(at_[0] | at_[1] << 8);
    at_ += 2;
    return f16_to_f32(bits);
  }

 private:
  const uint8_t* at_;
};

}  // namespace

CacheTrace::Cut CacheTrace::cut(size_t index) const {
  CHECK(index < begins_.size()) << index << " of " << begins_.size() << " cuts";
  Reader read(bytes_.data() + begins_[index]);
  Cut cut;
  cut.layer = static_cast<int32_t>(read.number());
  cut.tokens = static_cast<int32_t>(read.number());
  cut.heads.resize(static_cast<size_t>(num_kv_heads));
  for (Head& head : cut.heads) {
    const uint64_t flags = read.number();
    head.num_kept = static_cast<int32_t>(read.number());
    head.evicted.resize(read.number());
    int32_t position = -1;
    for (int32_t& evicted : head.evicted) {
      position += static_cast<int32_t>(read.number()) + 1;
      evicted = position;
    }
    if (flags & kHasScores) {
      head.scores.resize(static_cast<size_t>(head.num_kept));
      for (float& score : head.scores) score = read.half();
    }
    if (flags & kHasBins) {
      head.bins.resize(head.evicted.size());
      for (uint8_t& bin : head.bins) bin = read.byte();
    }
  }
  return cut;
}

TraceWriter::TraceWriter(const CacheTrace& header, bool with_bins)
    : trace_(std::make_shared<CacheTrace>(header)), with_bins_(with_bins) {
  held_.resize(static_cast<size_t>(header.num_layers) * static_cast<size_t>(header.num_kv_heads));
  tokens_.assign(static_cast<size_t>(header.num_layers), 0);
}

void TraceWriter::put(uint64_t value) {
  for (; value >= 0x80; value >>= 7) trace_->bytes_.push_back(static_cast<uint8_t>(value | 0x80));
  trace_->bytes_.push_back(static_cast<uint8_t>(value));
}

void TraceWriter::add_cut(int32_t layer, int32_t tokens, std::span<const HeadRows> heads) {
  if (trace_->is_truncated) return;
  CacheTrace& trace = *trace_;
  bool goes = false;
  const int32_t since = tokens - tokens_[static_cast<size_t>(layer)];
  for (size_t h = 0; h < heads.size(); ++h) {
    goes |= heads[h].kept.size() <
            held_[static_cast<size_t>(layer) * heads.size() + h].size() + static_cast<size_t>(since);
  }
  if (!goes) return;
  const size_t begin = trace.bytes_.size();
  put(static_cast<uint64_t>(layer));
  put(static_cast<uint64_t>(tokens));
  for (size_t h = 0; h < heads.size(); ++h) {
    std::vector<int32_t>& held = held_[static_cast<size_t>(layer) * heads.size() + h];
    const std::span<const int32_t> kept = heads[h].kept;
    const std::span<const float> scores = heads[h].scores;
    // The rows before the cut: what was held, then the tokens since.
    const size_t old = held.size();
    held.resize(old + static_cast<size_t>(since));
    std::iota(held.begin() + static_cast<std::ptrdiff_t>(old), held.end(),
              tokens_[static_cast<size_t>(layer)]);
    const bool has_scores = scores.size() == held.size() && kept.size() < held.size();
    const bool has_bins = with_bins_ && has_scores;
    put((has_scores ? kHasScores : 0) | (has_bins ? kHasBins : 0));
    put(kept.size());
    put(held.size() - kept.size());
    int32_t last = -1;
    size_t next = 0;
    const auto is_kept = [&](size_t row) {
      if (next == kept.size() || static_cast<size_t>(kept[next]) != row) return false;
      ++next;
      return true;
    };
    for (size_t row = 0; row < held.size(); ++row) {
      if (is_kept(row)) continue;
      put(static_cast<uint64_t>(held[row] - last - 1));
      last = held[row];
    }
    CHECK(next == kept.size()) << "layer " << layer << " keeps rows that it does not have";
    if (has_scores) {
      for (const int32_t row : kept) {
        // Rows that must stay can be infinite; beyond f16 there is only more of the same.
        const float score = std::clamp(scores[static_cast<size_t>(row)], -65504.0f, 65504.0f);
        const uint16_t bits = f32_to_f16(score);
        trace.bytes_.push_back(static_cast<uint8_t>(bits));
        trace.bytes_.push_back(static_cast<uint8_t>(bits >> 8));
      }
    }
    if (has_bins) {
      order_.resize(held.size());
      std::iota(order_.begin(), order_.end(), 0);
      // Rows that stay anyhow have score 0 and rank first, as do rows that are no number.
      ranked_.assign(scores.begin(), scores.end());
      for (float& score : ranked_)
        if (std::isnan(score)) score = std::numeric_limits<float>::infinity();
      for (const int32_t row : kept) {
        float& score = ranked_[static_cast<size_t>(row)];
        if (score == 0.0f) score = std::numeric_limits<float>::infinity();
      }
      std::stable_sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) {
        return ranked_[static_cast<size_t>(a)] > ranked_[static_cast<size_t>(b)];
      });
      std::vector<uint8_t> bins(held.size());
      for (size_t rank = 0; rank < order_.size(); ++rank) {
        bins[static_cast<size_t>(order_[rank])] =
            static_cast<uint8_t>(rank * static_cast<size_t>(kTraceBins) / order_.size());
      }
      next = 0;
      for (size_t row = 0; row < held.size(); ++row)
        if (!is_kept(row)) trace.bytes_.push_back(bins[row]);
    }
    for (size_t i = 0; i < kept.size(); ++i) held[i] = held[static_cast<size_t>(kept[i])];
    held.resize(kept.size());
  }
  tokens_[static_cast<size_t>(layer)] = tokens;
  if (trace.bytes_.size() + (trace.begins_.size() + 1) * sizeof(size_t) > kMaxTraceBytes) {
    trace.bytes_.resize(begin);
    trace.is_truncated = true;
    return;
  }
  trace.begins_.push_back(begin);
}

}  // namespace restkv

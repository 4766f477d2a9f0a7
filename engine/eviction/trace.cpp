// LEB128 numbers and f16 scores, one cut behind the other.
#include "engine/eviction/trace.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/float16.h"

namespace restkv {
namespace {

constexpr uint64_t kHasScores = 1, kHasBins = 2;  // of a head
// What a cut takes beside its bytes: the vector, and the allocator's own.
constexpr size_t kCutBytes = sizeof(std::vector<uint8_t>) + 2 * sizeof(void*);

void put(std::vector<uint8_t>& out, uint64_t value) {  // LEB128
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<uint8_t>(value | 0x80));
  out.push_back(static_cast<uint8_t>(value));
}

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
  CHECK(index < cuts_.size()) << index << " of " << cuts_.size() << " cuts";
  Reader read(cuts_[index].data());
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

TraceWriter::TraceWriter(const CacheTrace& header, bool with_bins, TraceRoom* room)
    : trace_(std::make_shared<CacheTrace>(header)), with_bins_(with_bins), room_(room) {
  held_.resize(static_cast<size_t>(header.num_layers) * static_cast<size_t>(header.num_kv_heads));
  tokens_.assign(static_cast<size_t>(header.num_layers), 0);
}

TraceWriter::~TraceWriter() {
  if (room_ && reserved_ > 0) room_->give_back(reserved_);
}

std::shared_ptr<const CacheTrace> TraceWriter::take() {
  if (room_ && reserved_ > 0) room_->give_back(reserved_);
  reserved_ = 0;
  return std::move(trace_);
}

bool TraceWriter::reserve(size_t bytes) {
  if (room_ && bytes > reserved_ && !room_->take(bytes - reserved_)) return false;
  if (room_ && bytes < reserved_) room_->give_back(reserved_ - bytes);
  reserved_ = bytes;
  return true;
}

void TraceWriter::end() {
  trace_->is_truncated = true;
  held_ = {};
  num_held_ = 0;
  reserve(trace_->num_bytes_);  // less than before
}

std::vector<int32_t> TraceWriter::rows_before(size_t head, int32_t layer, int32_t tokens) const {
  const std::vector<int32_t>& held = held_[head];
  const int32_t since = tokens_[static_cast<size_t>(layer)];
  std::vector<int32_t> rows(held.size() + static_cast<size_t>(tokens - since));
  std::copy(held.begin(), held.end(), rows.begin());
  std::iota(rows.begin() + static_cast<std::ptrdiff_t>(held.size()), rows.end(), since);
  return rows;
}

// Rows that stay anyhow have score 0 and rank first, as do rows that are no number.
std::vector<uint8_t> TraceWriter::ranks(const HeadRows& head) const {
  std::vector<float> scores(head.scores.begin(), head.scores.end());
  for (float& score : scores)
    if (std::isnan(score)) score = std::numeric_limits<float>::infinity();
  for (const int32_t row : head.kept) {
    float& score = scores[static_cast<size_t>(row)];
    if (score == 0.0f) score = std::numeric_limits<float>::infinity();
  }
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  std::vector<uint8_t> bins(order.size());
  for (size_t rank = 0; rank < order.size(); ++rank) {
    bins[static_cast<size_t>(order[rank])] =
        static_cast<uint8_t>(rank * static_cast<size_t>(kTraceBins) / order.size());
  }
  return bins;
}

void TraceWriter::add_cut(int32_t layer, int32_t tokens, std::span<const HeadRows> heads) {
  if (trace_->is_truncated) return;
  CacheTrace& trace = *trace_;
  const size_t first_head = static_cast<size_t>(layer) * heads.size();
  const auto since = static_cast<size_t>(tokens - tokens_[static_cast<size_t>(layer)]);
  bool goes = false;
  size_t num_held = num_held_;
  for (size_t h = 0; h < heads.size(); ++h) {
    const size_t held = held_[first_head + h].size();
    goes |= heads[h].kept.size() < held + since;
    num_held += heads[h].kept.size() - held;
  }
  if (!goes) return;
  std::vector<uint8_t> out;
  put(out, static_cast<uint64_t>(layer));
  put(out, static_cast<uint64_t>(tokens));
  for (size_t h = 0; h < heads.size(); ++h) {
    const std::span<const int32_t> kept = heads[h].kept;
    const std::span<const float> scores = heads[h].scores;
    const std::vector<int32_t> rows = rows_before(first_head + h, layer, tokens);
    const bool has_scores = scores.size() == rows.size() && kept.size() < rows.size();
    const bool has_bins = with_bins_ && has_scores;
    put(out, (has_scores ? kHasScores : 0) | (has_bins ? kHasBins : 0));
    put(out, kept.size());
    put(out, rows.size() - kept.size());
    std::vector<size_t> gone;
    size_t next = 0;
    for (size_t row = 0; row < rows.size(); ++row) {
      if (next < kept.size() && static_cast<size_t>(kept[next]) == row) {
        ++next;
      } else {
        gone.push_back(row);
      }
    }
    CHECK(next == kept.size()) << "layer " << layer << " keeps rows that it does not have";
    int32_t last = -1;
    for (const size_t row : gone)
      put(out, static_cast<uint64_t>(rows[row] - std::exchange(last, rows[row]) - 1));
    if (has_scores) {
      for (const int32_t row : kept) {
        // Rows that must stay can be infinite; beyond f16 there is only more of the same.
        const float score = std::clamp(scores[static_cast<size_t>(row)], -65504.0f, 65504.0f);
        const uint16_t bits = f32_to_f16(score);
        out.push_back(static_cast<uint8_t>(bits));
        out.push_back(static_cast<uint8_t>(bits >> 8));
      }
    }
    if (has_bins) {
      const std::vector<uint8_t> bins = ranks(heads[h]);
      for (const size_t row : gone) out.push_back(bins[row]);
    }
  }
  const size_t num_bytes = trace.num_bytes_ + out.size() + kCutBytes;
  if (num_bytes > kMaxTraceBytes || !reserve(num_bytes + num_held * sizeof(int32_t))) return end();
  for (size_t h = 0; h < heads.size(); ++h) {
    const std::vector<int32_t> rows = rows_before(first_head + h, layer, tokens);
    std::vector<int32_t> held(heads[h].kept.size());
    for (size_t i = 0; i < held.size(); ++i) held[i] = rows[static_cast<size_t>(heads[h].kept[i])];
    held_[first_head + h] = std::move(held);
  }
  num_held_ = num_held;
  tokens_[static_cast<size_t>(layer)] = tokens;
  out.shrink_to_fit();
  trace.cuts_.push_back(std::move(out));
  trace.num_bytes_ = num_bytes;
}

}  // namespace restkv

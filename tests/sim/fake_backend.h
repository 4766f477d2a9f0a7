// A device for the simulation. Nothing is computed but hashes: the state of a row is (token, h), a cache entry is
// (position, token, h) in the memory of a real page, and attention hashes the entries it *reads*:
//   embed             (token, 0)
//   attention         h' = mix(h, digest over the visible entries of each head, layer)
//   sample            token' = mix(h, position, seed, choice) mod V, left for the next gather, too
//   score             mix(entry, layer, head, digest of the observing queries); recency: the position
// so that any page that is shared, freed or moved wrongly shows as a wrong token. select, compact and store_pages are the CPU
// backend's. Time is the simulation's: each op moves the clock. Ops may fail as a device does.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "engine/model/weights.h"
#include "kernels/backend.h"

namespace restkv::sim {

inline uint32_t mix(uint32_t a, uint32_t b, uint32_t c = 0, uint32_t d = 0) {
  uint64_t x = (uint64_t{a} * 0x9E3779B97F4A7C15ull) ^ (uint64_t{b} * 0xC2B2AE3D27D4EB4Full) ^
               (uint64_t{c} * 0x165667B19E3779F9ull) ^ (uint64_t{d} * 0xD6E8FEB86659FD93ull);
  x ^= x >> 31;
  x *= 0xBF58476D1CE4E5B9ull;
  return static_cast<uint32_t>(x >> 40);  // 24 bits: a float holds them
}
// The rules that the naive model knows too.
inline uint32_t entry_hash(uint32_t position, uint32_t token, uint32_t h, uint32_t layer, uint32_t head) {
  return mix(position * 2 + head, token, h, layer);
}
inline uint32_t attended(uint32_t h, uint32_t digest0, uint32_t digest1, uint32_t layer) {
  return mix(h, digest0, digest1, layer + 7);
}
inline uint32_t query_hash(uint32_t position, uint32_t token, uint32_t h) {
  return mix(position, token, h, 99);
}
inline uint32_t entry_score(uint32_t entry, uint32_t queries) { return mix(entry, queries, 5); }
inline int32_t drawn_token(uint32_t h, uint32_t position, uint64_t seed, uint32_t choice, int32_t vocab) {
  return static_cast<int32_t>(mix(h, position, static_cast<uint32_t>(seed), choice) %
                              static_cast<uint32_t>(vocab));
}
// Requests with such seeds draw NaN at a certain position.
inline bool draws_nan(uint64_t seed, uint32_t position) { return seed % 37 == 5 && position % 16 == 9; }

class FakeBackend final : public Backend {
 public:
  static constexpr int32_t kSlots = 4;

  // `tick(rows)`: an op over so many rows begins; it moves the clock and may throw DeviceError. Asynchronous: what samples
  // drew is shown when it is waited for.
  FakeBackend(const Model& model, bool is_asynchronous, std::function<void(int64_t rows)> tick);

  std::string_view name() const override { return "fake"; }
  int32_t page_slots() const override { return kSlots; }
  std::unique_ptr<DeviceBuffer> allocate(int64_t bytes) override { return cpu_->allocate(bytes); }
  void zero(const Tensor& tensor) override { cpu_->zero(tensor); }
  void synchronize() override;
  void wait_step() override;
  bool is_asynchronous() const override { return is_asynchronous_; }
  void drop_step() override { drawn_.clear(); }

 private:
  void do_gather(const GatherArgs& args) override;
  void do_rmsnorm(const RmsNormArgs& args) override;
  void do_add(const AddArgs&) override {}
  void do_matmul(const MatmulArgs& args) override;
  void do_rope_table(const RopeTableArgs&) override { layer_ = -1; }
  void do_rope_and_store(const RopeAndStoreArgs& args) override;
  void do_prefill_attention(const PrefillAttentionArgs& args) override;
  void do_decode_attention(const DecodeAttentionArgs& args) override;
  void do_glu(const GluArgs&) override {}
  void do_softcap(const SoftcapArgs&) override {}
  void do_store_pages(const StorePagesArgs& args) override { cpu_->store_pages(args); }
  void do_sample(const SampleArgs& args) override;
  void do_store_queries(const StoreQueriesArgs& args) override { cpu_->store_queries(args); }
  void do_factor_projection(const FactorProjectionArgs&) override {}
  void do_observe(const ObserveArgs&) override {}
  void do_score(const ScoreArgs& args) override;
  void do_smooth(const SmoothArgs& args) override { cpu_->smooth(args); }
  void do_select(const SelectArgs& args) override { cpu_->select(args); }
  void do_compact(const CompactArgs& args) override { cpu_->compact(args); }

  // Of one sample op.
  struct Drawn {
    std::span<SampleResult> shown;
    std::vector<SampleResult> results;
  };

  const Model& model_;
  const bool is_asynchronous_;
  std::deque<Drawn> drawn_;  // not waited for
  std::function<void(int64_t)> tick_;
  std::unique_ptr<Backend> cpu_;
  int32_t layer_ = -1;  // of the ops that follow: matmuls name their weights
};

}  // namespace restkv::sim

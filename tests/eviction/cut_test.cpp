// Whole lives of random sequences through Cutter, for every policy: prefill, then one entry a step with rings and sums in
// pages of one pool whose other pages hold NaN. After every step: never above C_lh, as many entries as the schedule says,
// positions strictly increasing, protected rows present.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "engine/eviction/budget.h"
#include "engine/eviction/cut.h"
#include "tests/eviction/cut_schedule.h"
#include "tests/kernels/backend_cases.h"

namespace restkv {
namespace {

constexpr int32_t kHeads = 4, kKvHeads = 2, kDim = 8, kLayers = 3, kMaxRows = 400;

// One layer of one sequence.
class Layer {
 public:
  Layer(Backend& backend, const CacheSettings& settings, const SequenceBudget& budget, int32_t layer,
        uint32_t seed)
      : backend_(backend),
        settings_(settings),
        budget_(budget),
        recipe_(make_recipe(settings, budget.budget, kLayers)),
        layer_(layer),
        random_(seed),
        shape_{.num_heads = kHeads, .num_kv_heads = kKvHeads, .head_dim = kDim, .scale = 0.35f} {
    cache_ = {.dtype = DType::kF32, .slots = backend.page_slots(), .head_dim = kDim};
    cache_.page_bytes = PagedCacheView::bytes_per_page(cache_.dtype, cache_.slots, kDim);
    entry_pages_ = (kMaxRows + cache_.slots - 1) / cache_.slots;
    ring_pages_ = QueryRing::num_pages(settings.window, kHeads / kKvHeads, cache_.slots);
    sum_pages_ = kMaxRows / EntrySums::floats_per_page(cache_.dtype, cache_.slots, kDim) + 1;
    pool_ = backend.allocate(cache_.page_bytes * kKvHeads * (entry_pages_ + ring_pages_ + sum_pages_ + 1));
    cache_.pool = pool_->data();
    std::fill_n(reinterpret_cast<uint32_t*>(pool_->data()), pool_->bytes() / 4, 0x7FC00000u);
    int32_t next = 0;
    const auto take = [&](std::vector<int32_t>& pages, int32_t count) {
      for (int32_t i = 0; i < count * kKvHeads; ++i) pages.push_back(next++);
    };
    take(pages_, entry_pages_);
    take(ring_, ring_pages_);
    take(sums_, sum_pages_);
    kv_len_.assign(kKvHeads, 0);
    sums_len_.assign(kKvHeads, 0);
    c_lh_.assign(budget.c_lh.begin() + layer * kKvHeads, budget.c_lh.begin() + (layer + 1) * kKvHeads);
    workspace_ = backend.allocate(4 * Cutter::workspace_bytes(recipe_, shape_, kMaxRows, kMaxRows, 8));
    cutter_ = std::make_unique<Cutter>(backend, shape_, cache_,
                                       dense(workspace_->data(), DType::kU8, 1, workspace_->bytes()));
    projection_.resize(kHeads * kDim * kDim);
    fill(projection_);
  }

  void prefill(int32_t prompt_len, bool with_probe) {
    prompt_len_ = tokens_ = prompt_len;
    const auto n = static_cast<size_t>(prompt_len);
    std::vector<float> k(n * kKvHeads * kDim), v(n * kKvHeads * kDim), q(n * kHeads * kDim),
        probe(3 * kHeads * kDim), sums(n * kKvHeads, 0.0f);
    for (std::vector<float>* x : {&k, &v, &q, &probe}) fill(*x);
    const RowSource rows{.k = dense(k.data(), DType::kF32, prompt_len, kKvHeads * kDim),
                         .v = dense(v.data(), DType::kF32, prompt_len, kKvHeads * kDim)};
    const std::vector<int32_t> positions = positions_from(0, prompt_len);
    store_ring(q, positions);
    const int32_t queries =
        std::min(prompt_len, recipe_.queries == QueryNeed::kNewest ? 1 : settings_.window);
    Cut cut = make_cut(rows, true);
    if (recipe_.needs_sums()) {
      const Tensor out = dense(sums.data(), DType::kF32, kKvHeads, prompt_len);
      cutter_->add_queries(
          rows, {.rows = dense(q.data(), DType::kF32, prompt_len, kHeads * kDim), .positions = positions}, 0,
          out);
      cut.attention_sums = out;
    } else if (recipe_.needs_queries()) {
      cut.queries = {.rows = dense(q.data() + (prompt_len - queries) * kHeads * kDim, DType::kF32, queries,
                                   kHeads * kDim),
                     .positions = std::span(positions).last(static_cast<size_t>(queries))};
    }
    const std::vector<int32_t> probe_positions = positions_from(prompt_len, prompt_len + 3);
    if (with_probe)
      cut.probe = {.rows = dense(probe.data(), DType::kF32, 3, kHeads * kDim), .positions = probe_positions};
    const bool shares = recipe_.scope == SelectScope::kShare && prompt_len >= budget_.budget;
    for (int32_t h = 0; h < kKvHeads; ++h)
      keep_[static_cast<size_t>(h)] = target(h, prompt_len >= c_lh_[static_cast<size_t>(h)], prompt_len);
    if (shares) {
      keep_.assign(kKvHeads, budget_.budget);
      cut.share = c_lh_.data();
      cut.share_floor = share_floor(settings_, budget_.budget, settings_.decode == DecodeMode::kGrow);
      cut.share_slack =
          budget_.budget - rows_after_cut(budget_.budget, budget_.stride, layer_, kLayers, true);
    }
    cut.max_new_pins = pin_rows(settings_, budget_.budget);
    new_pins_.assign(static_cast<size_t>(std::max(1, cut.max_new_pins) * kKvHeads), 0);
    cut.new_pins = new_pins_.data();
    cut.num_new_pins = num_pins_.data();
    cutter_->run({&cut, 1});
    finish(cut.max_new_pins);
  }

  void step() {
    std::vector<float> k(kKvHeads * kDim), v(kKvHeads * kDim), q(kHeads * kDim);
    for (std::vector<float>* x : {&k, &v, &q}) fill(*x);
    for (int32_t h = 0; h < kKvHeads; ++h) {
      const int32_t entry = kv_len_[static_cast<size_t>(h)]++;
      const int32_t page = pages_[static_cast<size_t>(h * entry_pages_ + entry / cache_.slots)],
                    slot = entry % cache_.slots;
      std::copy_n(k.data() + h * kDim, kDim, reinterpret_cast<float*>(cache_.keys(page)) + slot * kDim);
      std::copy_n(v.data() + h * kDim, kDim, reinterpret_cast<float*>(cache_.values(page)) + slot * kDim);
      cache_.positions(page)[slot] = tokens_;
    }
    store_ring(q, positions_from(tokens_, tokens_ + 1));
    ++tokens_;
    bool is_due = false;
    for (int32_t h = 0; h < kKvHeads; ++h) {
      const auto i = static_cast<size_t>(h);
      const bool due = kv_len_[i] == c_lh_[i];
      keep_[i] = target(h, due, kv_len_[i]);
      is_due |= due;
    }
    if (!is_due || settings_.decode == DecodeMode::kGrow) return;
    Cut cut = make_cut({.pages = tables()}, false);
    const int32_t in_ring = std::min(tokens_, settings_.window);
    int32_t queries = recipe_.queries == QueryNeed::kNewest ? 1 : in_ring;
    if (recipe_.needs_sums()) queries = std::min(in_ring, tokens_ - last_cut_);
    const std::vector<int32_t> positions = positions_from(tokens_ - queries, tokens_);
    if (recipe_.needs_queries()) {
      cut.queries = {.ring = {.pages = ring_.data(), .stride = ring_pages_, .window = settings_.window},
                     .positions = positions};
    }
    cut.protect.pins = new_pins_.data();
    cut.protect.pin_stride = pin_stride_;
    cut.protect.num_pins = num_pins_.data();
    cutter_->run({&cut, 1});
    finish(0);
  }

  void check() const {
    const ProtectedRows protect = protection_of(recipe_, settings_, prompt_len_, false);
    for (int32_t h = 0; h < kKvHeads; ++h) {
      const auto i = static_cast<size_t>(h);
      if (settings_.decode == DecodeMode::kEvict) {
        ASSERT_LE(kv_len_[i], c_lh_[i]);
        if (recipe_.scope != SelectScope::kShare) {
          const CutSchedule schedule(c_lh_[i], budget_.stride, layer_, kLayers);
          ASSERT_EQ(kv_len_[i], schedule.kv_len(prompt_len_, tokens_));
        }
      } else {
        ASSERT_LE(kv_len_[i], std::max(c_lh_[i], prompt_len_) + tokens_ - prompt_len_);
      }
      std::set<int32_t> held;
      int32_t before = -1;
      for (int32_t j = 0; j < kv_len_[i]; ++j) {
        const int32_t position = cache_.positions(
            pages_[static_cast<size_t>(h * entry_pages_ + j / cache_.slots)])[j % cache_.slots];
        ASSERT_GT(position, before);
        held.insert(before = position);
      }
      ASSERT_EQ(before, tokens_ - 1);
      for (int32_t p = 0; p < std::min(first_rows(), tokens_); ++p)
        ASSERT_TRUE(held.count(p)) << "position " << p;
      // Rows that came since the last cut are all there, and so are the recent ones before it.
      for (int32_t p = std::max(0, tokens_ - protect.recent); p < tokens_; ++p)
        ASSERT_TRUE(held.count(p)) << "position " << p;
      for (int32_t p = protect.tail_begin; p < protect.tail_end; ++p)
        ASSERT_TRUE(held.count(p)) << "position " << p;
      for (int32_t p = 0; p < num_pins_[i]; ++p)
        ASSERT_TRUE(held.count(new_pins_[static_cast<size_t>(h * pin_stride_ + p)]));
    }
  }
  int64_t num_non_finite() const { return num_non_finite_; }

 private:
  // First positions that stay. Said once more than in protection_of, which must not be its own witness.
  int32_t first_rows() const {
    int32_t sinks = 0;
    switch (settings_.policy) {
      case PolicyKind::kRestkv:
      case PolicyKind::kRandom: sinks = settings_.sinks; break;
      case PolicyKind::kStreamingllm:
      case PolicyKind::kLacache: sinks = 4; break;
      default: break;
    }
    return std::max(sinks, settings_.pin_head);
  }
  void fill(std::vector<float>& x) {
    std::normal_distribution<float> normal;
    for (float& v : x) v = normal(random_);
  }
  static std::vector<int32_t> positions_from(int32_t begin, int32_t end) {
    std::vector<int32_t> out;
    for (int32_t p = begin; p < end; ++p) out.push_back(p);
    return out;
  }
  void store_ring(const std::vector<float>& q, const std::vector<int32_t>& positions) {
    const auto rows = static_cast<int64_t>(positions.size());
    const StoreQueriesSegment segment{
        .num_rows = rows, .ring = {.pages = ring_.data(), .stride = ring_pages_, .window = settings_.window}};
    backend_.store_queries({.shape = shape_,
                            .q = dense(q.data(), DType::kF32, rows, kHeads * kDim),
                            .positions = positions,
                            .segments = {&segment, 1},
                            .cache = cache_});
  }
  HeadTables tables() const {
    return {.pages = pages_.data(), .stride = entry_pages_, .kv_len = kv_len_.data()};
  }
  int32_t target(int32_t head, bool due, int32_t rows) const {
    const auto i = static_cast<size_t>(head);
    if (!due) return rows;
    if (settings_.decode == DecodeMode::kGrow) return c_lh_[i];
    return rows_after_cut(c_lh_[i], budget_.stride, layer_, kLayers, !was_cut_[i]);
  }
  Cut make_cut(const RowSource& rows, bool is_prefill) {
    keep_.resize(kKvHeads);
    rows_before_.clear();
    for (int32_t h = 0; h < kKvHeads; ++h) rows_before_.push_back(rows.num_rows(h));
    Cut cut;
    cut.recipe = &recipe_;
    cut.layer = layer_;
    cut.is_prefill = is_prefill;
    cut.rows = rows;
    cut.projection = dense(projection_.data(), DType::kF32, kHeads * kDim, kDim);
    if (recipe_.needs_sums())
      cut.sums = {.pages = sums_.data(), .stride = sum_pages_, .len = sums_len_.data()};
    cut.keep = keep_.data();
    cut.protect = protection_of(recipe_, settings_, prompt_len_, false);
    cut.destination = tables();
    cut.kept_len = kept_len_.data();
    cut.non_finite = non_finite_.data();
    return cut;
  }
  void finish(int32_t max_new_pins) {
    for (size_t h = 0; h < kKvHeads; ++h) {
      was_cut_[h] = was_cut_[h] || kept_len_[h] < rows_before_[h];
      kv_len_[h] = sums_len_[h] = kept_len_[h];
      num_non_finite_ += non_finite_[h];
    }
    last_cut_ = tokens_;
    if (max_new_pins > 0) pin_stride_ = max_new_pins;
  }

  Backend& backend_;
  const CacheSettings& settings_;
  const SequenceBudget& budget_;
  const PolicyRecipe recipe_;
  const int32_t layer_;
  std::mt19937 random_;
  const AttentionShape shape_;
  PagedCacheView cache_;
  std::unique_ptr<DeviceBuffer> pool_, workspace_;
  std::unique_ptr<Cutter> cutter_;
  std::vector<float> projection_;
  int32_t entry_pages_ = 0, ring_pages_ = 0, sum_pages_ = 0, pin_stride_ = 0;
  std::vector<int32_t> pages_, ring_, sums_, kv_len_, sums_len_, c_lh_, keep_, rows_before_, new_pins_;
  std::vector<int32_t> num_pins_ = std::vector<int32_t>(kKvHeads), kept_len_ = num_pins_,
                       non_finite_ = num_pins_, was_cut_ = num_pins_;
  int32_t prompt_len_ = 0, tokens_ = 0, last_cut_ = 0;
  int64_t num_non_finite_ = 0;
};

class CutLives : public testing::TestWithParam<size_t> {};
INSTANTIATE_TEST_SUITE_P(Backends, CutLives, testing::Range(size_t{0}, device_op_cases().size()),
                         [](const auto& info) { return device_op_cases()[info.param].name; });

TEST_P(CutLives, OfRandomSequences) {
  const BackendCase& backend_case = device_op_cases()[GetParam()];
  const std::unique_ptr<Backend> backend = backend_case.make(2);
  std::mt19937 random(11);
  const char* policies[] = {"restkv",    "snapkv", "streamingllm", "h2o",   "tova",
                            "pyramidkv", "adakv",  "lacache",      "random"};
  int num_cuts = 0;
  const int rounds = backend_case.is_device ? 9 : 90;
  for (int round = 0; round < rounds; ++round) {
    CacheRequest r;
    r.policy = policies[round % 9];
    r.window = 1 + static_cast<int32_t>(random() % 24);
    r.sinks = static_cast<int32_t>(random() % 5);
    if (random() % 3 == 0) r.stride = 1 + static_cast<int32_t>(random()) % 8 % *r.window;
    if (r.stride) r.stride = std::max<int64_t>(1, std::abs(*r.stride));
    if (random() % 5 == 0) r.decode = "grow";
    if (random() % 3 == 0) r.preset = "paper";
    if (random() % 4 == 0 && *r.policy == "restkv") r.pin = static_cast<int32_t>(random() % 10);
    if (random() % 4 == 0) r.pin_head = static_cast<int32_t>(random() % 10);
    if (random() % 4 == 0) r.pin_tail = static_cast<int32_t>(random() % 10);
    if (random() % 3 == 0 && *r.policy == "restkv") r.allocation = random() % 2 ? "ada" : "pyramid";
    r.budget = 100;
    const Result<CacheSettings> wide = resolve_cache_settings(r, {});
    ASSERT_TRUE(wide.ok()) << wide.status().message();
    r.budget = smallest_budget(*wide) + static_cast<int32_t>(random() % 40);
    const Result<CacheSettings> settings = resolve_cache_settings(r, {});
    ASSERT_TRUE(settings.ok()) << settings.status().message();
    const int32_t prompt = 10 + static_cast<int32_t>(random() % 200),
                  answer = 60 + static_cast<int32_t>(random() % 60);
    const SequenceBudget budget = plan_budget(*settings, {kLayers, kKvHeads, {}}, nullptr, prompt, answer);
    if (budget.is_exact) continue;
    for (int32_t l = 0; l < kLayers; ++l) {
      SCOPED_TRACE(::testing::Message() << *r.policy << " layer " << l << " C " << *r.budget << " W "
                                        << *r.window << " stride " << budget.stride << " prompt " << prompt);
      Layer layer(*backend, *settings, budget, l, static_cast<uint32_t>(round));
      layer.prefill(prompt, *r.policy == "restkv" && random() % 2);
      ASSERT_NO_FATAL_FAILURE(layer.check());
      for (int i = 0; i < answer; ++i) {
        layer.step();
        ASSERT_NO_FATAL_FAILURE(layer.check()) << "step " << i;
        ++num_cuts;
      }
      EXPECT_EQ(layer.num_non_finite(), 0);  // no page but its own was read
    }
  }
  EXPECT_GT(num_cuts, 55 * rounds);
}

}  // namespace
}  // namespace restkv

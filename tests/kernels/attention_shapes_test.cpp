// Both attention ops over every padded head dim, cache type and page size, with a ragged batch: several sequences in one call,
// prompt rows over a cached prefix and rows of scratch, several decode rows of one sequence, windows and soft caps in turn.
#include <sys/mman.h>

#include <array>

#include "tests/kernels/attention_case.h"

namespace restkv {
namespace {

class AttentionShapes : public testing::TestWithParam<size_t> {
 protected:
  void SetUp() override { backend_ = backend_case().make(2); }
  const BackendCase& backend_case() const { return attention_columns()[GetParam()]; }
  std::unique_ptr<Backend> backend_;
};

INSTANTIATE_TEST_SUITE_P(Backends, AttentionShapes, testing::Range(size_t{0}, attention_columns().size()),
                         [](const auto& info) { return attention_columns()[info.param].name; });

struct Sequence {
  Inputs in;
  int64_t prefix;  // of its positions, in pages
  int64_t begin;   // first row of this call; those in [prefix, begin) are scratch rows already
  TestCache cache;
};

struct SparseMemory {
  std::byte* base = nullptr;
  int64_t bytes;
  explicit SparseMemory(int64_t size) : bytes(size) {
    void* p = mmap(nullptr, static_cast<size_t>(size), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p != MAP_FAILED) base = static_cast<std::byte*>(p);
  }
  ~SparseMemory() {
    if (base) munmap(base, static_cast<size_t>(bytes));
  }
  SparseMemory(const SparseMemory&) = delete;
  SparseMemory& operator=(const SparseMemory&) = delete;
};

std::vector<Case> shape_cases(const BackendCase& backend) {
  const struct {
    float softcap;
    int32_t window;
  } kinds[] = {{0.0f, 0}, {20.0f, 0}, {0.0f, 19}, {30.0f, 40}};
  std::vector<Case> cases;
  size_t kind = 0;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (!has_cache_type(backend, dtype)) continue;
    for (const int32_t dim : {8, 24, 32, 56, 64, 72, 80, 96, 104, 128, 136, 192, 256}) {
      const auto& k = kinds[kind++ % std::size(kinds)];
      cases.push_back({6, 2, dim, k.softcap, k.window, dtype});
    }
  }
  return cases;
}

void expect_rows(const BackendCase& backend, const Case& c, const Sequence& s, const float* out,
                 const std::string& what) {
  const int64_t group = c.heads / c.kv_heads;
  for (int64_t kv_head = 0; kv_head < c.kv_heads; ++kv_head) {
    const std::vector<reference::Entry> entries = s.in.entries(kv_head);
    for (int64_t t = s.begin; t < s.in.n; ++t) {
      for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
        const auto at = static_cast<size_t>(t * s.in.q_cols() + h * c.head_dim);
        const auto expected = reference::attention(s.in.shape, &s.in.q[at], t, entries);
        expect_close(out + (t - s.begin) * s.in.q_cols() + h * c.head_dim, expected.out,
                     tolerance(backend, c.dtype),
                     what + " t=" + std::to_string(t) + " h=" + std::to_string(h));
      }
    }
  }
}

TEST_P(AttentionShapes, RaggedBatches) {
  int32_t turn = 0;
  for (const Case& c : shape_cases(backend_case())) {
    const int32_t slots = std::array{backend_->page_slots(), 16, 32, 128}[static_cast<size_t>(turn++ % 4)];
    const std::string what = label(c) + " S=" + std::to_string(slots);
    std::vector<Sequence> sequences;
    const struct {
      int64_t n, prefix, begin;
    } lengths[] = {{39, 0, 0}, {90, 70, 75}, {70, 64, 69}, {23, 17, 17}};
    int64_t rows = 0;
    for (const auto& l : lengths) {
      sequences.push_back(
          {Inputs(c, l.n), l.prefix, l.begin,
           TestCache(*backend_, c.dtype, c.kv_heads, c.head_dim, static_cast<int32_t>(l.n), slots)});
      rows += l.n - l.begin;
    }
    const int64_t cols = sequences[0].in.q_cols();
    Floats q, prefill_out(static_cast<size_t>(rows * cols), NAN), decode_out = prefill_out;
    std::vector<int32_t> positions;
    std::vector<PrefillSegment> prefills;
    std::vector<DecodeSegment> decodes;
    for (Sequence& s : sequences) {
      const int64_t row = static_cast<int64_t>(positions.size());
      q.insert(q.end(), s.in.q.begin() + s.begin * cols, s.in.q.end());
      for (int64_t t = s.begin; t < s.in.n; ++t) positions.push_back(static_cast<int32_t>(t));
      s.cache.fill(s.in.keys(0, s.in.n), s.in.values(0, s.in.n), s.in.positions);
      for (int32_t& len : s.cache.kv_len) len = static_cast<int32_t>(s.prefix);
      PrefillSegment segment;
      segment.row_begin = row;
      segment.num_rows = s.in.n - s.begin;
      if (s.prefix > 0) segment.prefix = s.cache.tables();
      segment.k = s.in.keys(s.prefix, s.in.n);
      segment.v = s.in.values(s.prefix, s.in.n);
      segment.first_position = static_cast<int32_t>(s.prefix);
      prefills.push_back(segment);
      decodes.push_back({row, s.in.n - s.begin, s.cache.tables()});
    }
    const PagedCacheView view = sequences[0].cache.view;
    // One pool for the batch: sequences' pages are copied behind each other.
    SharedPool pool(view);
    for (Sequence& s : sequences) pool.take(s.cache);
    for (size_t i = 0; i < sequences.size(); ++i) {
      if (sequences[i].prefix > 0) prefills[i].prefix = sequences[i].cache.tables();
      decodes[i].tables = sequences[i].cache.tables();
    }
    backend_->prefill_attention({sequences[0].in.shape,
                                 ::restkv::view(q, rows),
                                 positions,
                                 prefills,
                                 pool.view,
                                 ::restkv::view(prefill_out, rows),
                                 {}});
    for (Sequence& s : sequences) {
      for (int32_t& len : s.cache.kv_len) len = static_cast<int32_t>(s.in.n);
    }
    backend_->decode_attention({sequences[0].in.shape, ::restkv::view(q, rows), positions, decodes, pool.view,
                                ::restkv::view(decode_out, rows)});
    int64_t row = 0;
    for (const Sequence& s : sequences) {
      expect_rows(backend_case(), c, s, &prefill_out[static_cast<size_t>(row * cols)], what + " prefill");
      expect_rows(backend_case(), c, s, &decode_out[static_cast<size_t>(row * cols)], what + " decode");
      row += s.in.n - s.begin;
    }
  }
}

// Rows of scratch and pages so far apart that their offsets need 64 bits; only what is touched becomes memory.
TEST_P(AttentionShapes, OffsetsBeyond32Bits) {
  const Case c{4, 2, 64, 0.0f, 0, DType::kF16};
  const Inputs in(c, 150);
  constexpr int64_t kStride = int64_t{1} << 24;  // values: 150 rows lie in 4.7 GiB
  SparseMemory keys(kStride * 2 * in.n), values(kStride * 2 * in.n);
  TestCache small(*backend_, c.dtype, c.kv_heads, c.head_dim, 150);
  const int32_t spread =
      static_cast<int32_t>((int64_t{5} << 30) / small.view.page_bytes / small.stride / c.kv_heads);
  SparseMemory pool(small.view.page_bytes * spread * small.stride * c.kv_heads);
  if (!keys.base || !values.base || !pool.base) GTEST_SKIP() << "no address space";
  ConstTensor k = in.keys(0, in.n), v = in.values(0, in.n);
  for (int64_t t = 0; t < in.n; ++t) {
    std::memcpy(keys.base + t * kStride * 2, k.row(t), static_cast<size_t>(in.kv_cols() * 2));
    std::memcpy(values.base + t * kStride * 2, v.row(t), static_cast<size_t>(in.kv_cols() * 2));
  }
  small.view.pool = pool.base;
  for (int32_t& page : small.pages) page = page * spread + spread - 1;
  small.fill(k, v, in.positions);
  for (int32_t& len : small.kv_len) len = static_cast<int32_t>(in.n);
  k.data = keys.base;
  v.data = values.base;
  k.stride = v.stride = kStride;
  Floats prefilled(in.q.size(), NAN), decoded = prefilled;
  const PrefillSegment prefill{
      .row_begin = 0, .num_rows = in.n, .prefix = {}, .k = k, .v = v, .first_position = 0};
  const DecodeSegment decode{0, in.n, small.tables()};
  backend_->prefill_attention({in.shape,
                               ::restkv::view(in.q, in.n),
                               in.positions,
                               std::span(&prefill, 1),
                               small.view,
                               ::restkv::view(prefilled, in.n),
                               {}});
  backend_->decode_attention({in.shape, ::restkv::view(in.q, in.n), in.positions, std::span(&decode, 1),
                              small.view, ::restkv::view(decoded, in.n)});
  const Sequence s{in, 0, 0, small};
  expect_rows(backend_case(), c, s, prefilled.data(), "prefill");
  expect_rows(backend_case(), c, s, decoded.data(), "decode");
}

// A row whose every entry is masked, in a tile with rows that see some: zeros and lse -inf, its neighbours untouched.
TEST_P(AttentionShapes, RowsThatSeeNothing) {
  const Case c{4, 2, 32, 0.0f, 0, backend_case().is_half_only ? DType::kF16 : DType::kF32};
  const Inputs in(c, 20);
  Floats out(in.q.size(), NAN), lse(static_cast<size_t>(in.n * c.heads), NAN);
  PrefillSegment segment;
  segment.num_rows = in.n;
  segment.k = in.keys(0, in.n);
  segment.v = in.values(0, in.n);
  segment.first_position = 5;  // rows at positions 0 to 4 see nothing
  backend_->prefill_attention({in.shape, ::restkv::view(in.q, in.n), in.positions, std::span(&segment, 1),
                               TestCache(*backend_, c.dtype, c.kv_heads, c.head_dim, 16).view,
                               ::restkv::view(out, in.n), ::restkv::view(lse, in.n)});
  for (int64_t t = 0; t < in.n; ++t) {
    for (int64_t h = 0; h < c.heads; ++h) {
      const float value = lse[static_cast<size_t>(t * c.heads + h)];
      ASSERT_EQ(value == -INFINITY, t < 5) << t;
      for (int64_t d = 0; d < c.head_dim; ++d) {
        const float x = out[static_cast<size_t>((t * c.heads + h) * c.head_dim + d)];
        ASSERT_EQ(x == 0.0f, t < 5) << t << " " << x;
        ASSERT_TRUE(std::isfinite(x)) << t;
      }
    }
  }
}

}  // namespace
}  // namespace restkv

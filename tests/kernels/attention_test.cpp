// Attention against the naive f64 reference, and what is promised to the bit: the result does not depend on the cut of
// the prompt, prefill and decode agree, threads do not matter, and what lies behind kv_len is never read.
#include "tests/kernels/attention_case.h"

namespace restkv {
namespace {

class Attention : public testing::TestWithParam<size_t> {
 protected:
  void SetUp() override { backend_ = attention_columns()[GetParam()].make(2); }
  const BackendCase& backend_case() const { return attention_columns()[GetParam()]; }
  std::unique_ptr<Backend> backend_;
};

INSTANTIATE_TEST_SUITE_P(Backends, Attention, testing::Range(size_t{0}, attention_columns().size()),
                         [](const auto& info) { return attention_columns()[info.param].name; });

// `is_long`: hundreds of rows; the emulator then runs the narrow ones only.
std::vector<Case> attention_cases(const BackendCase& backend, bool is_long = false) {
  const std::vector<Case> all = {{9, 3, 64, 0.0f, 0, DType::kF32},   {4, 4, 48, 0.0f, 0, DType::kF32},
                                 {8, 1, 24, 0.0f, 0, DType::kF32},   {4, 2, 64, 20.0f, 0, DType::kF32},
                                 {4, 2, 32, 0.0f, 33, DType::kF32},  {9, 3, 64, 0.0f, 100, DType::kF16},
                                 {4, 2, 8, 30.0f, 17, DType::kF16},  {4, 1, 256, 0.0f, 0, DType::kF32},
                                 {60, 1, 16, 0.0f, 0, DType::kF32},  {5, 1, 128, 0.0f, 0, DType::kF16},
                                 {8, 2, 128, 0.0f, 0, DType::kBF16}, {4, 2, 80, 0.0f, 50, DType::kBF16},
                                 {2, 1, 256, 30.0f, 40, DType::kF16}};
  std::vector<Case> cases;
  for (const Case& c : all) {
    if (!has_cache_type(backend, c.dtype)) continue;
    if (is_long && backend.is_emulated && c.heads * c.head_dim > 256) continue;
    cases.push_back(c);
  }
  return cases;
}

struct Output {
  Floats out, lse;
};

// Prefill in one call a part: parts [0, cuts[0]), [cuts[0], cuts[1]), ..., all over scratch rows, or the first `prefix`
// positions from pages.
Output prefill(Backend& backend, const Inputs& in, std::vector<int64_t> cuts, int64_t prefix = 0) {
  Output result{Floats(in.q.size(), NAN), Floats(static_cast<size_t>(in.n * in.shape.num_heads), NAN)};
  TestCache cache(backend, in.dtype, in.shape.num_kv_heads, in.shape.head_dim,
                  static_cast<int32_t>(prefix + 16));
  if (prefix > 0) {
    cache.fill(in.keys(0, prefix), in.values(0, prefix), in.positions);
    for (int32_t& len : cache.kv_len) len = static_cast<int32_t>(prefix);
  }
  cuts.push_back(in.n);
  int64_t begin = prefix;
  for (const int64_t end : cuts) {
    if (end <= begin) continue;
    PrefillSegment segment;
    segment.num_rows = end - begin;
    if (prefix > 0) segment.prefix = cache.tables();
    segment.k = in.keys(prefix, end);
    segment.v = in.values(prefix, end);
    segment.first_position = static_cast<int32_t>(prefix);
    const int64_t rows = end - begin;
    const Tensor out =
        dense(&result.out[static_cast<size_t>(begin * in.q_cols())], DType::kF32, rows, in.q_cols());
    const Tensor lse = dense(&result.lse[static_cast<size_t>(begin * in.shape.num_heads)], DType::kF32, rows,
                             in.shape.num_heads);
    backend.prefill_attention(
        {in.shape, dense(&in.q[static_cast<size_t>(begin * in.q_cols())], DType::kF32, rows, in.q_cols()),
         std::span(in.positions).subspan(static_cast<size_t>(begin), static_cast<size_t>(rows)),
         std::span(&segment, 1), cache.view, out, lse});
    begin = end;
  }
  return result;
}

TEST_P(Attention, PrefillMatchesTheReference) {
  for (const Case& c : attention_cases(backend_case())) {
    const Inputs in(c, c.head_dim > 128 ? 70 : 333);
    const Output actual = prefill(*backend_, in, {});
    for (int64_t kv_head = 0; kv_head < c.kv_heads; ++kv_head) {
      const std::vector<reference::Entry> entries = in.entries(kv_head);
      const int64_t group = c.heads / c.kv_heads;
      for (int64_t t = 0; t < in.n; t += t < 70 ? 1 : 31) {
        for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
          const auto at = static_cast<size_t>(t * in.q_cols() + h * c.head_dim);
          const auto expected = reference::attention(in.shape, &in.q[at], t, entries);
          expect_close(&actual.out[at], expected.out, tolerance(backend_case(), c.dtype),
                       label(c) + " t=" + std::to_string(t));
          ASSERT_NEAR(static_cast<double>(actual.lse[static_cast<size_t>(t * c.heads + h)]), expected.lse,
                      tolerance(backend_case(), c.dtype) / 2)
              << label(c) << " t=" << t;
        }
      }
    }
  }
}

TEST_P(Attention, TheCutDoesNotMatterToTheBit) {
  const int64_t singles = backend_case().is_emulated ? 4 : 70;
  for (const Case& c : attention_cases(backend_case(), true)) {
    const Inputs in(c, 330);  // more than one span
    const Output whole = prefill(*backend_, in, {});
    std::vector<int64_t> single;
    for (int64_t t = 1; t < singles; ++t) single.push_back(t);
    for (const std::vector<int64_t>& cuts :
         {std::vector<int64_t>{1, 2, 65, 300}, std::vector<int64_t>{64, 256}, single}) {
      const Output pieces = prefill(*backend_, in, cuts);
      EXPECT_TRUE(same_bits(whole.out.data(), pieces.out.data(), static_cast<int64_t>(whole.out.size())))
          << label(c);
      EXPECT_TRUE(same_bits(whole.lse.data(), pieces.lse.data(), static_cast<int64_t>(whole.lse.size())))
          << label(c);
    }
    for (const int64_t prefix : {int64_t{1}, int64_t{64}, int64_t{133}}) {
      const Output hit = prefill(*backend_, in, {200}, prefix);
      const int64_t at = prefix * in.q_cols();
      EXPECT_TRUE(same_bits(whole.out.data() + at, hit.out.data() + at, in.n * in.q_cols() - at))
          << label(c) << " prefix " << prefix;
    }
  }
}

// So many entries that a kernel comes back to the same places of shared memory again and again.
TEST_P(Attention, LongPrefixes) {
  for (const auto& [head_dim, heads] : {std::pair{64, 2}, {128, 8}, {136, 4}}) {
    const DType dtype = has_cache_type(backend_case(), DType::kBF16) ? DType::kBF16 : DType::kF32;
    const Case c{heads, heads / 2, head_dim, 0.0f, 0, dtype};
    const int64_t prefix = head_dim > 128 ? 500 : 1000;
    const Inputs in(c, prefix + 70);
    const Output actual = prefill(*backend_, in, {}, prefix);
    for (const int64_t t : {prefix, prefix + 33, in.n - 1}) {
      for (int64_t h = 0; h < c.heads; ++h) {
        const std::vector<reference::Entry> entries = in.entries(h / 2);
        const auto at = static_cast<size_t>(t * in.q_cols() + h * c.head_dim);
        const auto expected = reference::attention(in.shape, &in.q[at], t, entries);
        expect_close(&actual.out[at], expected.out, tolerance(backend_case(), c.dtype),
                     label(c) + " t=" + std::to_string(t));
      }
    }
  }
}

// A device takes larger blocks of queries where there are enough of them for all of its multiprocessors.
TEST_P(Attention, TheSizeOfBlocksDoesNotMatterToTheBit) {
  const bool is_small = backend_case().is_emulated;
  const int32_t heads = is_small ? 4 : 64;
  const int64_t n = is_small ? 140 : 520, piece = is_small ? 30 : 64;
  std::vector<int64_t> cuts;
  for (int64_t end = piece; end < n; end += piece) cuts.push_back(end);
  for (const Case& c :
       {Case{heads, heads / 2, 128, 0.0f, 0, DType::kF16}, Case{heads, heads / 2, 80, 20.0f, 50, DType::kF16},
        Case{heads, heads / 2, 64, 0.0f, 0, DType::kBF16},
        Case{heads, heads / 2, 256, 0.0f, 0, DType::kBF16}}) {
    if (!has_cache_type(backend_case(), c.dtype)) continue;
    const Inputs in(c, n);
    const Output whole = prefill(*backend_, in, {});
    const Output pieces = prefill(*backend_, in, cuts);
    EXPECT_TRUE(same_bits(whole.out.data(), pieces.out.data(), static_cast<int64_t>(whole.out.size())))
        << label(c);
    EXPECT_TRUE(same_bits(whole.lse.data(), pieces.lse.data(), static_cast<int64_t>(whole.lse.size())))
        << label(c);
    const int64_t prefix = is_small ? 70 : 133;
    const Output hit = prefill(*backend_, in, {}, prefix);
    const int64_t begin = prefix * in.q_cols();
    EXPECT_TRUE(same_bits(whole.out.data() + begin, hit.out.data() + begin, in.n * in.q_cols() - begin))
        << label(c);
    for (const int32_t h : {0, heads - 1}) {
      const std::vector<reference::Entry> entries = in.entries(h / 2);
      for (const int64_t t : {int64_t{0}, int64_t{31}, int64_t{64}, n - 1}) {
        const auto at = static_cast<size_t>(t * in.q_cols() + h * c.head_dim);
        const auto expected = reference::attention(in.shape, &in.q[at], t, entries);
        expect_close(&whole.out[at], expected.out, tolerance(backend_case(), c.dtype),
                     label(c) + " t=" + std::to_string(t));
      }
    }
  }
}

TEST_P(Attention, ThreadsDoNotMatterToTheBit) {
  if (backend_case().is_emulated) GTEST_SKIP() << "the emulator has one thread";
  for (const Case& c : attention_cases(backend_case())) {
    const Inputs in(c, 300);
    const Output two = prefill(*backend_, in, {});
    for (const int threads : {1, 3}) {
      const Output other = prefill(*attention_columns()[GetParam()].make(threads), in, {});
      EXPECT_TRUE(same_bits(two.out.data(), other.out.data(), static_cast<int64_t>(two.out.size())))
          << label(c);
    }
  }
}

// The rows `begin`.. of the inputs as decode rows over pages with all n entries. `rows_each` rows to a segment.
Floats decode(Backend& backend, const Inputs& in, int64_t begin, int64_t rows_each, TestCache& cache) {
  const int64_t rows = in.n - begin;
  Floats out(static_cast<size_t>(rows * in.q_cols()), NAN);
  std::vector<DecodeSegment> segments;
  for (int64_t row = 0; row < rows; row += rows_each) {
    segments.push_back({row, std::min(rows_each, rows - row), cache.tables()});
  }
  backend.decode_attention(
      {in.shape, dense(&in.q[static_cast<size_t>(begin * in.q_cols())], DType::kF32, rows, in.q_cols()),
       std::span(in.positions).subspan(static_cast<size_t>(begin)), segments, cache.view, view(out, rows)});
  return out;
}

void fill(const Inputs& in, TestCache& cache) {
  cache.fill(in.keys(0, in.n), in.values(0, in.n), in.positions);
  for (int32_t& len : cache.kv_len) len = static_cast<int32_t>(in.n);
}

// To the bit on the CPU. The pages behind kv_len hold NaN (TestCache), so this is the poison test too.
TEST_P(Attention, DecodeEqualsPrefill) {
  for (const Case& c : attention_cases(backend_case(), true)) {
    const Inputs in(c, 530);
    const Output whole = prefill(*backend_, in, {});
    TestCache cache(*backend_, c.dtype, c.kv_heads, c.head_dim, 600);
    fill(in, cache);
    for (const int64_t rows : {int64_t{1}, int64_t{5}, int64_t{40}}) {
      const int64_t begin = in.n - rows;
      for (const int threads : {1, 2, 3}) {  // few rows on several threads are split over spans
        if (backend_case().is_emulated && threads > 1) continue;
        const auto backend = attention_columns()[GetParam()].make(threads);
        const Floats out = decode(*backend, in, begin, std::min<int64_t>(rows, 4), cache);
        const float* expected = &whole.out[static_cast<size_t>(begin * in.q_cols())];
        const std::string what =
            label(c) + " rows " + std::to_string(rows) + " threads " + std::to_string(threads);
        if (backend_case().is_exact) {
          EXPECT_TRUE(same_bits(out.data(), expected, static_cast<int64_t>(out.size()))) << what;
        } else {
          // either is as far from the truth as the tolerance allows
          expect_close(out.data(), std::vector<double>(expected, expected + out.size()),
                       2 * tolerance(backend_case(), c.dtype), what);
        }
      }
    }
  }
}

// Heads of different lengths, as after an eviction: each row sees the entries of its own head, by their positions.
TEST_P(Attention, DecodeWithHeadsOfDifferentLengths) {
  if (backend_case().is_half_only) GTEST_SKIP() << "decode is that of another column";
  for (const Case& c : attention_cases(backend_case())) {
    const Inputs in(c, 300);
    TestCache cache(*backend_, c.dtype, c.kv_heads, c.head_dim, 400);
    fill(in, cache);
    for (int32_t h = 0; h < c.kv_heads; ++h)
      cache.kv_len[static_cast<size_t>(h)] = std::max(0, 300 - 137 * h);
    const Floats out = decode(*backend_, in, 298, 2, cache);
    const int64_t group = c.heads / c.kv_heads;
    for (int64_t h = 0; h < c.heads; ++h) {
      std::vector<reference::Entry> entries = in.entries(h / group);
      entries.resize(static_cast<size_t>(cache.kv_len[static_cast<size_t>(h / group)]));
      for (int64_t row = 0; row < 2; ++row) {
        const auto at = static_cast<size_t>(row * in.q_cols() + h * c.head_dim);
        const auto expected = reference::attention(
            in.shape, &in.q[static_cast<size_t>((298 + row) * in.q_cols() + h * c.head_dim)], 298 + row,
            entries);
        expect_close(&out[at], expected.out, tolerance(backend_case(), c.dtype),
                     label(c) + " head " + std::to_string(h));
      }
    }
  }
}

TEST_P(Attention, EmptyRowsAreZero) {
  if (backend_case().is_half_only) GTEST_SKIP() << "decode is that of another column";
  const Inputs in({6, 2, 32, 0.0f, 0, DType::kF32}, 10);
  TestCache cache(*backend_, DType::kF32, 2, 32, 32);
  fill(in, cache);
  cache.kv_len = {0, 10};
  const Floats out = decode(*backend_, in, 9, 1, cache);
  for (int64_t i = 0; i < 3 * 32; ++i) EXPECT_EQ(out[static_cast<size_t>(i)], 0.0f) << i;
  EXPECT_NE(out[3 * 32], 0.0f);
}

// Heads whose entries have all left the window, with lengths at every place of a tile: zeros, and no entry is read.
TEST_P(Attention, HeadsBehindTheWindowAreZero) {
  if (backend_case().is_half_only) GTEST_SKIP() << "decode is that of another column";
  const Inputs in({2, 1, 16, 0.0f, 8, DType::kF32}, 400);
  TestCache cache(*backend_, DType::kF32, 1, 16, 416);
  fill(in, cache);
  for (int32_t len = 1; len < 391; len += backend_case().is_emulated ? 45 : 7) {
    cache.kv_len = {len};
    for (const int threads : {1, 2}) {
      if (backend_case().is_emulated && threads > 1) continue;
      const auto backend = attention_columns()[GetParam()].make(threads);
      const Floats out = decode(*backend, in, 398, 2, cache);
      for (const float x : out) ASSERT_EQ(x, 0.0f) << len;
    }
  }
}

TEST_P(Attention, NanStaysInItsHeadAndRow) {
  Inputs in({4, 2, 32, 0.0f, 0, backend_case().is_half_only ? DType::kF16 : DType::kF32}, 100);
  in.q[static_cast<size_t>(50 * in.q_cols() + 32)] = NAN;  // row 50, head 1
  const Output out = prefill(*backend_, in, {});
  for (int64_t t = 0; t < 100; ++t) {
    for (int64_t c = 0; c < in.q_cols(); ++c) {
      ASSERT_EQ(std::isnan(out.out[static_cast<size_t>(t * in.q_cols() + c)]), t == 50 && c / 32 == 1)
          << t << " " << c;
    }
  }
}

}  // namespace
}  // namespace restkv

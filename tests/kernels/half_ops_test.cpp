// The CUDA backend in bf16 and f16, run by the emulator and by a card where there is one: activations, weights and cache of 16 bits, sums in f32, against the
// f64 reference over the rounded inputs; results are off by their own rounding.
#include "tests/kernels/backend_cases.h"
#include "tests/kernels/reference_ops.h"

namespace restkv {
namespace {

struct HalfCase {
  DType type;
  bool is_card;
};

class HalfOps : public testing::TestWithParam<HalfCase> {
 protected:
  void SetUp() override {
    backend_ = GetParam().is_card ? open_test_card(false, type())
                                  : with_host_memory(make_emulated_backend({.type = type()}));
  }
  static DType type() { return GetParam().type; }
  // Half a unit in the last place of a value of 1, with room for two roundings.
  double tolerance() const { return type() == DType::kBF16 ? 2e-2 : 2.5e-3; }

  // [rows, cols] in the backend's type; `floats` becomes what was stored.
  struct Values {
    std::vector<uint16_t> bits;
    Floats floats;
    Tensor tensor;
  };
  Values make(Floats floats, int64_t rows) {
    Values v;
    v.bits.resize(floats.size());
    v.floats = std::move(floats);
    for (size_t i = 0; i < v.bits.size(); ++i) v.bits[i] = to_bits(v.floats[i]);
    v.tensor = dense(v.bits.data(), type(), rows, static_cast<int64_t>(v.bits.size()) / rows);
    read(v);
    return v;
  }
  void read(Values& v) const {
    for (size_t i = 0; i < v.bits.size(); ++i)
      v.floats[i] = type() == DType::kBF16 ? bf16_to_f32(v.bits[i]) : f16_to_f32(v.bits[i]);
  }
  uint16_t to_bits(float x) const { return type() == DType::kBF16 ? f32_to_bf16(x) : f32_to_f16(x); }

  // Rows `shift` values behind an aligned address, and so many values between them, which nobody may touch.
  struct Placed {
    std::vector<uint16_t> bits;
    Tensor tensor;
    int64_t shift;
  };
  Placed place(const Floats& floats, int64_t rows, int64_t shift) const {
    const int64_t cols = static_cast<int64_t>(floats.size()) / rows, stride = cols + shift;
    Placed placed{std::vector<uint16_t>(static_cast<size_t>(shift + rows * stride), kGap), {}, shift};
    for (int64_t i = 0; i < rows * cols; ++i)
      placed.bits[static_cast<size_t>(shift + i / cols * stride + i % cols)] =
          to_bits(floats[static_cast<size_t>(i)]);
    placed.tensor = {placed.bits.data() + shift, type(), rows, cols, stride};
    return placed;
  }
  static std::vector<uint16_t> rows_of(const Placed& placed) {
    const Tensor& t = placed.tensor;
    std::vector<uint16_t> rows;
    for (int64_t i = 0; i < static_cast<int64_t>(placed.bits.size()); ++i) {
      const bool is_gap = i < placed.shift || (i - placed.shift) % t.stride >= t.cols;
      const uint16_t value = placed.bits[static_cast<size_t>(i)];
      if (is_gap) {
        EXPECT_EQ(value, kGap) << "between rows, at " << i;
      } else {
        rows.push_back(value);
      }
    }
    return rows;
  }
  static constexpr uint16_t kGap = 0x7FA5;  // NaN in both types
  static constexpr int64_t kShifts[] = {0, 1, 2, 4};

  std::unique_ptr<Backend> backend_;
};

std::vector<HalfCase> half_cases() {
  std::vector<HalfCase> cases = {{DType::kBF16, false}, {DType::kF16, false}};
  if (cuda::count_cards().ok()) cases.insert(cases.end(), {{DType::kBF16, true}, {DType::kF16, true}});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Types, HalfOps, testing::ValuesIn(half_cases()), [](const auto& info) {
  return std::string(dtype_info(info.param.type).name) + (info.param.is_card ? "_cuda" : "");
});

std::vector<double> doubles(const float* x, int64_t n) { return std::vector<double>(x, x + n); }

TEST_P(HalfOps, MatmulOfEveryWeightType) {
  for (const DType dtype : kWeightTypes) {
    struct Shape {
      int64_t rows, n, cols;
    };
    for (const auto& [rows, n, cols] :
         {Shape{1, 70, 256}, Shape{1, 7, 4352}, Shape{2, 9, 512}, Shape{70, 90, 256}, Shape{5, 33, 172}}) {
      if (cols % dtype_info(dtype).block_elems != 0) continue;
      const Weights weight(dtype, n, cols, 1);
      const PlacedWeight placed(*backend_, weight.tensor);
      ASSERT_EQ(placed.tensor().dtype, type());
      Values x = make(random_floats(rows * cols, 2), rows),
             out = make(Floats(static_cast<size_t>(rows * n)), rows);
      Floats logits(static_cast<size_t>(rows * n));
      const MatmulOutput outputs[] = {{placed.tensor(), {}, out.tensor},
                                      {placed.tensor(), {}, view(logits, rows)}};
      backend_->matmul({x.tensor, outputs});
      read(out);
      for (int64_t t = 0; t < rows; ++t) {
        std::vector<double> expected;
        for (int64_t i = 0; i < n; ++i)
          expected.push_back(reference::dot(&x.floats[static_cast<size_t>(t * cols)],
                                            reference::weight_row(placed.tensor(), i)));
        const std::string what = std::string(dtype_info(dtype).name) + " T=" + std::to_string(rows);
        expect_close(&logits[static_cast<size_t>(t * n)], expected, 2e-5, what + " f32");
        expect_close(&out.floats[static_cast<size_t>(t * n)], expected, tolerance(), what);
      }
    }
  }
}

TEST_P(HalfOps, RmsNormAndAdd) {
  struct Shape {
    int64_t cols, groups;
  };
  for (const auto& [cols, groups] : {Shape{600, 1}, Shape{64, 3}, Shape{5, 1}}) {
    const int64_t rows = 4, n = cols * groups;
    const Weights weight(DType::kF32, 1, cols, 1);
    Values x = make(random_floats(rows * n, 2, 3.0f), rows),
           residual = make(random_floats(rows * n, 3), rows);
    const Floats before = residual.floats;
    Values out = make(Floats(static_cast<size_t>(rows * n)), rows);
    backend_->rmsnorm({x.tensor, residual.tensor, weight.tensor, 1e-5f, 1.0f, out.tensor});
    read(out);
    read(residual);
    for (int64_t t = 0; t < rows; ++t) {
      const auto at = static_cast<size_t>(t * n);
      std::vector<double> sum;
      for (size_t c = at; c < at + static_cast<size_t>(n); ++c)
        sum.push_back(static_cast<double>(x.floats[c]) + static_cast<double>(before[c]));
      expect_close(&residual.floats[at], sum, tolerance(), "residual");
      expect_close(&out.floats[at],
                   reference::rmsnorm(doubles(&residual.floats[at], n),
                                      reference::weight_row(weight.tensor, 0), 1e-5, 1.0),
                   tolerance(), "rmsnorm");
    }
    const Floats kept = residual.floats;
    backend_->add({residual.tensor, x.tensor});
    read(residual);
    std::vector<double> sum;
    for (size_t i = 0; i < kept.size(); ++i)
      sum.push_back(static_cast<double>(kept[i]) + static_cast<double>(x.floats[i]));
    expect_close(residual.floats.data(), sum, tolerance(), "add");
  }
}

TEST_P(HalfOps, GluAndGather) {
  for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
    Values gate = make(random_floats(5 * 1300, 1, 4.0f), 5), up = make(random_floats(5 * 1300, 2), 5);
    std::vector<double> expected;
    for (size_t i = 0; i < gate.floats.size(); ++i) {
      expected.push_back(reference::activate(activation, static_cast<double>(gate.floats[i])) *
                         static_cast<double>(up.floats[i]));
    }
    backend_->glu({gate.tensor, up.tensor, activation, gate.tensor});
    read(gate);
    expect_close(gate.floats.data(), expected, tolerance() * 4, "glu");  // the largest are far above the mean
  }
  const Weights table(DType::kQ8_0, 30, 64, 5);
  const PlacedWeight placed(*backend_, table.tensor);
  const std::vector<int32_t> ids = {29, 0, 7};
  Values out = make(Floats(3 * 64), 3);
  backend_->gather({placed.tensor(), ids, 8.0f, out.tensor});
  read(out);
  for (size_t t = 0; t < ids.size(); ++t) {
    std::vector<double> expected = reference::weight_row(placed.tensor(), ids[t]);
    for (double& v : expected) v *= 8.0;
    expect_close(&out.floats[t * 64], expected, tolerance(), "gather");
  }
}

// Kernels take pieces of 16 bytes where addresses allow it, and values one by one elsewhere, with the same result to the bit;
// widths with a rest, and the widest that a block keeps in its registers and wider.
TEST_P(HalfOps, RowsAtOddAddressesAreTheSame) {
  for (const int64_t cols :
       {int64_t{5}, int64_t{64}, int64_t{136}, int64_t{600}, int64_t{604}, int64_t{4104}, int64_t{16400}}) {
    for (const int64_t rows : {int64_t{1}, int64_t{3}}) {
      if (cols > 10000 && rows > 1) continue;
      const int64_t groups = cols == 64 || cols == 136 ? 5 : 1, n = rows * groups * cols;
      const Floats x = random_floats(n, 1, 3.0f), residual = random_floats(n, 2);
      for (const DType kind : {DType::kF32, DType::kF16, DType::kBF16}) {
        const Weights weight(kind, 1, cols, 3);
        std::vector<std::vector<uint16_t>> first;
        for (const int64_t shift : kShifts) {
          Placed in = place(x, rows, shift), sum = place(residual, rows, shift), out = place(x, rows, shift),
                 own = place(x, rows, shift);
          backend_->rmsnorm({in.tensor, sum.tensor, weight.tensor, 1e-5f, 1.0f, out.tensor});
          backend_->rmsnorm({own.tensor, {}, weight.tensor, 1e-5f, 0.0f, own.tensor});  // in place
          std::vector<std::vector<uint16_t>> all = {rows_of(sum), rows_of(out), rows_of(own)};
          if (kind == DType::kF32) {
            backend_->add({sum.tensor, in.tensor});
            backend_->glu({in.tensor, sum.tensor, Activation::kSilu, in.tensor});
            all.push_back(rows_of(sum));
            all.push_back(rows_of(in));
          }
          if (first.empty()) first = all;
          EXPECT_EQ(all, first) << rows << " x " << cols << ", " << shift << " values off, weight "
                                << dtype_info(kind).name;
        }
      }
    }
  }
  const Weights table(DType::kF32, 9, 260, 4);
  const PlacedWeight placed(*backend_, table.tensor);
  for (const float scale : {1.0f, 3.0f}) {
    std::vector<uint16_t> first;
    for (const int64_t shift : kShifts) {
      Placed out = place(Floats(2 * 260), 2, shift);
      const std::vector<int32_t> ids = {8, 3};
      backend_->gather({placed.tensor(), ids, scale, out.tensor});
      if (first.empty()) first = rows_of(out);
      EXPECT_EQ(rows_of(out), first) << shift;
    }
  }
}

TEST_P(HalfOps, RowsAtOddAddressesAreStoredTheSame) {
  const int32_t heads = 3, kv_heads = 2, rows = 19;
  for (const int32_t head_dim : {8, 24, 128, 256}) {
    const Floats q = random_floats(rows * heads * head_dim, 1),
                 k = random_floats(rows * kv_heads * head_dim, 2),
                 v = random_floats(rows * kv_heads * head_dim, 3), rope = random_floats(rows * head_dim, 4);
    std::vector<int32_t> positions;
    for (int32_t t = 0; t < rows; ++t) positions.push_back(3 * t);
    for (const bool interleaved : {false, true}) {
      std::vector<std::vector<uint16_t>> first;
      std::vector<std::byte> first_pages;
      for (const int64_t shift : kShifts) {
        TestCache pages(*backend_, type(), kv_heads, head_dim, 64);
        pages.kv_len = {5, 14};
        Placed turned_q = place(q, rows, shift), turned_k = place(k, rows, shift),
               values = place(v, rows, shift);
        Placed kept_k = place(Floats(k.size()), rows, shift), kept_v = place(Floats(k.size()), rows, shift);
        StoreSegment segment;
        segment.num_rows = rows;
        segment.scratch_k = kept_k.tensor;
        segment.scratch_v = kept_v.tensor;
        backend_->rope_and_store({turned_q.tensor,
                                  turned_k.tensor,
                                  values.tensor,
                                  view(rope, rows),
                                  interleaved,
                                  positions,
                                  {&segment, 1},
                                  pages.view});
        EXPECT_EQ(rows_of(kept_k), rows_of(turned_k));
        EXPECT_EQ(rows_of(kept_v), rows_of(values));
        backend_->store_pages(
            {kept_k.tensor, kept_v.tensor, positions, pages.tables(), kv_heads, pages.view});
        const std::vector<std::vector<uint16_t>> all = {rows_of(turned_q), rows_of(turned_k)};
        std::vector<std::byte> stored;
        const auto row_bytes = static_cast<size_t>(bytes_of(type(), head_dim));
        for (int32_t h = 0; h < kv_heads; ++h) {
          for (int32_t t = 0; t < rows; ++t) {
            const int32_t entry = pages.kv_len[static_cast<size_t>(h)] + t;
            const int32_t page =
                pages.pages[static_cast<size_t>(h * pages.stride + entry / pages.view.slots)];
            const auto slot = static_cast<size_t>(entry % pages.view.slots);
            for (const std::byte* at : {pages.view.keys(page), pages.view.values(page)})
              stored.insert(stored.end(), at + slot * row_bytes, at + (slot + 1) * row_bytes);
            EXPECT_EQ(pages.view.positions(page)[slot], 3 * t);
          }
        }
        if (first.empty()) {
          first = all;
          first_pages = stored;
        }
        EXPECT_EQ(all, first) << "D=" << head_dim << ", " << shift << " values off";
        EXPECT_EQ(stored, first_pages) << "D=" << head_dim << ", " << shift << " values off";
      }
    }
  }
}

// Attention over what rope_and_store wrote to pages, all in 16 bits.
TEST_P(HalfOps, RotatedKeysAreAttendedInPages) {
  const int32_t heads = 4, kv_heads = 2, head_dim = 24, rows = 37;
  TestCache cache(*backend_, type(), kv_heads, head_dim, 64);
  Values q = make(random_floats(rows * heads * head_dim, 1), rows),
         k = make(random_floats(rows * kv_heads * head_dim, 2), rows);
  Values v = make(random_floats(rows * kv_heads * head_dim, 3), rows),
         out = make(Floats(q.floats.size()), rows);
  const Floats rope = random_floats(rows * head_dim, 4, 0.7f);
  std::vector<int32_t> positions;
  for (int32_t t = 0; t < rows; ++t) positions.push_back(t);
  const Floats plain_q = q.floats;
  StoreSegment store;
  store.num_rows = rows;
  store.tables = cache.tables();
  backend_->rope_and_store(
      {q.tensor, k.tensor, v.tensor, view(rope, rows), false, positions, {&store, 1}, cache.view});
  cache.kv_len = {rows, rows};
  read(q);
  read(k);
  for (int32_t t = 0; t < rows; ++t) {
    for (int32_t h = 0; h < heads; ++h) {
      const auto at = static_cast<size_t>((t * heads + h) * head_dim);
      expect_close(&q.floats[at],
                   reference::rotate(&plain_q[at], &rope[static_cast<size_t>(t * head_dim)], head_dim, false),
                   tolerance(), "q");
    }
  }
  const AttentionShape shape{heads, kv_heads, head_dim, 0.2f, 0.0f, 0};
  const DecodeSegment segment{0, rows, cache.tables()};
  backend_->decode_attention({shape, q.tensor, positions, {&segment, 1}, cache.view, out.tensor});
  read(out);
  for (int32_t h = 0; h < heads; ++h) {
    std::vector<reference::Entry> entries(static_cast<size_t>(rows));
    for (int32_t t = 0; t < rows; ++t) {
      const auto at = static_cast<size_t>((t * kv_heads + h / 2) * head_dim);
      entries[static_cast<size_t>(t)] = {doubles(&k.floats[at], head_dim), doubles(&v.floats[at], head_dim),
                                         t};
    }
    for (int32_t t = 0; t < rows; ++t) {
      const auto at = static_cast<size_t>((t * heads + h) * head_dim);
      expect_close(&out.floats[at], reference::attention(shape, &q.floats[at], t, entries).out,
                   tolerance() * 2, "out");
    }
  }
}

}  // namespace
}  // namespace restkv

// The table: every op x dtype x shape on every backend present, against the naive f64 reference.
#include "tests/kernels/backend_cases.h"
#include "tests/kernels/reference_ops.h"

namespace restkv {
namespace {

class OpTable : public testing::TestWithParam<size_t> {
 protected:
  void SetUp() override { backend_ = backend_cases()[GetParam()].make(2); }
  std::unique_ptr<Backend> backend_;
};

INSTANTIATE_TEST_SUITE_P(Backends, OpTable, testing::Range(size_t{0}, backend_cases().size()),
                         [](const auto& info) { return backend_cases()[info.param].name; });

std::string label(DType dtype, int64_t rows, int64_t n, int64_t cols) {
  return std::string(dtype_info(dtype).name) + " T=" + std::to_string(rows) + " N=" + std::to_string(n) +
         " C=" + std::to_string(cols);
}

std::vector<double> as_row(const float* x, int64_t n) { return std::vector<double>(x, x + n); }

TEST_P(OpTable, Matmul) {
  struct Shape {
    int64_t rows, n, cols;
  };
  for (const DType dtype : kWeightTypes) {
    for (const Shape& s :
         {Shape{1, 64, 256}, Shape{1, 1, 512}, Shape{1, 6, 4352}, Shape{3, 37, 256}, Shape{18, 50, 768},
          Shape{1, 13, 172}, Shape{5, 26, 172}, Shape{2, 9, 5}, Shape{1, 3, 96}, Shape{4, 7, 96}}) {
      if (s.cols % dtype_info(dtype).block_elems != 0) continue;
      const std::string what = label(dtype, s.rows, s.n, s.cols);
      const Weights first(dtype, s.n, s.cols, 1), second(DType::kF32, s.n + 2, s.cols, 2);
      const Weights bias(DType::kBF16, 1, s.n, 3);
      const PlacedWeight placed(*backend_, first.tensor), placed_second(*backend_, second.tensor);
      const Floats x = random_floats(s.rows * s.cols, 4);
      Floats a(static_cast<size_t>(s.rows * s.n), NAN), b(static_cast<size_t>(s.rows * (s.n + 2)), NAN);
      const MatmulOutput outputs[] = {{placed.tensor(), bias.tensor, view(a, s.rows)},
                                      {placed_second.tensor(), {}, view(b, s.rows)}};
      backend_->matmul({view(x, s.rows), outputs});
      const reference::Row bias_row = reference::weight_row(bias.tensor, 0);
      for (int64_t t = 0; t < s.rows; ++t) {
        std::vector<double> expected_a, expected_b;
        for (int64_t n = 0; n < s.n; ++n) {
          expected_a.push_back(
              reference::dot(&x[static_cast<size_t>(t * s.cols)], reference::weight_row(first.tensor, n)) +
              bias_row[static_cast<size_t>(n)]);
        }
        for (int64_t n = 0; n < s.n + 2; ++n) {
          expected_b.push_back(
              reference::dot(&x[static_cast<size_t>(t * s.cols)], reference::weight_row(second.tensor, n)));
        }
        expect_close(&a[static_cast<size_t>(t * s.n)], expected_a, 2e-5, what);
        expect_close(&b[static_cast<size_t>(t * (s.n + 2))], expected_b, 2e-5, what + " second");
      }
    }
  }
}

TEST_P(OpTable, MatmulKeepsNanAndInfinityInTheirRows) {
  const int64_t cols = 64, n = 10;
  const Weights weights(DType::kQ8_0, n, cols, 1);
  const PlacedWeight placed(*backend_, weights.tensor);
  for (const int64_t rows : {int64_t{1}, int64_t{6}}) {
    Floats x = random_floats(rows * cols, 2);
    x[static_cast<size_t>((rows - 1) * cols + 5)] = NAN;
    Floats out(static_cast<size_t>(rows * n));
    const MatmulOutput outputs[] = {{placed.tensor(), {}, view(out, rows)}};
    backend_->matmul({view(x, rows), outputs});
    for (int64_t i = 0; i < rows * n; ++i) {
      EXPECT_EQ(std::isnan(out[static_cast<size_t>(i)]), i / n == rows - 1) << i;
    }
  }
}

// The vector decoders of the backend against the scalar ones, bit for bit, over every f16 as a scale where there is one.
TEST_P(OpTable, GatherIsExact) {
  for (const DType dtype : kWeightTypes) {
    const int64_t cols = 768, vocab = 90;
    const Weights table(dtype, vocab, cols, 5);
    const PlacedWeight placed(*backend_, table.tensor);
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < vocab; ++i) ids.push_back((i * 37) % static_cast<int32_t>(vocab));
    Floats out(static_cast<size_t>(vocab * cols)), row(static_cast<size_t>(cols));
    backend_->gather({placed.tensor(), ids, 1.0f, view(out, vocab)});
    for (int64_t t = 0; t < vocab; ++t) {
      dequantize_row(dtype, table.tensor.row(ids[static_cast<size_t>(t)]), row.data(), cols);
      ASSERT_TRUE(same_bits(&out[static_cast<size_t>(t * cols)], row.data(), cols))
          << dtype_info(dtype).name << " " << t;
    }
    // Ids that a sample op left on the device, among others.
    const std::vector<int32_t> drawn = {static_cast<int32_t>(vocab) - 1, 1};
    const std::vector<int32_t> mixed = {~1, 0, ~0, ~0};
    Floats few(mixed.size() * static_cast<size_t>(cols));
    backend_->gather({placed.tensor(), mixed, 1.0f, view(few, 4), dense(drawn.data(), DType::kI32, 1, 2)});
    for (size_t t = 0; t < mixed.size(); ++t) {
      const int32_t id = mixed[t] >= 0 ? mixed[t] : drawn[static_cast<size_t>(~mixed[t])];
      dequantize_row(dtype, table.tensor.row(id), row.data(), cols);
      ASSERT_TRUE(same_bits(&few[t * static_cast<size_t>(cols)], row.data(), cols)) << t;
    }
    backend_->gather({placed.tensor(), ids, 2.5f, view(out, vocab)});
    dequantize_row(dtype, table.tensor.row(ids[3]), row.data(), cols);
    for (int64_t c = 0; c < cols; ++c) {
      ASSERT_EQ(out[static_cast<size_t>(3 * cols + c)], row[static_cast<size_t>(c)] * 2.5f)
          << dtype_info(dtype).name;
    }
  }
}

TEST_P(OpTable, EveryHalfConvertsExactly) {
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                            DType::kQ8_0, DType::kIQ4_NL}) {
    const DTypeInfo& info = dtype_info(dtype);
    const int64_t cols = 65536 * info.block_elems;
    std::vector<std::byte> bytes(static_cast<size_t>(65536 * info.block_bytes), std::byte{0xA7});
    for (uint32_t h = 0; h < 65536; ++h) {
      const auto half = static_cast<uint16_t>((h & 0x7C00u) == 0x7C00u && info.block_elems > 1 ? 0 : h);
      std::byte* block = bytes.data() + h * static_cast<size_t>(info.block_bytes);
      std::memcpy(block, &half, 2);
      if (dtype == DType::kQ4_1 || dtype == DType::kQ5_1) std::memset(block + 2, 0, 2);
    }
    Floats out(static_cast<size_t>(cols)), expected(static_cast<size_t>(cols));
    const std::vector<int32_t> ids = {0};
    const PlacedWeight placed(*backend_, dense(bytes.data(), dtype, 1, cols));
    backend_->gather({placed.tensor(), ids, 1.0f, view(out, 1)});
    dequantize_row(dtype, bytes.data(), expected.data(), cols);
    for (int64_t i = 0; i < cols; ++i) {
      const auto n = static_cast<size_t>(i);
      // hardware turns a signalling NaN into a quiet one
      if (std::isnan(expected[n]) && std::isnan(out[n])) continue;
      ASSERT_TRUE(same_bits(&out[n], &expected[n], 1))
          << info.name << " " << i << ": " << out[n] << " " << expected[n];
    }
  }
}

TEST_P(OpTable, RmsNorm) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const int64_t cols : {int64_t{576}, int64_t{64}, int64_t{5}, int64_t{172}}) {
      for (const int64_t groups : {int64_t{1}, int64_t{3}}) {
        for (const bool with_residual : {false, true}) {
          const int64_t rows = 4;
          const Weights weight(dtype, 1, cols, 1);
          const Floats x = random_floats(rows * groups * cols, 2, 3.0f);
          Floats residual = random_floats(rows * groups * cols, 3);
          const Floats before = residual;
          Floats out(x.size());
          backend_->rmsnorm({view(x, rows), with_residual ? view(residual, rows) : Tensor{}, weight.tensor,
                             1e-5f, 1.0f, view(out, rows)});
          for (int64_t t = 0; t < rows; ++t) {
            const int64_t n = groups * cols;
            std::vector<double> in = as_row(&x[static_cast<size_t>(t * n)], n);
            if (with_residual) {
              for (int64_t c = 0; c < n; ++c) {
                in[static_cast<size_t>(c)] += static_cast<double>(before[static_cast<size_t>(t * n + c)]);
              }
              expect_close(&residual[static_cast<size_t>(t * n)], in, 1e-6, "residual");
            }
            expect_close(&out[static_cast<size_t>(t * n)],
                         reference::rmsnorm(in, reference::weight_row(weight.tensor, 0), 1e-5, 1.0), 2e-6,
                         "rmsnorm");
          }
        }
      }
    }
  }
}

TEST_P(OpTable, Add) {
  for (const int64_t cols : {int64_t{7}, int64_t{4096}}) {
    const Floats x = random_floats(9 * cols, 1);
    Floats residual = random_floats(9 * cols, 2);
    std::vector<double> expected;
    for (size_t i = 0; i < x.size(); ++i)
      expected.push_back(static_cast<double>(x[i]) + static_cast<double>(residual[i]));
    backend_->add({view(residual, 9), view(x, 9)});
    expect_close(residual.data(), expected, 1e-7 * 4, "add");
  }
}

TEST_P(OpTable, Glu) {
  for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
    for (const int64_t cols : {int64_t{1536}, int64_t{13}}) {
      Floats gate = random_floats(5 * cols, 1, 4.0f);
      gate[0] = 200.0f;
      gate[1] = -200.0f;
      gate[2] = NAN;
      gate[3] = 0.0f;
      const Floats up = random_floats(5 * cols, 2);
      Floats out(gate.size());
      backend_->glu({view(gate, 5), view(up, 5), activation, view(out, 5)});
      std::vector<double> expected;
      for (size_t i = 0; i < gate.size(); ++i) {
        expected.push_back(reference::activate(activation, static_cast<double>(gate[i])) *
                           static_cast<double>(up[i]));
      }
      expect_close(out.data(), expected, 1e-5, "glu");
      backend_->glu({view(gate, 5), view(up, 5), activation, view(gate, 5)});
      EXPECT_TRUE(same_bits(&gate[3], &out[3], static_cast<int64_t>(out.size()) - 3)) << "in place";
    }
  }
}

TEST_P(OpTable, SoftcapIsAccurateEverywhere) {
  Floats x;
  std::vector<double> expected;
  for (double v = -400.0; v < 400.0; v += 0.37) x.push_back(static_cast<float>(v));
  for (double v = 1e-6; v < 1.0; v *= 1.3) x.push_back(static_cast<float>(v));
  for (const float v : x) expected.push_back(30.0 * std::tanh(static_cast<double>(v) / 30.0));
  backend_->softcap({view(x, 1), 30.0f});
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_NEAR(static_cast<double>(x[i]), expected[i], 4e-7 * std::abs(expected[i])) << i;
  }
}

TEST_P(OpTable, RopeTable) {
  const std::vector<int32_t> positions = {0, 1, 17, 4095, 131071};
  const std::vector<float> inv_freq = {1.0f, 0.1f, 0.0123f, 1e-4f};
  Floats out(positions.size() * 8);
  backend_->rope_table({positions, inv_freq, 1.25f, view(out, 5)});
  for (size_t t = 0; t < positions.size(); ++t) {
    for (size_t i = 0; i < 4; ++i) {
      // the angle is defined in f32
      const double angle = static_cast<double>(static_cast<float>(positions[t]) * inv_freq[i]);
      EXPECT_NEAR(static_cast<double>(out[t * 8 + i]), 1.25 * std::cos(angle), 3e-7);
      EXPECT_NEAR(static_cast<double>(out[t * 8 + 4 + i]), 1.25 * std::sin(angle), 3e-7);
    }
  }
}

double stored(const std::byte* row, DType dtype, int64_t i) {
  float value;
  dequantize_row(dtype, row + bytes_of(dtype, i), &value, 1);
  return static_cast<double>(value);
}

// Rotates, writes one segment to scratch and appends the other to pages that hold entries already.
TEST_P(OpTable, RopeAndStore) {
  for (const DType dtype : {DType::kF32, DType::kF16}) {
    for (const bool interleaved : {false, true}) {
      for (const int32_t head_dim : {8, 48, 64}) {
        const int64_t rows = 43, heads = 4, kv_heads = 2, scratch_rows = 20;
        const std::string what = std::string(dtype_info(dtype).name) + " D=" + std::to_string(head_dim);
        const Floats q = random_floats(rows * heads * head_dim, 1),
                     k = random_floats(rows * kv_heads * head_dim, 2);
        const Floats v = random_floats(rows * kv_heads * head_dim, 3),
                     rope = random_floats(rows * head_dim, 4);
        Floats q_out = q, k_out = k;
        std::vector<int32_t> positions;
        for (int32_t t = 0; t < rows; ++t) positions.push_back(100 + t);
        TestCache cache(*backend_, dtype, kv_heads, head_dim, 64);
        cache.kv_len = {5, 30};
        std::vector<std::byte> scratch_k(
            static_cast<size_t>(bytes_of(dtype, scratch_rows * kv_heads * head_dim)));
        std::vector<std::byte> scratch_v(scratch_k.size());
        StoreSegment segments[2];
        segments[0] = {0,
                       scratch_rows,
                       dense(scratch_k.data(), dtype, scratch_rows, kv_heads * head_dim),
                       dense(scratch_v.data(), dtype, scratch_rows, kv_heads * head_dim),
                       {}};
        segments[1].row_begin = scratch_rows;
        segments[1].num_rows = rows - scratch_rows;
        segments[1].tables = cache.tables();
        backend_->rope_and_store({view(q_out, rows), view(k_out, rows), view(v, rows), view(rope, rows),
                                  interleaved, positions, segments, cache.view});
        const double cache_error = dtype == DType::kF16 ? 2e-3 : 1e-6;
        for (int64_t t = 0; t < rows; ++t) {
          const float* table = &rope[static_cast<size_t>(t * head_dim)];
          for (int64_t h = 0; h < heads; ++h) {
            const auto at = static_cast<size_t>((t * heads + h) * head_dim);
            expect_close(&q_out[at], reference::rotate(&q[at], table, head_dim, interleaved), 1e-6,
                         what + " q");
          }
          for (int64_t h = 0; h < kv_heads; ++h) {
            const auto at = static_cast<size_t>((t * kv_heads + h) * head_dim);
            const reference::Row rotated = reference::rotate(&k[at], table, head_dim, interleaved);
            expect_close(&k_out[at], rotated, 1e-6, what + " k");
            const std::byte* k_row = scratch_k.data() + bytes_of(dtype, static_cast<int64_t>(at));
            const std::byte* v_row = scratch_v.data() + bytes_of(dtype, static_cast<int64_t>(at));
            if (t >= scratch_rows) {
              const int32_t entry =
                  cache.kv_len[static_cast<size_t>(h)] + static_cast<int32_t>(t - scratch_rows);
              const int32_t page =
                  cache.pages[static_cast<size_t>(h * cache.stride + entry / cache.view.slots)];
              const int32_t slot = entry % cache.view.slots;
              k_row = cache.view.keys(page) + bytes_of(dtype, int64_t{slot} * head_dim);
              v_row = cache.view.values(page) + bytes_of(dtype, int64_t{slot} * head_dim);
              ASSERT_EQ(cache.view.positions(page)[slot], positions[static_cast<size_t>(t)]) << what;
            }
            for (int64_t i = 0; i < head_dim; ++i) {
              const auto n = static_cast<size_t>(i);
              ASSERT_NEAR(stored(k_row, dtype, i), rotated[n], cache_error * (1.0 + std::abs(rotated[n])))
                  << what;
              ASSERT_NEAR(stored(v_row, dtype, i), static_cast<double>(v[at + n]),
                          cache_error * (1.0 + std::abs(static_cast<double>(v[at + n]))))
                  << what;
            }
          }
        }
      }
    }
  }
}

TEST_P(OpTable, StorePages) {
  for (const DType dtype : {DType::kF32, DType::kF16}) {
    const int32_t head_dim = 24, kv_heads = 3, rows = 50;
    Weights k(dtype, rows, kv_heads * head_dim, 1), v(dtype, rows, kv_heads * head_dim, 2);
    std::vector<int32_t> positions;
    for (int32_t t = 0; t < rows; ++t) positions.push_back(2 * t);
    TestCache cache(*backend_, dtype, kv_heads, head_dim, 80);
    cache.kv_len = {0, 7, 30};
    backend_->store_pages({k.tensor, v.tensor, positions, cache.tables(), kv_heads, cache.view});
    const int64_t row_bytes = bytes_of(dtype, head_dim);
    for (int32_t t = 0; t < rows; ++t) {
      for (int32_t h = 0; h < kv_heads; ++h) {
        const int32_t entry = cache.kv_len[static_cast<size_t>(h)] + t;
        const int32_t page = cache.pages[static_cast<size_t>(h * cache.stride + entry / cache.view.slots)];
        const int32_t slot = entry % cache.view.slots;
        const auto* k_row = static_cast<const std::byte*>(k.tensor.row(t)) + h * row_bytes;
        const auto* v_row = static_cast<const std::byte*>(v.tensor.row(t)) + h * row_bytes;
        ASSERT_EQ(
            std::memcmp(cache.view.keys(page) + slot * row_bytes, k_row, static_cast<size_t>(row_bytes)), 0);
        ASSERT_EQ(
            std::memcmp(cache.view.values(page) + slot * row_bytes, v_row, static_cast<size_t>(row_bytes)),
            0);
        ASSERT_EQ(cache.view.positions(page)[slot], 2 * t);
      }
    }
  }
}

TEST_P(OpTable, MemoryIsZeroAndUntouched) {
  // On the CPU far beyond what the machine need have.
  const int64_t size = backend_->is_host_memory() ? int64_t{1} << 34 : int64_t{1} << 20;
  const auto buffer = backend_->allocate(size);
  ASSERT_NE(buffer, nullptr);
  std::byte middle{1};
  backend_->read_back(dense(buffer->data() + size / 2, DType::kU8, 1, 1), &middle);
  EXPECT_EQ(middle, std::byte{0});
  EXPECT_EQ(backend_->allocate(int64_t{1} << 60), nullptr);
}

TEST(CpuTarget, ArgumentAndEnvironmentLimitIt) {
  ASSERT_FALSE(cpu_targets().empty());
  EXPECT_EQ(cpu_targets().back(), "plain");
  EXPECT_EQ(make_cpu_backend(1, "no such target"), nullptr);
  EXPECT_NE(make_cpu_backend(1, "plain"), nullptr);
  const char* before = std::getenv("RESTKV_CPU_TARGET");
  const std::string kept = before == nullptr ? "" : before;
  setenv("RESTKV_CPU_TARGET", "no such target", 1);
  EXPECT_EQ(make_cpu_backend(1), nullptr);
  EXPECT_NE(make_cpu_backend(1, "plain"), nullptr) << "the argument comes first";
  before == nullptr ? unsetenv("RESTKV_CPU_TARGET") : setenv("RESTKV_CPU_TARGET", kept.c_str(), 1);
}

}  // namespace
}  // namespace restkv

// Random q, k, v of one sequence in one layer, for the attention tests: k and v in the cache's type, as rows, in pages, and
// as the f64 reference wants them.
#pragma once

#include "tests/kernels/backend_cases.h"
#include "tests/kernels/reference_ops.h"

namespace restkv {

struct Case {
  int32_t heads, kv_heads, head_dim;
  float softcap;
  int32_t window;
  DType dtype;
};

// The columns of attention: prefill has a kernel of its own for caches of 16 bits on sm_90.
inline const std::vector<BackendCase>& attention_columns() {
  static const std::vector<BackendCase> columns = [] {
    std::vector<BackendCase> list = device_op_cases();
    const auto emulated =
        std::find_if(list.begin(), list.end(), [](const BackendCase& c) { return c.is_emulated; });
    if (emulated == list.end()) return list;
    BackendCase sm90 = *emulated;
    sm90.name = "emulated_sm90";
    sm90.is_half_only = true;
    sm90.make = [](int) {
      return with_host_memory(
          make_emulated_backend({.memory_bytes = kEmulatedBytes, .card = emulator::Card::kSm90}));
    };
    list.insert(emulated + 1, sm90);
    return list;
  }();
  return columns;
}
inline bool has_cache_type(const BackendCase& column, DType dtype) {
  if (dtype == DType::kF32) return !column.is_half_only;
  return dtype != DType::kBF16 || column.has_bf16_cache;
}

inline std::string label(const Case& c) {
  return "H=" + std::to_string(c.heads) + " K=" + std::to_string(c.kv_heads) +
         " D=" + std::to_string(c.head_dim) + " cap=" + std::to_string(c.softcap) +
         " window=" + std::to_string(c.window) + " " + std::string(dtype_info(c.dtype).name);
}

// The CPU computes in f32 whatever the cache holds. On tensor cores the weights of V are rounded to the cache's type, too.
inline double tolerance(const BackendCase& backend, DType dtype) {
  if (backend.is_exact || dtype == DType::kF32) return 2e-5;
  return dtype == DType::kF16 ? 2e-3 : 1.2e-2;
}

// Random q, k, v of n positions; k and v in the cache's type.
struct Inputs {
  AttentionShape shape;
  DType dtype;
  int64_t n;
  Floats q;
  std::vector<std::byte> k, v;  // [n, K*D]
  std::vector<int32_t> positions;

  Inputs(const Case& c, int64_t length) : dtype(c.dtype), n(length) {
    shape = {c.heads,   c.kv_heads, c.head_dim, 1.0f / std::sqrt(static_cast<float>(c.head_dim)),
             c.softcap, c.window};
    q = random_floats(n * c.heads * c.head_dim, 1, 2.0f);
    for (float& x : q) x = rounded(x);  // as tensor cores take it
    k = stored(random_floats(n * c.kv_heads * c.head_dim, 2));
    v = stored(random_floats(n * c.kv_heads * c.head_dim, 3));
    for (int32_t i = 0; i < n; ++i) positions.push_back(i);
  }
  std::vector<std::byte> stored(const Floats& values) const {
    std::vector<std::byte> out(static_cast<size_t>(bytes_of(dtype, static_cast<int64_t>(values.size()))));
    for (size_t i = 0; i < values.size(); ++i) {
      const uint16_t half = f32_to_f16(values[i]);
      if (dtype == DType::kF16) std::memcpy(&out[2 * i], &half, 2);
      const uint16_t brain = f32_to_bf16(values[i]);
      if (dtype == DType::kBF16) std::memcpy(&out[2 * i], &brain, 2);
      if (dtype == DType::kF32) std::memcpy(&out[4 * i], &values[i], 4);
    }
    return out;
  }
  float rounded(float x) const {
    if (dtype == DType::kF16) return f16_to_f32(f32_to_f16(x));
    return dtype == DType::kBF16 ? bf16_to_f32(f32_to_bf16(x)) : x;
  }
  int64_t q_cols() const { return int64_t{shape.num_heads} * shape.head_dim; }
  int64_t kv_cols() const { return int64_t{shape.num_kv_heads} * shape.head_dim; }
  ConstTensor keys(int64_t begin, int64_t end) const {
    return dense(k.data() + bytes_of(dtype, begin * kv_cols()), dtype, end - begin, kv_cols());
  }
  ConstTensor values(int64_t begin, int64_t end) const {
    return dense(v.data() + bytes_of(dtype, begin * kv_cols()), dtype, end - begin, kv_cols());
  }
  std::vector<reference::Entry> entries(int64_t kv_head) const {
    std::vector<reference::Entry> list(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      Floats row(static_cast<size_t>(shape.head_dim));
      auto& entry = list[static_cast<size_t>(i)];
      const int64_t at = i * kv_cols() + kv_head * shape.head_dim;
      dequantize_row(dtype, k.data() + bytes_of(dtype, at), row.data(), shape.head_dim);
      entry.k.assign(row.begin(), row.end());
      dequantize_row(dtype, v.data() + bytes_of(dtype, at), row.data(), shape.head_dim);
      entry.v.assign(row.begin(), row.end());
      entry.position = i;
    }
    return list;
  }
};

}  // namespace restkv

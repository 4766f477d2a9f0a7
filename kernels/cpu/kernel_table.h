// The kernels of one processor level as function pointers. Each works on a range of rows, chunks or blocks inside one
// thread; cpu_backend.cpp cuts the ops into such ranges. No result depends on how it cuts.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/backend.h"
#include "kernels/cpu/eviction/gram_kernels.h"
#include "kernels/cpu/eviction/tile_kernels.h"

namespace restkv::cpu {

// Memory of one thread, reused by every kernel; address space that is touched on first use.
struct Workspace {
  std::byte* data = nullptr;
  int64_t bytes = 0;
};

// The visible entries of one (row, query head), out of the index space of its KV head: prefix pages, then scratch rows.
struct AttentionQuery {
  const float* q = nullptr;  // [D]
  int64_t begin = 0;         // entries [begin, end) are seen
  int64_t end = 0;
  float* out = nullptr;  // [D]
  float* lse = nullptr;  // [1] or null
};

// The entries of one KV head of one segment.
struct AttentionEntries {
  PagedCacheView cache;
  const int32_t* pages = nullptr;  // page table of the head
  int64_t prefix_len = 0;          // entries [0, prefix_len) lie in the pages
  const std::byte* k = nullptr;    // entry prefix_len + i at k + i * row_bytes; same for v
  const std::byte* v = nullptr;
  int64_t k_row_bytes = 0;
  int64_t v_row_bytes = 0;
  DType dtype = DType::kF32;
};

// Running softmax of one query: sum of weights relative to exp(max), weighted sum of V rows.
struct AttentionPartial {
  float max;
  float sum;
  float* acc;  // [padded D]
};

inline constexpr int64_t kAttentionTile = 64;  // entries, aligned to the absolute entry index
inline constexpr int64_t kAttentionSpan =
    256;  // entries of one running softmax; spans are merged in rising order
inline constexpr int64_t kMaxAttentionQueries = 48;  // of one call
inline constexpr int32_t kMaxHeadDim = 512;

struct KernelTable {
  std::string_view target;  // "avx3", "avx2", "plain"
  int lanes = 0;            // floats of a vector

  void (*dequantize)(DType dtype, const void* src, float* dst, int64_t cols) = nullptr;
  // Rows [begin, end) of the weight for all rows of x. workspace: matmul_rows_per_chunk rows and end - begin biases.
  void (*matmul)(const ConstTensor& x, const MatmulOutput& output, int64_t begin, int64_t end,
                 const Workspace& workspace) = nullptr;

  void (*rmsnorm)(const RmsNormArgs& args, int64_t row_begin, int64_t row_end,
                  const Workspace& workspace) = nullptr;
  void (*add)(const AddArgs& args, int64_t row_begin, int64_t row_end) = nullptr;
  void (*glu)(const GluArgs& args, int64_t row_begin, int64_t row_end) = nullptr;
  void (*softcap)(const SoftcapArgs& args, int64_t row_begin, int64_t row_end) = nullptr;
  void (*scale)(float* x, int64_t n, float factor) = nullptr;
  void (*rotate)(float* x, int64_t num_heads, int64_t head_dim, const float* rope,
                 bool interleaved) = nullptr;
  void (*convert)(const float* src, DType dtype, void* dst, int64_t n) = nullptr;

  // Queries of one KV head, their ranges rising; full softmax over all their entries.
  void (*attend)(const AttentionShape& shape, const AttentionEntries& entries, const AttentionQuery* queries,
                 int64_t num_queries, const Workspace& workspace) = nullptr;
  // The part inside one span, left unmerged in partials [num_queries].
  void (*attend_span)(const AttentionShape& shape, const AttentionEntries& entries,
                      const AttentionQuery* queries, int64_t num_queries, int64_t span,
                      AttentionPartial* partials, const Workspace& workspace) = nullptr;
  // partials [num_spans] of one query, in rising order, into its out and lse.
  void (*merge_spans)(const AttentionQuery& query, int32_t head_dim, const AttentionPartial* partials,
                      int64_t num_spans, const Workspace& workspace) = nullptr;

  // The largest of x [n]; NaN if any is NaN.
  float (*max)(const float* x, int64_t n) = nullptr;
  // out[i] = exp((x[i] - max) / temperature); returns their sum. out may be x or null.
  double (*exp_sum)(const float* x, int64_t n, float max, float temperature, float* out) = nullptr;

  TileKernels tiles;  // of the eviction ops
  GramKernels gram;   // of factor_projection
};

// Weight rows that one call of `matmul` dequantises at a time.
int64_t matmul_rows_per_chunk(int64_t cols);

void set_matmul_kernels(KernelTable& table);
void set_elementwise_kernels(KernelTable& table);
void set_attention_kernels(KernelTable& table);
void set_sampling_kernels(KernelTable& table);

}  // namespace restkv::cpu

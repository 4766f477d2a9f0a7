// Cuts the ops into chunks for the thread pool and calls the kernels of one processor level on them. Small ops run on the
// calling thread: waking a worker costs more than a row of elementwise work.
#include "kernels/cpu/cpu_backend.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

#if RESTKV_HIGHWAY
#include <hwy/highway.h>
#endif

#include "kernels/cpu/eviction/eviction_ops.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/sampler.h"
#include "kernels/cpu/thread_pool.h"

namespace restkv {
namespace cpu {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{128} << 20;  // of one thread; address space, touched as needed
constexpr int64_t kPartialBytes = int64_t{16} << 20;     // of decode attention that is split over spans
constexpr int64_t kInlineValues = 16 * 1024;             // elementwise work up to this stays on the caller

// Anonymous memory without reserve: zeros, real only where touched.
class MappedBuffer final : public DeviceBuffer {
 public:
  static std::unique_ptr<MappedBuffer> map(int64_t bytes) {
    CHECK(bytes >= 0) << bytes;
    const size_t size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
    void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    return std::unique_ptr<MappedBuffer>(new MappedBuffer(static_cast<std::byte*>(p), bytes));
  }
  ~MappedBuffer() override { munmap(data_, static_cast<size_t>(std::max<int64_t>(bytes_, 1))); }

 private:
  using DeviceBuffer::DeviceBuffer;
};

struct Target {
  std::string_view name;
  int64_t highway;  // Highway's bit; 0: the build's baseline
};

const Target kTargets[] = {
#if RESTKV_HIGHWAY && HWY_ARCH_X86
    {"avx3", HWY_AVX3},
    {"avx2", HWY_AVX2},
#endif
    {"plain", 0},
};

bool is_supported(const Target& target) {
#if RESTKV_HIGHWAY
  return target.highway == 0 || (hwy::SupportedTargets() & target.highway) != 0;
#else
  return target.highway == 0;
#endif
}

KernelTable make_table(const Target& target) {
  static std::mutex mutex;  // Highway's choice is global while the tables are read
  const std::lock_guard<std::mutex> lock(mutex);
#if RESTKV_HIGHWAY
  hwy::GetChosenTarget().Update(target.highway);
#endif
  KernelTable table;
  table.target = target.name;
  set_matmul_kernels(table);
  set_elementwise_kernels(table);
  set_attention_kernels(table);
  set_sampling_kernels(table);
  set_tile_kernels(table.tiles);
  set_gram_kernels(table.gram);
#if RESTKV_HIGHWAY
  hwy::GetChosenTarget().DeInit();
#endif
  return table;
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(int threads, const Target& target) : kernels_(make_table(target)), pool_(threads) {
    for (int i = 0; i < threads; ++i)
      workspaces_.push_back(allocate_for("the work space of thread " + std::to_string(i), kWorkspaceBytes));
    partials_ = allocate_for("parts of attention", kPartialBytes);
  }

  std::string_view name() const override { return "cpu"; }
  int32_t page_slots() const override { return 16; }
  bool keeps_logits() const override { return true; }
  std::unique_ptr<DeviceBuffer> allocate(int64_t bytes) override { return MappedBuffer::map(bytes); }
  void zero(const Tensor& tensor) override {
    for (int64_t row = 0; row < tensor.rows; ++row)
      std::memset(tensor.row(row), 0, static_cast<size_t>(bytes_of(tensor.dtype, tensor.cols)));
  }
  void synchronize() override {}

 private:
  void do_gather(const GatherArgs& args) override;
  void do_rmsnorm(const RmsNormArgs& args) override;
  void do_add(const AddArgs& args) override;
  void do_matmul(const MatmulArgs& args) override;
  void do_rope_table(const RopeTableArgs& args) override;
  void do_rope_and_store(const RopeAndStoreArgs& args) override;
  void do_prefill_attention(const PrefillAttentionArgs& args) override;
  void do_decode_attention(const DecodeAttentionArgs& args) override;
  void do_glu(const GluArgs& args) override;
  void do_softcap(const SoftcapArgs& args) override;
  void do_store_pages(const StorePagesArgs& args) override;
  void do_sample(const SampleArgs& args) override;
  void do_store_queries(const StoreQueriesArgs& args) override { cpu::store_queries(args, pool_); }
  void do_factor_projection(const FactorProjectionArgs& args) override {
    cpu::factor_projection(args, kernels_.dequantize, kernels_.gram, pool_);
  }
  void do_observe(const ObserveArgs& args) override { cpu::observe(args, kernels_.tiles, pool_); }
  void do_score(const ScoreArgs& args) override { cpu::score(args, kernels_.tiles, pool_); }
  void do_smooth(const SmoothArgs& args) override { cpu::smooth(args, pool_); }
  void do_select(const SelectArgs& args) override { cpu::select(args, pool_); }
  void do_compact(const CompactArgs& args) override { cpu::compact(args, pool_); }

  Workspace workspace(int thread) const {
    const DeviceBuffer& buffer = *workspaces_[static_cast<size_t>(thread)];
    return {buffer.data(), buffer.bytes()};
  }
  // fn(begin, end, thread) over ranges of rows of about kInlineValues values.
  template <class F>
  void for_rows(int64_t rows, int64_t cols, const F& fn) {
    const int64_t step = std::max<int64_t>(1, kInlineValues / std::max<int64_t>(cols, 1));
    pool_.parallel_for((rows + step - 1) / step, [&](int64_t chunk, int thread) {
      fn(chunk * step, std::min(rows, (chunk + 1) * step), thread);
    });
  }
  void store_row(const float* src, const PagedCacheView& cache, const int32_t* pages, int64_t entry,
                 bool is_key) {
    const int32_t page = pages[entry / cache.slots];
    std::byte* rows = is_key ? cache.keys(page) : cache.values(page);
    kernels_.convert(src, cache.dtype, rows + entry % cache.slots * bytes_of(cache.dtype, cache.head_dim),
                     cache.head_dim);
  }

  KernelTable kernels_;
  ThreadPool pool_;
  std::vector<std::unique_ptr<DeviceBuffer>> workspaces_;  // one a thread
  std::unique_ptr<DeviceBuffer> partials_;
};

void CpuBackend::do_gather(const GatherArgs& args) {
  for_rows(args.out.rows, args.out.cols, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      float* out = args.out.f32(t);
      kernels_.dequantize(args.table.dtype, args.table.row(args.id_of_row(static_cast<size_t>(t))), out,
                          args.out.cols);
      if (args.scale != 1.0f) kernels_.scale(out, args.out.cols, args.scale);
    }
  });
}

void CpuBackend::do_rmsnorm(const RmsNormArgs& args) {
  CHECK(args.weight.cols * 4 <= kWorkspaceBytes) << args.weight.cols;
  for_rows(args.x.rows, args.x.cols, [&](int64_t begin, int64_t end, int thread) {
    kernels_.rmsnorm(args, begin, end, workspace(thread));
  });
}

void CpuBackend::do_add(const AddArgs& args) {
  for_rows(args.x.rows, args.x.cols,
           [&](int64_t begin, int64_t end, int) { kernels_.add(args, begin, end); });
}

void CpuBackend::do_glu(const GluArgs& args) {
  for_rows(args.gate.rows, args.gate.cols,
           [&](int64_t begin, int64_t end, int) { kernels_.glu(args, begin, end); });
}

void CpuBackend::do_softcap(const SoftcapArgs& args) {
  for_rows(args.x.rows, args.x.cols,
           [&](int64_t begin, int64_t end, int) { kernels_.softcap(args, begin, end); });
}

void CpuBackend::do_matmul(const MatmulArgs& args) {
  const int64_t cols = args.x.cols;
  const int64_t tile_rows = matmul_rows_per_chunk(cols);
  int64_t weight_bytes = 0;
  for (const MatmulOutput& output : args.outputs)
    weight_bytes += bytes_of(output.weight.dtype, cols) * output.weight.rows;
  // Many rows: one dequantised buffer a chunk. Few rows: chunks of 16 to 128 KiB of weights, about 8 a thread.
  const int64_t chunk_bytes =
      std::clamp<int64_t>(weight_bytes / (pool_.num_threads() * 8), 16 << 10, 128 << 10);
  const auto chunk_rows = [&](const MatmulOutput& output) {
    if (args.x.rows > 16) return tile_rows;
    return std::max<int64_t>(1, chunk_bytes / bytes_of(output.weight.dtype, cols) / tile_rows) * tile_rows;
  };
  int64_t num_chunks = 0;
  for (const MatmulOutput& output : args.outputs) {
    num_chunks += (output.weight.rows + chunk_rows(output) - 1) / chunk_rows(output);
    CHECK((tile_rows * cols + chunk_rows(output)) * 4 <= kWorkspaceBytes) << cols << " columns";
  }
  pool_.parallel_for(num_chunks, [&](int64_t chunk, int thread) {
    for (const MatmulOutput& output : args.outputs) {
      const int64_t rows = chunk_rows(output);
      const int64_t chunks = (output.weight.rows + rows - 1) / rows;
      if (chunk < chunks) {
        kernels_.matmul(args.x, output, chunk * rows, std::min(output.weight.rows, (chunk + 1) * rows),
                        workspace(thread));
        return;
      }
      chunk -= chunks;
    }
  });
}

void CpuBackend::do_rope_table(const RopeTableArgs& args) {
  const auto half = static_cast<int64_t>(args.inv_freq.size());
  // a sine costs about as much as 16 values of elementwise work
  for_rows(args.out.rows, half * 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const auto position = static_cast<float>(args.positions[static_cast<size_t>(t)]);
      float* out = args.out.f32(t);
      for (int64_t i = 0; i < half; ++i) {
        const float angle = position * args.inv_freq[static_cast<size_t>(i)];
        out[i] = std::cos(angle) * args.attention_factor;
        out[half + i] = std::sin(angle) * args.attention_factor;
      }
    }
  });
}

void CpuBackend::do_rope_and_store(const RopeAndStoreArgs& args) {
  const int64_t head_dim = args.rope.cols;
  const int64_t num_kv_heads = args.k.cols / head_dim;
  for (const StoreSegment& segment : args.segments) {
    for_rows(segment.num_rows, args.q.cols + 2 * args.k.cols, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t t = segment.row_begin + i;
        kernels_.rotate(args.q.f32(t), args.q.cols / head_dim, head_dim, args.rope.f32(t), args.interleaved);
        kernels_.rotate(args.k.f32(t), num_kv_heads, head_dim, args.rope.f32(t), args.interleaved);
        if (segment.scratch_k) {
          kernels_.convert(args.k.f32(t), segment.scratch_k.dtype, segment.scratch_k.row(i), args.k.cols);
          kernels_.convert(args.v.f32(t), segment.scratch_v.dtype, segment.scratch_v.row(i), args.k.cols);
          continue;
        }
        for (int64_t h = 0; h < num_kv_heads; ++h) {
          const int32_t* pages = segment.tables.pages + h * segment.tables.stride;
          const int64_t entry = segment.tables.kv_len[h] + i;
          store_row(args.k.f32(t) + h * head_dim, args.cache, pages, entry, true);
          store_row(args.v.f32(t) + h * head_dim, args.cache, pages, entry, false);
          args.cache.positions(pages[entry / args.cache.slots])[entry % args.cache.slots] =
              args.positions[static_cast<size_t>(t)];
        }
      }
    });
  }
}

void CpuBackend::do_store_pages(const StorePagesArgs& args) {
  const int64_t head_dim = args.cache.head_dim;
  const int64_t row_bytes = bytes_of(args.cache.dtype, head_dim);
  for_rows(args.k.rows, 2 * args.k.cols, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t h = 0; h < args.num_kv_heads; ++h) {
        const int64_t entry = args.tables.kv_len[h] + i;
        const int32_t page = args.tables.pages[h * args.tables.stride + entry / args.cache.slots];
        const int64_t slot = entry % args.cache.slots;
        const auto* k = static_cast<const std::byte*>(args.k.row(i)) + h * row_bytes;
        const auto* v = static_cast<const std::byte*>(args.v.row(i)) + h * row_bytes;
        std::copy(k, k + row_bytes, args.cache.keys(page) + slot * row_bytes);
        std::copy(v, v + row_bytes, args.cache.values(page) + slot * row_bytes);
        args.cache.positions(page)[slot] = args.positions[static_cast<size_t>(i)];
      }
    }
  });
}

// First entry of [0, len) of a head whose position is above `position`; positions rise.
int64_t first_above(const PagedCacheView& cache, const int32_t* pages, int64_t len, int64_t position) {
  int64_t begin = 0;
  while (begin < len) {
    const int64_t middle = (begin + len) / 2;
    if (cache.positions(pages[middle / cache.slots])[middle % cache.slots] <= position) {
      begin = middle + 1;
    } else {
      len = middle;
    }
  }
  return begin;
}

// Queries of KV head `kv_head` in rows [row, row + num_rows): row-major, the G heads of the group inside.
struct QueryBlock {
  const AttentionShape& shape;
  const ConstTensor& q;
  const Tensor& out;
  const Tensor& lse;
  int64_t kv_head;
  int64_t first_head;  // of the heads of the group in this block
  int64_t num_heads;

  AttentionQuery query(int64_t t, int64_t g, int64_t begin, int64_t end) const {
    const int64_t head = kv_head * (shape.num_heads / shape.num_kv_heads) + first_head + g;
    return {q.f32(t) + head * shape.head_dim, std::min(begin, end), end, out.f32(t) + head * shape.head_dim,
            lse ? lse.f32(t) + head : nullptr};
  }
};

void CpuBackend::do_prefill_attention(const PrefillAttentionArgs& args) {
  const AttentionShape& shape = args.shape;
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  const int64_t heads_per_block = std::min(group, kMaxAttentionQueries);
  const int64_t head_blocks = (group + heads_per_block - 1) / heads_per_block;
  const int64_t rows_per_block = std::max<int64_t>(1, kMaxAttentionQueries / heads_per_block);
  for (const PrefillSegment& segment : args.segments) {
    const int64_t row_blocks = (segment.num_rows + rows_per_block - 1) / rows_per_block;
    const int64_t blocks_per_row = shape.num_kv_heads * head_blocks;
    pool_.parallel_for(row_blocks * blocks_per_row, [&](int64_t chunk, int thread) {
      // the last rows see the most entries: longest first
      const int64_t row = (row_blocks - 1 - chunk / blocks_per_row) * rows_per_block;
      const int64_t kv_head = chunk % blocks_per_row / head_blocks;
      const int64_t first_head = chunk % head_blocks * heads_per_block;
      const QueryBlock block{shape,
                             args.q,
                             args.out,
                             args.lse,
                             kv_head,
                             first_head,
                             std::min(heads_per_block, group - first_head)};
      const int64_t k_offset = bytes_of(segment.k.dtype, kv_head * shape.head_dim);
      AttentionEntries entries;
      entries.cache = args.cache;
      entries.dtype = segment.k.dtype;
      entries.k = static_cast<const std::byte*>(segment.k.data) + k_offset;
      entries.v = static_cast<const std::byte*>(segment.v.data) + k_offset;
      entries.k_row_bytes = bytes_of(segment.k.dtype, segment.k.stride);
      entries.v_row_bytes = bytes_of(segment.v.dtype, segment.v.stride);
      if (segment.prefix.kv_len != nullptr) {
        entries.prefix_len = segment.prefix.kv_len[kv_head];
        entries.pages = segment.prefix.pages + kv_head * segment.prefix.stride;
      }
      AttentionQuery queries[kMaxAttentionQueries];
      int64_t count = 0;
      for (int64_t i = row; i < std::min(segment.num_rows, row + rows_per_block); ++i) {
        const int64_t t = segment.row_begin + i;
        const int64_t position = args.positions[static_cast<size_t>(t)];
        // scratch row i holds position first_position + i
        const int64_t scratch_end =
            std::clamp<int64_t>(position - segment.first_position + 1, 0, segment.k.rows);
        int64_t begin = 0;
        if (shape.window > 0) {
          const int64_t hidden = position - shape.window;  // the last position out of sight
          const int64_t scratch_begin = hidden - segment.first_position + 1;
          begin = scratch_begin > 0 ? entries.prefix_len + scratch_begin
                                    : first_above(args.cache, entries.pages, entries.prefix_len, hidden);
        }
        for (int64_t g = 0; g < block.num_heads; ++g) {
          queries[count++] = block.query(t, g, begin, entries.prefix_len + scratch_end);
        }
      }
      kernels_.attend(shape, entries, queries, count, workspace(thread));
    });
  }
}

void CpuBackend::do_decode_attention(const DecodeAttentionArgs& args) {
  const AttentionShape& shape = args.shape;
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  const int64_t heads_per_block = std::min(group, kMaxAttentionQueries);
  const int64_t head_blocks = (group + heads_per_block - 1) / heads_per_block;
  const int64_t blocks_per_row = shape.num_kv_heads * head_blocks;
  const Tensor no_lse;

  const auto set_up = [&](const DecodeSegment& segment, int64_t t, int64_t block_idx,
                          AttentionEntries& entries, AttentionQuery* queries) {
    const int64_t kv_head = block_idx / head_blocks;
    const int64_t first_head = block_idx % head_blocks * heads_per_block;
    const QueryBlock block{
        shape, args.q, args.out, no_lse, kv_head, first_head, std::min(heads_per_block, group - first_head)};
    entries.cache = args.cache;
    entries.dtype = args.cache.dtype;
    entries.pages = segment.tables.pages + kv_head * segment.tables.stride;
    entries.prefix_len = segment.tables.kv_len[kv_head];
    const int64_t position = args.positions[static_cast<size_t>(t)];
    const int64_t end = first_above(args.cache, entries.pages, entries.prefix_len, position);
    const int64_t begin =
        shape.window > 0 ? first_above(args.cache, entries.pages, end, position - shape.window) : 0;
    for (int64_t g = 0; g < block.num_heads; ++g) queries[g] = block.query(t, g, begin, end);
    return block.num_heads;
  };

  int64_t num_rows = 0, longest = 0;
  for (const DecodeSegment& segment : args.segments) {
    num_rows += segment.num_rows;
    for (int64_t h = 0; h < shape.num_kv_heads; ++h)
      longest = std::max<int64_t>(longest, segment.tables.kv_len[h]);
  }
  const int64_t num_blocks = num_rows * blocks_per_row;
  const auto locate = [&](int64_t block) {  // -> segment and row of the block
    int64_t row = block / blocks_per_row;
    const DecodeSegment* segment = args.segments.data();
    for (; row >= segment->num_rows; ++segment) row -= segment->num_rows;
    return std::pair<const DecodeSegment&, int64_t>(*segment, segment->row_begin + row);
  };

  // Few blocks and long ones: the spans of a block run in parallel and are merged afterwards, with the same result.
  const int64_t num_spans = (longest + kAttentionSpan - 1) / kAttentionSpan;
  const int64_t padded_dim = (int64_t{shape.head_dim} + 15) / 16 * 16;
  const int64_t partial_bytes = static_cast<int64_t>(sizeof(AttentionPartial)) + padded_dim * 4;
  const bool split = pool_.num_threads() > 1 && num_spans > 1 && num_blocks < 8 * pool_.num_threads() &&
                     num_blocks * num_spans * heads_per_block * partial_bytes <= kPartialBytes;
  if (!split) {
    pool_.parallel_for(num_blocks, [&](int64_t chunk, int thread) {
      const auto [segment, t] = locate(chunk);
      AttentionEntries entries;
      AttentionQuery queries[kMaxAttentionQueries];
      const int64_t count = set_up(segment, t, chunk % blocks_per_row, entries, queries);
      kernels_.attend(shape, entries, queries, count, workspace(thread));
    });
    return;
  }
  // partials [num_blocks, heads_per_block, num_spans]
  auto* partials = reinterpret_cast<AttentionPartial*>(partials_->data());
  auto* accs = reinterpret_cast<float*>(partials + num_blocks * num_spans * heads_per_block);
  pool_.parallel_for(num_blocks * num_spans, [&](int64_t chunk, int thread) {
    const int64_t block = chunk / num_spans, span = chunk % num_spans;
    const auto [segment, t] = locate(block);
    AttentionEntries entries;
    AttentionQuery queries[kMaxAttentionQueries];
    AttentionPartial parts[kMaxAttentionQueries];
    const int64_t count = set_up(segment, t, block % blocks_per_row, entries, queries);
    for (int64_t g = 0; g < count; ++g) {
      parts[g].acc = accs + ((block * heads_per_block + g) * num_spans + span) * padded_dim;
    }
    kernels_.attend_span(shape, entries, queries, count, span, parts, workspace(thread));
    for (int64_t g = 0; g < count; ++g) partials[(block * heads_per_block + g) * num_spans + span] = parts[g];
  });
  for (int64_t block = 0; block < num_blocks; ++block) {
    const auto [segment, t] = locate(block);
    AttentionEntries entries;
    AttentionQuery queries[kMaxAttentionQueries];
    const int64_t count = set_up(segment, t, block % blocks_per_row, entries, queries);
    for (int64_t g = 0; g < count; ++g) {
      kernels_.merge_spans(queries[g], shape.head_dim, partials + (block * heads_per_block + g) * num_spans,
                           num_spans, workspace(0));
    }
  }
}

void CpuBackend::do_sample(const SampleArgs& args) {
  const int64_t vocab = args.logits.cols;
  pool_.parallel_for(static_cast<int64_t>(args.rows.size()), [&](int64_t row, int thread) {
    const auto i = static_cast<size_t>(row);
    sample_row(kernels_, args.logits.f32(row), vocab, args.rows[i], args.results[i], workspace(thread));
    if (args.drawn) static_cast<int32_t*>(args.drawn.data)[i] = std::max(0, args.results[i].token);
  });
}

}  // namespace
}  // namespace cpu

std::vector<std::string_view> cpu_targets() {
  std::vector<std::string_view> names;
  for (const cpu::Target& target : cpu::kTargets) {
    if (cpu::is_supported(target)) names.push_back(target.name);
  }
  return names;
}

std::unique_ptr<Backend> make_cpu_backend(int threads, std::string_view target) {
  CHECK(threads >= 0) << threads;
  std::string wanted(target);
  if (const char* named = std::getenv("RESTKV_CPU_TARGET"); wanted.empty() && named != nullptr)
    wanted = named;
  if (threads == 0) threads = cpu::usable_cores();
  for (const cpu::Target& candidate : cpu::kTargets) {
    if (!cpu::is_supported(candidate)) continue;
    if (wanted.empty() || wanted == candidate.name)
      return std::make_unique<cpu::CpuBackend>(threads, candidate);
  }
  return nullptr;
}

}  // namespace restkv

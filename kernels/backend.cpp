// The checks of every op, once for all backends. What fails here is a bug of ours: a CHECK with the values.
#include "kernels/backend.h"

#include <cstring>

#include "kernels/base/check.h"
#include "kernels/base/device_error.h"

namespace restkv {
namespace {

template <class T>
void check_shape(const Backend& backend, const char* name, const T& tensor, int64_t rows, int64_t cols) {
  CHECK(tensor.data != nullptr || rows == 0) << name << " is missing";
  CHECK(rows == 0 || backend.is_own_address(tensor.data)) << name << " is not in the backend's memory";
  CHECK(tensor.rows == rows && tensor.cols == cols)
      << name << " is [" << tensor.rows << ", " << tensor.cols << "], not [" << rows << ", " << cols << "]";
  CHECK(tensor.stride >= tensor.cols)
      << name << ": stride " << tensor.stride << " of " << tensor.cols << " columns";
  CHECK(!is_block_type(tensor.dtype) || tensor.stride == tensor.cols) << name << ": stride " << tensor.stride;
}

template <class T>
void check_f32(const Backend& backend, const char* name, const T& tensor, int64_t rows, int64_t cols) {
  check_shape(backend, name, tensor, rows, cols);
  CHECK(tensor.dtype == DType::kF32) << name << " is " << dtype_info(tensor.dtype).name;
}

// Of the backend's activation type.
template <class T>
void check_active(const Backend& backend, const char* name, const T& tensor, int64_t rows, int64_t cols) {
  check_shape(backend, name, tensor, rows, cols);
  CHECK(tensor.dtype == backend.activation_type())
      << name << " is " << dtype_info(tensor.dtype).name << ", the backend's type is "
      << dtype_info(backend.activation_type()).name;
}

void check_weight(const Backend& backend, const char* name, const ConstTensor& tensor) {
  CHECK(backend.is_own_address(tensor.data)) << name << " is not in the backend's memory";
  CHECK(tensor.dtype != DType::kI32 && tensor.dtype != DType::kU8)
      << name << " is " << dtype_info(tensor.dtype).name;
  CHECK(tensor.cols % dtype_info(tensor.dtype).block_elems == 0)
      << name << ": " << tensor.cols << " columns of " << dtype_info(tensor.dtype).name;
}

void check_plain(const char* name, const ConstTensor& tensor) {
  CHECK(tensor.dtype == DType::kF32 || tensor.dtype == DType::kF16 || tensor.dtype == DType::kBF16)
      << name << " is " << dtype_info(tensor.dtype).name;
}

void check_cache(const Backend& backend, const PagedCacheView& cache, int64_t head_dim) {
  CHECK(cache.pool != nullptr) << "no pages";
  CHECK(backend.is_own_address(cache.pool)) << "the pages are not in the backend's memory";
  CHECK(backend.has_cache_type(cache.dtype)) << dtype_info(cache.dtype).name;
  CHECK(cache.head_dim == head_dim) << cache.head_dim << " of " << head_dim;
  CHECK(cache.slots > 0 &&
        cache.page_bytes >= PagedCacheView::bytes_per_page(cache.dtype, cache.slots, cache.head_dim))
      << cache.slots << " slots in " << cache.page_bytes << " bytes";
}

// Entries [0, kv_len[h] + added) of every head have a page.
void check_tables(const HeadTables& tables, int64_t num_kv_heads, int64_t added, int32_t slots) {
  CHECK(tables.pages != nullptr && tables.kv_len != nullptr) << "no page tables";
  for (int64_t h = 0; h < num_kv_heads; ++h) {
    CHECK(tables.kv_len[h] >= 0 && tables.kv_len[h] + added <= int64_t{tables.stride} * slots)
        << "head " << h << ": " << tables.kv_len[h] << " + " << added << " entries in " << tables.stride
        << " pages of " << slots;
  }
}

void check_drawn(const Backend& backend, const ConstTensor& drawn) {
  if (!drawn) return;
  check_shape(backend, "drawn", drawn, 1, drawn.cols);
  CHECK(drawn.dtype == DType::kI32) << "drawn is " << dtype_info(drawn.dtype).name;
}

void check_rows(int64_t row_begin, int64_t num_rows, int64_t rows) {
  CHECK(row_begin >= 0 && num_rows >= 0 && row_begin + num_rows <= rows)
      << "rows [" << row_begin << ", +" << num_rows << ") of " << rows;
}

void check_attention(const Backend& backend, const AttentionShape& shape, const ConstTensor& q,
                     const Tensor& out, size_t num_positions) {
  CHECK(shape.num_kv_heads > 0 && shape.num_heads > 0 && shape.num_heads % shape.num_kv_heads == 0)
      << shape.num_heads << " heads over " << shape.num_kv_heads;
  CHECK(shape.head_dim > 0 && shape.head_dim <= 512) << shape.head_dim;
  CHECK(shape.window >= 0) << shape.window;
  const int64_t cols = int64_t{shape.num_heads} * shape.head_dim;
  check_active(backend, "q", q, q.rows, cols);
  check_active(backend, "out", out, q.rows, cols);
  CHECK(static_cast<int64_t>(num_positions) == q.rows)
      << num_positions << " positions, " << q.rows << " rows";
}

}  // namespace

std::unique_ptr<DeviceBuffer> Backend::allocate_for(const std::string& what, int64_t bytes) {
  std::unique_ptr<DeviceBuffer> memory = allocate(bytes);
  if (!memory) throw OutOfMemory(what, bytes);
  return memory;
}

void Backend::gather(const GatherArgs& args) {
  check_weight(*this, "table", args.table);
  check_active(*this, "out", args.out, static_cast<int64_t>(args.ids.size()), args.table.cols);
  check_drawn(*this, args.drawn);
  for (const int32_t id : args.ids) {
    CHECK(id >= 0 ? id < args.table.rows : ~id < args.drawn.cols)
        << "id " << id << " of " << args.table.rows << ", " << args.drawn.cols << " drawn";
  }
  do_gather(args);
}

void Backend::rmsnorm(const RmsNormArgs& args) {
  CHECK(args.weight.cols > 0 && args.x.cols % args.weight.cols == 0)
      << args.x.cols << " over " << args.weight.cols;
  check_active(*this, "x", args.x, args.x.rows, args.x.cols);
  check_shape(*this, "weight", args.weight, 1, args.weight.cols);
  check_plain("weight", args.weight);
  if (args.residual) {
    check_active(*this, "residual", args.residual, args.x.rows, args.x.cols);
    CHECK(args.out.data != args.residual.data) << "out is the residual";
  }
  check_active(*this, "out", args.out, args.x.rows, args.x.cols);
  do_rmsnorm(args);
}

void Backend::add(const AddArgs& args) {
  check_active(*this, "x", args.x, args.x.rows, args.x.cols);
  check_active(*this, "residual", args.residual, args.x.rows, args.x.cols);
  do_add(args);
}

void Backend::matmul(const MatmulArgs& args) {
  check_active(*this, "x", args.x, args.x.rows, args.x.cols);
  for (const MatmulOutput& output : args.outputs) {
    check_weight(*this, "weight", output.weight);
    check_shape(*this, "weight", output.weight, output.weight.rows, args.x.cols);
    check_shape(*this, "out", output.out, args.x.rows, output.weight.rows);
    CHECK(output.out.dtype == activation_type() || output.out.dtype == DType::kF32)
        << "out is " << dtype_info(output.out.dtype).name;
    if (output.bias) {
      check_shape(*this, "bias", output.bias, 1, output.weight.rows);
      check_plain("bias", output.bias);
    }
  }
  if (args.x.rows > 0 && args.x.cols > 0) do_matmul(args);
}

void Backend::rope_table(const RopeTableArgs& args) {
  check_f32(*this, "out", args.out, static_cast<int64_t>(args.positions.size()),
            2 * static_cast<int64_t>(args.inv_freq.size()));
  do_rope_table(args);
}

void Backend::rope_and_store(const RopeAndStoreArgs& args) {
  const int64_t head_dim = args.rope.cols;
  CHECK(head_dim > 0 && head_dim % 2 == 0) << head_dim;
  CHECK(args.q.cols % head_dim == 0 && args.k.cols % head_dim == 0)
      << args.q.cols << " and " << args.k.cols << " columns over " << head_dim;
  check_active(*this, "q", args.q, args.q.rows, args.q.cols);
  check_active(*this, "k", args.k, args.q.rows, args.k.cols);
  check_active(*this, "v", args.v, args.q.rows, args.k.cols);
  check_f32(*this, "rope", args.rope, args.q.rows, head_dim);
  CHECK(static_cast<int64_t>(args.positions.size()) == args.q.rows) << args.positions.size() << " positions";
  for (const StoreSegment& segment : args.segments) {
    check_rows(segment.row_begin, segment.num_rows, args.q.rows);
    if (segment.scratch_k) {
      check_shape(*this, "scratch_k", segment.scratch_k, segment.num_rows, args.k.cols);
      check_shape(*this, "scratch_v", segment.scratch_v, segment.num_rows, args.k.cols);
      CHECK(segment.scratch_k.dtype == segment.scratch_v.dtype) << "k and v differ";
      CHECK(has_cache_type(segment.scratch_k.dtype)) << dtype_info(segment.scratch_k.dtype).name;
    } else {
      check_cache(*this, args.cache, head_dim);
      check_tables(segment.tables, args.k.cols / head_dim, segment.num_rows, args.cache.slots);
    }
  }
  do_rope_and_store(args);
}

void Backend::prefill_attention(const PrefillAttentionArgs& args) {
  check_attention(*this, args.shape, args.q, args.out, args.positions.size());
  if (args.lse) check_f32(*this, "lse", args.lse, args.q.rows, args.shape.num_heads);
  const int64_t kv_cols = int64_t{args.shape.num_kv_heads} * args.shape.head_dim;
  for (const PrefillSegment& segment : args.segments) {
    check_rows(segment.row_begin, segment.num_rows, args.q.rows);
    check_shape(*this, "k", segment.k, segment.k.rows, kv_cols);
    check_shape(*this, "v", segment.v, segment.k.rows, kv_cols);
    CHECK(segment.k.dtype == segment.v.dtype) << "k and v differ";
    CHECK(has_cache_type(segment.k.dtype)) << dtype_info(segment.k.dtype).name;
    if (segment.prefix.kv_len != nullptr) {
      check_cache(*this, args.cache, args.shape.head_dim);
      check_tables(segment.prefix, args.shape.num_kv_heads, 0, args.cache.slots);
      CHECK(args.cache.dtype == segment.k.dtype) << "pages and scratch differ";
    }
  }
  do_prefill_attention(args);
}

void Backend::decode_attention(const DecodeAttentionArgs& args) {
  check_attention(*this, args.shape, args.q, args.out, args.positions.size());
  check_cache(*this, args.cache, args.shape.head_dim);
  for (const DecodeSegment& segment : args.segments) {
    check_rows(segment.row_begin, segment.num_rows, args.q.rows);
    check_tables(segment.tables, args.shape.num_kv_heads, 0, args.cache.slots);
  }
  do_decode_attention(args);
}

void Backend::glu(const GluArgs& args) {
  check_active(*this, "gate", args.gate, args.gate.rows, args.gate.cols);
  check_active(*this, "up", args.up, args.gate.rows, args.gate.cols);
  check_active(*this, "out", args.out, args.gate.rows, args.gate.cols);
  do_glu(args);
}

void Backend::softcap(const SoftcapArgs& args) {
  check_f32(*this, "x", args.x, args.x.rows, args.x.cols);
  CHECK(args.cap > 0.0f) << args.cap;
  do_softcap(args);
}

void Backend::store_pages(const StorePagesArgs& args) {
  const int64_t cols = int64_t{args.num_kv_heads} * args.cache.head_dim;
  check_cache(*this, args.cache, args.cache.head_dim);
  check_shape(*this, "k", args.k, args.k.rows, cols);
  check_shape(*this, "v", args.v, args.k.rows, cols);
  CHECK(args.k.dtype == args.cache.dtype && args.v.dtype == args.cache.dtype)
      << dtype_info(args.k.dtype).name;
  CHECK(static_cast<int64_t>(args.positions.size()) == args.k.rows) << args.positions.size() << " positions";
  check_tables(args.tables, args.num_kv_heads, args.k.rows, args.cache.slots);
  do_store_pages(args);
}

void Backend::sample(const SampleArgs& args) {
  check_f32(*this, "logits", args.logits, args.logits.rows, args.logits.cols);
  const auto rows = static_cast<size_t>(args.logits.rows);
  const int64_t vocab = args.logits.cols;
  CHECK(args.rows.size() <= rows && args.results.size() == args.rows.size())
      << args.rows.size() << " rows, " << args.results.size() << " results of " << rows;
  check_drawn(*this, args.drawn);
  CHECK(!args.drawn || args.drawn.cols == static_cast<int64_t>(args.rows.size()))
      << args.drawn.cols << " drawn of " << args.rows.size();
  const auto check_token = [&](int32_t token) { CHECK(token >= 0 && token < vocab) << "token " << token; };
  for (const SampleRow& row : args.rows) {
    CHECK(row.params != nullptr) << "no parameters";
    CHECK(row.counts.empty() || row.counts.size() == static_cast<size_t>(vocab)) << row.counts.size();
    CHECK(row.prompt_tokens.empty() || row.prompt_tokens.size() == static_cast<size_t>((vocab + 63) / 64))
        << row.prompt_tokens.size();
    for (const LogitBias& bias : row.params->logit_bias) check_token(bias.token);
    for (const int32_t token : row.params->allowed_tokens) check_token(token);
    for (const int32_t token : row.banned) check_token(token);
    if (row.forced >= 0) check_token(row.forced);
  }
  do_sample(args);
}

void Backend::read_back(const ConstTensor& tensor, void* host) {
  CHECK(is_host_memory()) << name() << " has no way to read its memory";
  synchronize();
  const int64_t bytes = bytes_of(tensor.dtype, tensor.cols);
  for (int64_t r = 0; r < tensor.rows; ++r)
    std::memcpy(static_cast<std::byte*>(host) + r * bytes, tensor.row(r), static_cast<size_t>(bytes));
}

void Backend::write(const Tensor& tensor, const void* host) {
  CHECK(is_host_memory()) << name() << " has no way to write its memory";
  synchronize();
  const int64_t bytes = bytes_of(tensor.dtype, tensor.cols);
  for (int64_t r = 0; r < tensor.rows; ++r)
    std::memcpy(tensor.row(r), static_cast<const std::byte*>(host) + r * bytes, static_cast<size_t>(bytes));
}

}  // namespace restkv

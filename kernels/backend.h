// THE op interface: the only compute header the engine sees. A public op() checks shapes, types and bounds once for all
// backends and calls the private virtual do_op(), which a backend implements. A backend enqueues and returns; only
// synchronize(), wait_step() and read_back() wait. No op allocates; workspaces are the caller's.
//
// Letters: T rows of a step (ragged, flattened), H query heads, K KV heads, G = H/K, D head dim, M model dim, F ffn dim,
// V vocabulary, S page slots, N cached entries.
//
// Types: x, q, k, v, residual and what lies between the ops are of the backend's activation_type() (f32 on the CPU; f16,
// bf16 or f32 on CUDA); rotary tables, logits, lse and scores are f32 everywhere. Tensors lie in the backend's memory;
// spans, page tables, lengths and plain pointers of the args on the host, free to change when the op has returned.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "kernels/base/arena.h"
#include "kernels/base/attention_shape.h"
#include "kernels/base/paged_cache.h"
#include "kernels/base/sampling.h"
#include "kernels/base/status.h"
#include "kernels/base/tensor.h"
#include "kernels/eviction.h"

namespace restkv {

// out[t] = scale * table[ids[t]].
struct GatherArgs {
  ConstTensor table;             // [V, M], any weight type
  std::span<const int32_t> ids;  // [T], each in [0, V), or ~i: the i-th of `drawn`
  float scale = 1.0f;            // Gemma: sqrt(M)
  Tensor out;                    // [T, M]
  ConstTensor drawn = {};        // [1, n] i32, what a sample op left there; or empty

  // Where `drawn` is memory of the host.
  int32_t id_of_row(size_t t) const {
    return ids[t] >= 0 ? ids[t] : static_cast<const int32_t*>(drawn.data)[~ids[t]];
  }
};

// residual += x (where residual is given), then out = norm(residual or x) * (offset + weight), per group of weight.cols
// columns: the model norm has one group of M, QK-norm has H or K groups of D. RMSNorm (arXiv 1910.07467, eq. 4).
struct RmsNormArgs {
  ConstTensor x;       // [T, groups * C]
  Tensor residual;     // [T, groups * C] or empty; updated in place
  ConstTensor weight;  // [1, C] f32, f16 or bf16
  float eps = 1e-5f;
  float offset = 0.0f;  // Gemma: 1
  Tensor out;           // [T, groups * C]; may be x or residual's own memory only if residual is empty
};

// residual += x.
struct AddArgs {
  Tensor residual;  // [T, M]
  ConstTensor x;    // [T, M]
};

// out = x * weight^T + bias for one input and several weights (Q, K, V; gate, up). Each output is one dot product with
// a fixed lane order: bitwise independent of T, of the tile and of the thread count.
struct MatmulOutput {
  ConstTensor weight;  // [N, C], any weight type
  ConstTensor bias;    // [1, N] or empty
  Tensor out;          // [T, N]
};
struct MatmulArgs {
  ConstTensor x;  // [T, C]
  std::span<const MatmulOutput> outputs;
};

// table[t] = (cos | sin)(positions[t] * inv_freq) * attention_factor; once a step for all layers of one rotary kind.
struct RopeTableArgs {
  std::span<const int32_t> positions;  // [T]
  std::span<const float> inv_freq;     // [D/2]
  float attention_factor = 1.0f;       // yarn's mscale, on cos and sin
  Tensor out;                          // [T, D]: D/2 cosines, then D/2 sines
};

// Rotates q in place; rotates k and writes k, v to where the segment says: rows of layer scratch, or appended to the pages.
struct StoreSegment {
  int64_t row_begin = 0;  // rows [row_begin, row_begin + num_rows) of q, k, v belong to one sequence
  int64_t num_rows = 0;
  Tensor scratch_k;   // [num_rows, K*D] destination rows, or empty: append to the pages
  Tensor scratch_v;   // [num_rows, K*D]
  HeadTables tables;  // head h appends at entries kv_len[h] + i; the caller raises kv_len afterwards
};
struct RopeAndStoreArgs {
  Tensor q;                            // [T, H*D], in place
  Tensor k;                            // [T, K*D], in place
  ConstTensor v;                       // [T, K*D]
  ConstTensor rope;                    // [T, D] from rope_table
  bool interleaved = false;            // pairs (2i, 2i+1) as in GGUF's llama, else (i, i + D/2)
  std::span<const int32_t> positions;  // [T], written beside the paged entries
  std::span<const StoreSegment> segments;
  PagedCacheView cache;
};

// Causal attention of prompt rows over a cached prefix in pages (may be empty) and then this layer's rows in scratch.
// Tiles are aligned to the absolute entry index (64), so the result does not depend on where the rows were cut.
struct PrefillSegment {
  int64_t row_begin = 0;
  int64_t num_rows = 0;
  HeadTables prefix;  // entries before the scratch rows; kv_len null: none
  ConstTensor k;      // [num_kv, K*D] scratch rows of this layer from first_position on, these rows included
  ConstTensor v;      // [num_kv, K*D]
  int32_t first_position = 0;  // of scratch row 0
};
struct PrefillAttentionArgs {
  AttentionShape shape;
  ConstTensor q;                       // [T, H*D], rotated
  std::span<const int32_t> positions;  // [T]
  std::span<const PrefillSegment> segments;
  PagedCacheView cache;
  Tensor out;  // [T, H*D]
  Tensor lse;  // [T, H] natural log-sum-exp of the scaled logits, or empty
};

// Attention of decode rows over their own pages only (their own entries were appended before). Several rows of one
// sequence are masked by position. Lengths differ by head.
struct DecodeSegment {
  int64_t row_begin = 0;
  int64_t num_rows = 0;
  HeadTables tables;
};
struct DecodeAttentionArgs {
  AttentionShape shape;
  ConstTensor q;                       // [T, H*D], rotated
  std::span<const int32_t> positions;  // [T]
  std::span<const DecodeSegment> segments;
  PagedCacheView cache;
  Tensor out;  // [T, H*D]
};

enum class Activation : uint8_t { kSilu, kGeluTanh };
// out = activation(gate) * up.
struct GluArgs {
  ConstTensor gate;  // [T, F]
  ConstTensor up;    // [T, F]
  Activation activation = Activation::kSilu;
  Tensor out;  // [T, F]; may be gate
};

// x = cap * tanh(x / cap), in place.
struct SoftcapArgs {
  Tensor x;
  float cap = 0.0f;
};

// Copies the scratch rows of one layer to the pages of each head, all of them, in position order (policy full).
// Replaced by compact where a policy selects.
struct StorePagesArgs {
  ConstTensor k;                       // [N, K*D]
  ConstTensor v;                       // [N, K*D]
  std::span<const int32_t> positions;  // [N]
  HeadTables tables;                   // entries kv_len[h] + i
  int32_t num_kv_heads = 0;
  PagedCacheView cache;
};

// One token for each row, in the order of architecture.md (bias, bans, penalties, temperature, min-p, top-k, top-p).
struct SampleArgs {
  Tensor logits;                    // [>= B, V]; may be overwritten; rows behind B are nobody's
  std::span<const SampleRow> rows;  // [B]
  std::span<SampleResult> results;  // [B], awaited
  Tensor drawn = {};  // [1, B] i32 or empty: the tokens again, for a gather; 0 where there is none (NaN)
};

// Memory of a backend; reading or writing it directly is only legal on the CPU.
class DeviceBuffer {
 public:
  virtual ~DeviceBuffer() = default;
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 protected:
  DeviceBuffer(std::byte* data, int64_t bytes) : data_(data), bytes_(bytes) {}
  std::byte* data_;
  int64_t bytes_;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;
  virtual int32_t page_slots() const = 0;  // S: 16 on the CPU, 64 on CUDA
  virtual DType activation_type() const { return DType::kF32; }
  // Whether observe fills Observation::logits where there is room for them.
  virtual bool keeps_logits() const { return false; }
  // Types the pages and the prefill scratch may have.
  virtual bool has_cache_type(DType dtype) const { return dtype == DType::kF32 || dtype == DType::kF16; }
  // Shapes that no kernel of this backend covers; the message lists what is covered.
  virtual Status check_attention_shape(const AttentionShape&) const { return {}; }
  // Whether the host may read and write allocate()'s memory in place.
  virtual bool is_host_memory() const { return true; }
  // Whether an op may be given this address. A card cannot say cheaply and believes it; the emulated one looks.
  virtual bool is_own_address(const void*) const { return true; }
  // What the items of one op may have together of arrays on the host: tables, lengths, positions, results. Bytes.
  virtual int64_t max_op_bytes() const { return INT64_MAX; }
  // Free memory of the device; nothing where that is the machine's own.
  virtual std::optional<int64_t> free_bytes() { return std::nullopt; }
  // Where an op finds a weight that lies in a mapped file: there, or in a copy taken from `arena` (which may count only)
  // in a type this backend computes with. `is_matrix`: an operand of matmul or gather, else a norm or a bias.
  virtual ConstTensor place_weight(const ConstTensor& file, bool is_matrix, Arena& arena) {
    static_cast<void>(is_matrix);
    static_cast<void>(arena);
    return file;
  }
  // Zeroed address space, touched on first use; null if there is none left.
  virtual std::unique_ptr<DeviceBuffer> allocate(int64_t bytes) = 0;
  // The same for memory that must be there: throws OutOfMemory, which says `what` it is for.
  std::unique_ptr<DeviceBuffer> allocate_for(const std::string& what, int64_t bytes);
  // Every value of a plain tensor becomes 0.
  virtual void zero(const Tensor& tensor) = 0;

  void gather(const GatherArgs& args);
  void rmsnorm(const RmsNormArgs& args);
  void add(const AddArgs& args);
  void matmul(const MatmulArgs& args);
  void rope_table(const RopeTableArgs& args);
  void rope_and_store(const RopeAndStoreArgs& args);
  void prefill_attention(const PrefillAttentionArgs& args);
  void decode_attention(const DecodeAttentionArgs& args);
  void glu(const GluArgs& args);
  void softcap(const SoftcapArgs& args);
  void store_pages(const StorePagesArgs& args);
  void sample(const SampleArgs& args);
  void store_queries(const StoreQueriesArgs& args);
  void factor_projection(const FactorProjectionArgs& args);
  void observe(const ObserveArgs& args);
  void score(const ScoreArgs& args);
  void smooth(const SmoothArgs& args);
  void select(const SelectArgs& args);
  void compact(const CompactArgs& args);
  virtual void synchronize() = 0;
  // What sample, select and compact give the host is there once this or synchronize() has returned, and its place must live
  // until then. Waits for the oldest step (the ops from a begin_step on) of which something is awaited, and for none behind it.
  virtual void wait_step() {}
  // Whether ops are only enqueued, so that a step may be prepared while the one before it runs.
  virtual bool is_asynchronous() const { return false; }
  // Between begin_step and end_step a backend may gather what the ops ask for and send it to the device as one; what waits
  // sends it before. Nothing else changes. drop_step: an op threw; what is still awaited never comes.
  virtual void begin_step() {}
  virtual void end_step() {}
  virtual void drop_step() {}
  // How many rows such a step of `rows` decode rows, a segment each, should have, as many as steps of nearly as many rows: the ones
  // behind are nobody's. No segment and no sample row says what becomes of them, so they change nothing but themselves.
  virtual int64_t step_rows(int64_t rows) const { return rows; }
  // The layer that the ops from now on belong to, for the messages of failures; -1: none.
  void at_layer(int64_t layer) { layer_ = layer; }
  // Rows of a plain tensor to and from the host, dense there; both wait.
  virtual void read_back(const ConstTensor& tensor, void* host);
  virtual void write(const Tensor& tensor, const void* host);

 protected:
  int64_t layer() const { return layer_; }

 private:
  int64_t layer_ = -1;

  virtual void do_gather(const GatherArgs& args) = 0;
  virtual void do_rmsnorm(const RmsNormArgs& args) = 0;
  virtual void do_add(const AddArgs& args) = 0;
  virtual void do_matmul(const MatmulArgs& args) = 0;
  virtual void do_rope_table(const RopeTableArgs& args) = 0;
  virtual void do_rope_and_store(const RopeAndStoreArgs& args) = 0;
  virtual void do_prefill_attention(const PrefillAttentionArgs& args) = 0;
  virtual void do_decode_attention(const DecodeAttentionArgs& args) = 0;
  virtual void do_glu(const GluArgs& args) = 0;
  virtual void do_softcap(const SoftcapArgs& args) = 0;
  virtual void do_store_pages(const StorePagesArgs& args) = 0;
  virtual void do_sample(const SampleArgs& args) = 0;
  virtual void do_store_queries(const StoreQueriesArgs& args) = 0;
  virtual void do_factor_projection(const FactorProjectionArgs& args) = 0;
  virtual void do_observe(const ObserveArgs& args) = 0;
  virtual void do_score(const ScoreArgs& args) = 0;
  virtual void do_smooth(const SmoothArgs& args) = 0;
  virtual void do_select(const SelectArgs& args) = 0;
  virtual void do_compact(const CompactArgs& args) = 0;
};

}  // namespace restkv

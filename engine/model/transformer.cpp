// The layer as a list of ops; what differs between families is data (families.h), never a branch on a name.
#include "engine/model/transformer.h"

#include <array>
#include <cmath>

namespace restkv {

Transformer::Transformer(const ModelConfig& config, const WeightViews& weights, Backend& backend,
                         Arena& arena, int64_t max_rows, int64_t max_logit_rows)
    : config_(config),
      weights_(weights),
      backend_(backend),
      max_rows_(max_rows),
      max_logit_rows_(max_logit_rows) {
  const ModelConfig& c = config;
  const DType active = backend.activation_type();
  rope_ = rope_frequencies(c.rope, c.head_dim);
  for (const LayerConfig& layer : c.layers) has_local_rope_ |= layer.local_rope;
  rope_table_ = arena.tensor(DType::kF32, max_rows, c.head_dim);
  if (has_local_rope_) {
    rope_local_ = rope_frequencies(c.rope_local, c.head_dim);
    rope_local_table_ = arena.tensor(DType::kF32, max_rows, c.head_dim);
  }
  hidden_ = arena.tensor(active, max_rows, c.hidden_size);
  delta_ = arena.tensor(active, max_rows, c.hidden_size);
  attended_ = arena.tensor(active, max_rows, c.num_heads * c.head_dim);
  const int64_t q_cols = c.num_heads * c.head_dim, kv_cols = c.num_kv_heads * c.head_dim;
  const Tensor qkv = arena.tensor(active, max_rows, q_cols + 2 * kv_cols);
  q_ = qkv.col_range(0, q_cols);
  k_ = qkv.col_range(q_cols, kv_cols);
  v_ = qkv.col_range(q_cols + kv_cols, kv_cols);
  const Tensor gate_up = arena.tensor(active, max_rows, 2 * c.ffn_size);
  gate_ = gate_up.col_range(0, c.ffn_size);
  up_ = gate_up.col_range(c.ffn_size, c.ffn_size);
  logit_rows_ = arena.tensor(active, max_logit_rows, c.hidden_size);
  logits_ = arena.tensor(DType::kF32, max_logit_rows, c.vocab_size);
}

void Transformer::embed(std::span<const int32_t> ids, ConstTensor drawn, Tensor residual) {
  backend_.at_layer(-1);
  backend_.gather({.table = weights_.embedding,
                   .ids = ids,
                   .scale = static_cast<float>(config_.embedding_scale),
                   .out = residual,
                   .drawn = drawn});
}

void Transformer::prepare(std::span<const int32_t> positions) {
  const auto rows = static_cast<int64_t>(positions.size());
  CHECK(rows <= max_rows_) << rows << " rows, room for " << max_rows_;
  owes_delta_ = false;
  backend_.rope_table({.positions = positions,
                       .inv_freq = rope_.inv_freq,
                       .attention_factor = rope_.attention_factor,
                       .out = first_rows(rope_table_, rows)});
  if (has_local_rope_) {
    backend_.rope_table({.positions = positions,
                         .inv_freq = rope_local_.inv_freq,
                         .attention_factor = rope_local_.attention_factor,
                         .out = first_rows(rope_local_table_, rows)});
  }
}

void Transformer::project(int64_t layer, const LayerRows& rows) {
  backend_.at_layer(layer);
  const ModelConfig& c = config_;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const int64_t count = rows.residual.rows;
  const auto eps = static_cast<float>(c.norm_eps);
  const auto offset = static_cast<float>(c.norm_offset);
  const Tensor hidden = first_rows(hidden_, count);
  const Tensor q = first_rows(q_, count), k = first_rows(k_, count), v = first_rows(v_, count);

  backend_.rmsnorm({.x = owes_delta_ ? first_rows(delta_, count) : rows.residual,
                    .residual = owes_delta_ ? rows.residual : Tensor{},
                    .weight = w.attn_norm,
                    .eps = eps,
                    .offset = offset,
                    .out = hidden});
  owes_delta_ = false;
  const std::array<MatmulOutput, 3> outputs = {{{w.q, w.q_bias, q}, {w.k, w.k_bias, k}, {w.v, w.v_bias, v}}};
  backend_.matmul({.x = hidden, .outputs = outputs});
  if (c.qk_norm) {
    backend_.rmsnorm({.x = q, .residual = {}, .weight = w.q_norm, .eps = eps, .offset = offset, .out = q});
    backend_.rmsnorm({.x = k, .residual = {}, .weight = w.k_norm, .eps = eps, .offset = offset, .out = k});
  }
  const bool local = c.layers[static_cast<size_t>(layer)].local_rope;
  backend_.rope_and_store({.q = q,
                           .k = k,
                           .v = v,
                           .rope = first_rows(local ? rope_local_table_ : rope_table_, count),
                           .interleaved = c.rope_interleaved,
                           .positions = rows.positions,
                           .segments = rows.stores,
                           .cache = rows.cache});
}

void Transformer::attend_pages(int64_t layer, std::span<const int32_t> positions,
                               std::span<const DecodeSegment> segments, const PagedCacheView& cache) {
  const auto count = static_cast<int64_t>(positions.size());
  backend_.decode_attention({.shape = shape_of(layer),
                             .q = first_rows(q_, count),
                             .positions = positions,
                             .segments = segments,
                             .cache = cache,
                             .out = first_rows(attended_, count)});
}

void Transformer::attend(int64_t layer, const LayerRows& rows) {
  const ModelConfig& c = config_;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const int64_t count = rows.residual.rows;
  const auto eps = static_cast<float>(c.norm_eps);
  const auto offset = static_cast<float>(c.norm_offset);
  const AttentionShape shape = shape_of(layer);
  const Tensor q = first_rows(q_, count), attended = first_rows(attended_, count);
  const Tensor hidden = first_rows(hidden_, count), delta = first_rows(delta_, count);
  const Tensor gate = first_rows(gate_, count), up = first_rows(up_, count);

  if (!rows.prefills.empty()) {
    backend_.prefill_attention({.shape = shape,
                                .q = q,
                                .positions = rows.positions,
                                .segments = rows.prefills,
                                .cache = rows.cache,
                                .out = attended,
                                .lse = {}});
  }
  if (!rows.decodes.empty()) attend_pages(layer, rows.positions, rows.decodes, rows.cache);
  const bool post_norms = c.norms == NormPlacement::kPreAndPost;
  const MatmulOutput o = {w.o, w.o_bias, delta};
  backend_.matmul({.x = attended, .outputs = {&o, 1}});
  if (post_norms) {
    backend_.rmsnorm(
        {.x = delta, .residual = {}, .weight = w.attn_post_norm, .eps = eps, .offset = offset, .out = delta});
  }
  backend_.rmsnorm({.x = delta,
                    .residual = rows.residual,
                    .weight = w.ffn_norm,
                    .eps = eps,
                    .offset = offset,
                    .out = hidden});
  const std::array<MatmulOutput, 2> gate_up = {{{w.gate, w.gate_bias, gate}, {w.up, w.up_bias, up}}};
  backend_.matmul({.x = hidden, .outputs = gate_up});
  backend_.glu({.gate = gate, .up = up, .activation = c.activation, .out = gate});
  const MatmulOutput down = {w.down, w.down_bias, delta};
  backend_.matmul({.x = gate, .outputs = {&down, 1}});
  if (post_norms) {
    backend_.rmsnorm(
        {.x = delta, .residual = {}, .weight = w.ffn_post_norm, .eps = eps, .offset = offset, .out = delta});
  }
  owes_delta_ = true;
}

void Transformer::settle(Tensor residual) {
  if (owes_delta_) backend_.add({.residual = residual, .x = first_rows(delta_, residual.rows)});
  owes_delta_ = false;
}

Tensor Transformer::logits(ConstTensor residual, std::span<const int32_t> rows) {
  const ModelConfig& c = config_;
  backend_.at_layer(-1);
  const auto count = static_cast<int64_t>(rows.size());
  CHECK(count <= max_logit_rows_) << count << " rows, room for " << max_logit_rows_;
  const Tensor picked = first_rows(logit_rows_, count), logits = first_rows(logits_, count);
  backend_.gather({.table = residual, .ids = rows, .scale = 1.0f, .out = picked});
  backend_.rmsnorm({.x = picked,
                    .residual = {},
                    .weight = weights_.final_norm,
                    .eps = static_cast<float>(c.norm_eps),
                    .offset = static_cast<float>(c.norm_offset),
                    .out = picked});
  const MatmulOutput head = {weights_.head, {}, logits};
  backend_.matmul({.x = picked, .outputs = {&head, 1}});
  if (c.final_softcap != 0.0) backend_.softcap({.x = logits, .cap = static_cast<float>(c.final_softcap)});
  return logits;
}

}  // namespace restkv

// Hashes in place of arithmetic; the memory they lie in is real.
#include "tests/sim/fake_backend.h"

#include <algorithm>

#include "kernels/cpu/cpu_backend.h"

namespace restkv::sim {
namespace {

uint32_t whole(float value) { return static_cast<uint32_t>(value); }

// Calls visit(position, token, h) for the first `count` paged entries of a head; positions must ascend.
template <class Visit>
void for_entries(const PagedCacheView& cache, const HeadTables& tables, int32_t head, int32_t count,
                 Visit visit) {
  int32_t last = -1;
  for (int32_t j = 0; j < count; ++j) {
    const int32_t page = tables.pages[int64_t{head} * tables.stride + j / cache.slots];
    CHECK(page >= 0) << "entry " << j << " of head " << head << " has no page";
    const int32_t slot = j % cache.slots;
    const int32_t position = cache.positions(page)[slot];
    CHECK(position > last) << "positions " << last << ", " << position << " of head " << head;
    last = position;
    const auto* key = reinterpret_cast<const float*>(cache.keys(page)) + int64_t{slot} * cache.head_dim;
    visit(static_cast<uint32_t>(position), whole(key[0]), whole(key[1]));
  }
}

void set_row(float* out, uint32_t token, uint32_t h) {
  out[0] = static_cast<float>(token);
  out[1] = static_cast<float>(h);
}

}  // namespace

FakeBackend::FakeBackend(const Model& model, bool is_asynchronous, std::function<void(int64_t)> tick)
    : model_(model), is_asynchronous_(is_asynchronous), tick_(std::move(tick)), cpu_(make_cpu_backend(1)) {}

void FakeBackend::wait_step() {
  if (drawn_.empty()) return;
  std::copy(drawn_.front().results.begin(), drawn_.front().results.end(), drawn_.front().shown.begin());
  drawn_.pop_front();
}

void FakeBackend::synchronize() {
  while (!drawn_.empty()) wait_step();
}

void FakeBackend::do_gather(const GatherArgs& args) {
  const bool is_embedding = args.table.data == model_.weights.embedding.data;
  for (size_t t = 0; t < args.ids.size(); ++t) {
    auto* out = static_cast<float*>(args.out.row(static_cast<int64_t>(t)));
    if (is_embedding) {
      set_row(out, static_cast<uint32_t>(args.id_of_row(t)), 0);
      continue;
    }
    const auto* row = static_cast<const float*>(args.table.row(args.ids[t]));
    std::copy(row, row + args.table.cols, out);
  }
}

// A block's output replaces the hash; the norm itself changes nothing.
void FakeBackend::do_rmsnorm(const RmsNormArgs& args) {
  for (int64_t t = 0; t < args.x.rows; ++t) {
    const auto* x = static_cast<const float*>(args.x.row(t));
    auto* out = static_cast<float*>(args.out.row(t));
    if (args.residual) {
      auto* residual = static_cast<float*>(args.residual.row(t));
      residual[1] = x[1];
      set_row(out, whole(residual[0]), whole(residual[1]));
    } else {
      set_row(out, whole(x[0]), whole(x[1]));
    }
  }
}

void FakeBackend::do_matmul(const MatmulArgs& args) {
  tick_(args.x.rows);
  for (const MatmulOutput& output : args.outputs) {
    for (size_t layer = 0; layer < model_.weights.layers.size(); ++layer)
      if (output.weight.data == model_.weights.layers[layer].q.data) layer_ = static_cast<int32_t>(layer);
    const int64_t d = model_.config.head_dim;
    for (int64_t t = 0; t < args.x.rows; ++t) {
      const auto* x = static_cast<const float*>(args.x.row(t));
      auto* out = static_cast<float*>(output.out.row(t));
      // Every head gets the state; so do rows of one block alone (o, the head of the model).
      for (int64_t n = 0; n + 1 < output.out.cols; n += d) set_row(out + n, whole(x[0]), whole(x[1]));
    }
  }
}

void FakeBackend::do_rope_and_store(const RopeAndStoreArgs& args) {
  const auto num_heads = static_cast<int32_t>(model_.config.num_kv_heads);
  const int64_t d = model_.config.head_dim;
  for (const StoreSegment& segment : args.segments) {
    for (int64_t i = 0; i < segment.num_rows; ++i) {
      const auto* k = static_cast<const float*>(args.k.row(segment.row_begin + i));
      if (segment.scratch_k) {
        std::copy(k, k + num_heads * d, static_cast<float*>(segment.scratch_k.row(i)));
        continue;
      }
      for (int32_t head = 0; head < num_heads; ++head) {
        const int32_t entry = segment.tables.kv_len[head] + static_cast<int32_t>(i);
        const int32_t page =
            segment.tables.pages[int64_t{head} * segment.tables.stride + entry / args.cache.slots];
        CHECK(page >= 0) << "entry " << entry << " has no page";
        const int32_t slot = entry % args.cache.slots;
        args.cache.positions(page)[slot] = args.positions[static_cast<size_t>(segment.row_begin + i)];
        std::copy(k + head * d, k + (head + 1) * d,
                  reinterpret_cast<float*>(args.cache.keys(page)) + int64_t{slot} * d);
      }
    }
  }
}

void FakeBackend::do_prefill_attention(const PrefillAttentionArgs& args) {
  const auto layer = static_cast<uint32_t>(layer_);
  const auto num_heads = static_cast<int32_t>(model_.config.num_kv_heads);
  const int64_t d = model_.config.head_dim;
  for (const PrefillSegment& segment : args.segments) {
    uint32_t digest[2] = {0, 0};
    for (int32_t head = 0; head < num_heads && segment.prefix.kv_len; ++head) {
      CHECK(segment.prefix.kv_len[head] == segment.first_position) << "the prefix ends elsewhere";
      for_entries(args.cache, segment.prefix, head, segment.prefix.kv_len[head],
                  [&](uint32_t p, uint32_t token, uint32_t h) {
                    digest[head] += entry_hash(p, token, h, layer, static_cast<uint32_t>(head));
                  });
    }
    int64_t next = 0;  // scratch row
    for (int64_t i = 0; i < segment.num_rows; ++i) {
      const int64_t row = segment.row_begin + i;
      const int32_t position = args.positions[static_cast<size_t>(row)];
      for (; segment.first_position + next <= position; ++next) {
        const auto* k = static_cast<const float*>(segment.k.row(next));
        for (int32_t head = 0; head < num_heads; ++head)
          digest[head] += entry_hash(static_cast<uint32_t>(segment.first_position + next), whole(k[head * d]),
                                     whole(k[head * d + 1]), layer, static_cast<uint32_t>(head));
      }
      const auto* q = static_cast<const float*>(args.q.row(row));
      set_row(static_cast<float*>(args.out.row(row)), whole(q[0]),
              attended(whole(q[1]), digest[0], digest[1], layer));
    }
  }
}

void FakeBackend::do_decode_attention(const DecodeAttentionArgs& args) {
  const auto layer = static_cast<uint32_t>(layer_);
  for (const DecodeSegment& segment : args.segments) {
    for (int64_t i = 0; i < segment.num_rows; ++i) {
      const int64_t row = segment.row_begin + i;
      const auto position = static_cast<uint32_t>(args.positions[static_cast<size_t>(row)]);
      uint32_t digest[2] = {0, 0};
      for (int32_t head = 0; head < 2; ++head) {
        for_entries(args.cache, segment.tables, head, segment.tables.kv_len[head],
                    [&](uint32_t p, uint32_t token, uint32_t h) {
                      if (p <= position)
                        digest[head] += entry_hash(p, token, h, layer, static_cast<uint32_t>(head));
                    });
      }
      const auto* q = static_cast<const float*>(args.q.row(row));
      set_row(static_cast<float*>(args.out.row(row)), whole(q[0]),
              attended(whole(q[1]), digest[0], digest[1], layer));
    }
  }
}

void FakeBackend::do_score(const ScoreArgs& args) {
  const int64_t d = model_.config.head_dim;
  for (const ScoreItem& item : args.items) {
    const auto layer = static_cast<uint32_t>(item.layer);
    for (int32_t head = 0; head < 2; ++head) {
      // The observing queries, from rows or from the ring.
      uint32_t queries = 0;
      for (size_t i = 0; i < item.queries.positions.size(); ++i) {
        const int32_t position = item.queries.positions[i];
        const float* q = nullptr;
        if (item.queries.rows) {
          q = static_cast<const float*>(item.queries.rows.row(static_cast<int64_t>(i))) + head * d;
        } else {
          const QueryRing& ring = item.queries.ring;
          const int32_t row = position % ring.window;  // G = 1
          const int32_t page = ring.pages[int64_t{head} * ring.stride + row / (2 * args.cache.slots)];
          q = reinterpret_cast<const float*>(args.cache.keys(page)) + row % (2 * args.cache.slots) * d;
        }
        queries += query_hash(static_cast<uint32_t>(position), whole(q[0]), whole(q[1]));
      }
      auto* out = static_cast<float*>(item.out.row(head));
      int64_t n = 0;
      const auto add = [&](uint32_t p, uint32_t token, uint32_t h) {
        const uint32_t entry = entry_hash(p, token, h, layer, static_cast<uint32_t>(head));
        out[n++] =
            static_cast<float>(args.spec.kind == ScoreKind::kRecency ? p : entry_score(entry, queries));
      };
      if (item.rows.pages.kv_len)
        for_entries(args.cache, item.rows.pages, head, item.rows.pages.kv_len[head], add);
      for (int64_t row = 0; item.rows.k && row < item.rows.k.rows; ++row) {
        const auto* k = static_cast<const float*>(item.rows.k.row(row)) + head * d;
        add(static_cast<uint32_t>(item.rows.first_position + row), whole(k[0]), whole(k[1]));
      }
    }
  }
}

void FakeBackend::do_sample(const SampleArgs& args) {
  tick_(args.logits.rows);
  Drawn& drawn = drawn_.emplace_back();
  drawn.shown = args.results;
  drawn.results.resize(args.rows.size());
  for (size_t i = 0; i < args.rows.size(); ++i) {
    const SampleRow& row = args.rows[i];
    const auto* logits = static_cast<const float*>(args.logits.row(static_cast<int64_t>(i)));
    SampleResult& result = drawn.results[i];
    args.results[i].token = -1;  // nobody may look yet
    result.is_nan = draws_nan(row.params->seed, row.position);
    result.token = drawn_token(whole(logits[1]), row.position, row.params->seed, row.choice,
                               static_cast<int32_t>(model_.config.vocab_size));
    if (args.drawn) static_cast<int32_t*>(args.drawn.data)[i] = result.is_nan ? 0 : result.token;
  }
}

}  // namespace restkv::sim

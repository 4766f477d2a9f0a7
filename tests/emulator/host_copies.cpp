// What an op is given are ranges of host memory, some of which overlap (one buffer as x and out, rows of one residual). Ranges
// that overlap become one region of a device buffer, so that they overlap there, too. What travels are pieces of them: rows
// that lie far apart and pages one by one, so that a range may be larger than the memory there is.
#include "tests/emulator/host_copies.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_backend.h"

namespace restkv {
namespace {

constexpr int64_t kAlign = 256;

class Copies {
 public:
  // `memory` is what the copies on the device lie in, made larger where it is too small.
  Copies(Backend& device, std::unique_ptr<DeviceBuffer>& memory) : device_(device), buffer_(memory) {}

  void collect(const ConstTensor& tensor) { collect(tensor, false); }
  void collect(const Tensor& tensor) { collect(tensor, true); }
  // Pages that tables name; the others stay at home.
  void note(const int32_t* pages, int64_t count) {
    for (int64_t i = 0; pages != nullptr && i < count; ++i)
      if (pages[i] >= 0) pages_.push_back(pages[i]);
  }
  void collect(const PagedCacheView& cache) {
    if (cache.pool == nullptr || pages_.empty()) return;
    const int32_t last = *std::max_element(pages_.begin(), pages_.end());
    ranges_.push_back({cache.pool, cache.pool + cache.page_bytes * (last + 1)});
    for (const int32_t page : pages_) {
      const std::byte* begin = cache.pool + cache.page_bytes * page;
      pieces_.push_back({{begin, begin + cache.page_bytes}, true});
    }
  }

  void send() {
    const auto by_begin = [](const Range& a, const Range& b) { return a.begin < b.begin; };
    std::sort(ranges_.begin(), ranges_.end(), by_begin);
    for (const Range& range : ranges_) {
      if (!regions_.empty() && range.begin < regions_.back().end) {
        regions_.back().end = std::max(regions_.back().end, range.end);
        continue;
      }
      // Alignment is as good on the device as it was on the host.
      const auto phase = static_cast<int64_t>(reinterpret_cast<uintptr_t>(range.begin) % kAlign);
      regions_.push_back({range, regions_.empty() ? phase : padded_end(regions_.back()) + phase});
    }
    if (regions_.empty()) return;
    const int64_t bytes = padded_end(regions_.back());
    if (buffer_ == nullptr || buffer_->bytes() < bytes) buffer_ = device_.allocate(bytes);
    CHECK(buffer_ != nullptr) << bytes << " bytes";
    std::sort(pieces_.begin(), pieces_.end(), by_begin);
    std::vector<Piece> joined;
    for (const Piece& piece : pieces_) {
      if (!joined.empty() && piece.begin < joined.back().end) {
        joined.back().end = std::max(joined.back().end, piece.end);
        joined.back().is_written |= piece.is_written;
      } else {
        joined.push_back(piece);
      }
    }
    pieces_ = std::move(joined);
    for (const Piece& piece : pieces_) device_.write(on_device(piece), piece.begin);
  }
  void translate(ConstTensor& tensor) const { tensor.data = moved(tensor.data); }
  void translate(Tensor& tensor) const { tensor.data = const_cast<void*>(moved(tensor.data)); }
  void translate(PagedCacheView& cache) const {
    cache.pool = static_cast<std::byte*>(const_cast<void*>(moved(cache.pool)));
  }
  void fetch() {
    for (const Piece& piece : pieces_)
      if (piece.is_written) device_.read_back(on_device(piece), const_cast<std::byte*>(piece.begin));
  }

 private:
  struct Range {
    const std::byte *begin, *end;
  };
  struct Region : Range {
    int64_t at;  // in the buffer
  };
  struct Piece : Range {
    bool is_written;
  };

  static int64_t padded_end(const Region& region) {
    return (region.at + (region.end - region.begin) + kAlign - 1) / kAlign * kAlign;
  }
  void collect(const ConstTensor& tensor, bool is_written) {
    if (!tensor || tensor.rows == 0 || tensor.cols == 0) return;
    const auto* begin = static_cast<const std::byte*>(tensor.data);
    const int64_t row = bytes_of(tensor.dtype, tensor.cols), step = bytes_of(tensor.dtype, tensor.stride);
    ranges_.push_back({begin, begin + step * (tensor.rows - 1) + row});
    if (step <= kFar * row) {
      pieces_.push_back({ranges_.back(), is_written});
      return;
    }
    for (int64_t r = 0; r < tensor.rows; ++r)
      pieces_.push_back({{begin + r * step, begin + r * step + row}, is_written});
  }
  Tensor on_device(const Range& range) const {
    return dense(const_cast<void*>(moved(range.begin)), DType::kU8, 1, range.end - range.begin);
  }
  const void* moved(const void* data) const {
    const auto* host = static_cast<const std::byte*>(data);
    for (const Region& region : regions_)
      if (host >= region.begin && host < region.end)
        return buffer_->data() + region.at + (host - region.begin);
    // Null, of no rows, or pages that no table names: the op must not touch it.
    return host == nullptr || buffer_ == nullptr ? data : buffer_->data();
  }

  static constexpr int64_t kFar = 16;  // rows further apart than so many lengths travel one by one
  Backend& device_;
  std::vector<int32_t> pages_;
  std::vector<Range> ranges_;
  std::vector<Piece> pieces_;
  std::vector<Region> regions_;
  std::unique_ptr<DeviceBuffer>& buffer_;
};

template <class Copy>
void visit(Copy& copy, RowSource& rows) {
  copy(rows.k);
  copy(rows.v);
}
template <class Copy>
void visit(Copy& copy, Observation& o) {
  for (Tensor* tensor :
       {&o.lse, &o.top, &o.rest, &o.p, &o.p_rest, &o.norm, &o.v_mean, &o.ratio, &o.partial, &o.mean_index})
    copy(*tensor);
}

template <class T>
std::vector<T> copy_of(std::span<const T> items) {
  return {items.begin(), items.end()};
}

class HostMemoryBackend final : public Backend {
 public:
  HostMemoryBackend(std::unique_ptr<Backend> device, bool keeps_memory)
      : device_(std::move(device)), host_(make_cpu_backend(1)), keeps_memory_(keeps_memory) {}

  std::string_view name() const override { return device_->name(); }
  int32_t page_slots() const override { return device_->page_slots(); }
  int64_t max_op_bytes() const override { return device_->max_op_bytes(); }
  DType activation_type() const override { return device_->activation_type(); }
  bool has_cache_type(DType dtype) const override { return device_->has_cache_type(dtype); }
  Status check_attention_shape(const AttentionShape& shape) const override {
    return device_->check_attention_shape(shape);
  }
  std::unique_ptr<DeviceBuffer> allocate(int64_t bytes) override { return host_->allocate(bytes); }
  ConstTensor place_weight(const ConstTensor& file, bool is_matrix, Arena& arena) override {
    Arena count = Arena::counting();
    const ConstTensor counted = device_->place_weight(file, is_matrix, count);
    if (count.used() == 0) return file;
    const Tensor placed = arena.tensor(counted.dtype, file.rows, file.cols);
    if (!placed) return counted;
    const auto memory = device_->allocate(count.used());
    Arena there(memory->data(), memory->bytes());
    device_->read_back(device_->place_weight(file, is_matrix, there), placed.data);
    return placed;
  }
  void synchronize() override { device_->synchronize(); }
  void zero(const Tensor& tensor) override {
    run(
        tensor, [](auto& copy, Tensor& t) { copy(t); }, [this](const Tensor& t) { device_->zero(t); });
  }

 private:
  // `visit(copy, args)` shows `copy` every tensor of the args; it is called to collect them and again to move them.
  template <class Args, class Visit, class Op>
  void run(Args args, Visit visit, Op op) {
    device_->at_layer(layer());
    if (!keeps_memory_) memory_.reset();
    Copies copies(*device_, memory_);
    auto collect = [&](auto& value) { copies.collect(value); };
    visit(collect, args);
    copies.send();
    auto translate = [&](auto& value) { copies.translate(value); };
    visit(translate, args);
    op(args);
    copies.fetch();
  }
  // The same for ops with a paged cache: `tables(copies)` notes the pages first.
  template <class Args, class Tables, class Visit, class Op>
  void run_paged(Args args, Tables tables, Visit visit, Op op) {
    device_->at_layer(layer());
    if (!keeps_memory_) memory_.reset();
    Copies copies(*device_, memory_);
    tables(copies);
    copies.collect(args.cache);
    auto collect = [&](auto& value) { copies.collect(value); };
    visit(collect, args);
    copies.send();
    copies.translate(args.cache);
    auto translate = [&](auto& value) { copies.translate(value); };
    visit(translate, args);
    op(args);
    copies.fetch();
  }
  static void note(Copies& copies, const HeadTables& tables, int64_t num_kv_heads) {
    if (tables.kv_len != nullptr || tables.pages != nullptr)
      copies.note(tables.pages, num_kv_heads * tables.stride);
  }
  static void note(Copies& copies, const QueryRing& ring, int64_t num_kv_heads) {
    copies.note(ring.pages, num_kv_heads * ring.stride);
  }
  static void note(Copies& copies, const EntrySums* sums, int64_t num_kv_heads) {
    if (sums != nullptr) copies.note(sums->pages, num_kv_heads * sums->stride);
  }

  void do_gather(const GatherArgs& given) override {
    run(
        given,
        [](auto& copy, GatherArgs& a) {
          copy(a.table);
          copy(a.drawn);
          copy(a.out);
        },
        [this](const GatherArgs& a) { device_->gather(a); });
  }
  void do_rmsnorm(const RmsNormArgs& given) override {
    run(
        given,
        [](auto& copy, RmsNormArgs& a) {
          copy(a.x);
          copy(a.residual);
          copy(a.weight);
          copy(a.out);
        },
        [this](const RmsNormArgs& a) { device_->rmsnorm(a); });
  }
  void do_add(const AddArgs& given) override {
    run(
        given,
        [](auto& copy, AddArgs& a) {
          copy(a.residual);
          copy(a.x);
        },
        [this](const AddArgs& a) { device_->add(a); });
  }
  void do_matmul(const MatmulArgs& given) override {
    std::vector<MatmulOutput> outputs = copy_of(given.outputs);
    run(
        given,
        [&](auto& copy, MatmulArgs& a) {
          copy(a.x);
          for (MatmulOutput& output : outputs) {
            copy(output.weight);
            copy(output.bias);
            copy(output.out);
          }
          a.outputs = outputs;
        },
        [this](const MatmulArgs& a) { device_->matmul(a); });
  }
  void do_rope_table(const RopeTableArgs& given) override {
    run(
        given, [](auto& copy, RopeTableArgs& a) { copy(a.out); },
        [this](const RopeTableArgs& a) { device_->rope_table(a); });
  }
  void do_rope_and_store(const RopeAndStoreArgs& given) override {
    std::vector<StoreSegment> segments = copy_of(given.segments);
    run_paged(
        given,
        [&](Copies& copies) {
          for (const StoreSegment& s : segments)
            if (!s.scratch_k) note(copies, s.tables, given.k.cols / given.rope.cols);
        },
        [&](auto& copy, RopeAndStoreArgs& a) {
          copy(a.q);
          copy(a.k);
          copy(a.v);
          copy(a.rope);
          for (StoreSegment& s : segments) {
            copy(s.scratch_k);
            copy(s.scratch_v);
          }
          a.segments = segments;
        },
        [this](const RopeAndStoreArgs& a) { device_->rope_and_store(a); });
  }
  void do_prefill_attention(const PrefillAttentionArgs& given) override {
    std::vector<PrefillSegment> segments = copy_of(given.segments);
    run_paged(
        given,
        [&](Copies& copies) {
          for (const PrefillSegment& s : segments) note(copies, s.prefix, given.shape.num_kv_heads);
        },
        [&](auto& copy, PrefillAttentionArgs& a) {
          copy(a.q);
          copy(a.out);
          copy(a.lse);
          for (PrefillSegment& s : segments) {
            copy(s.k);
            copy(s.v);
          }
          a.segments = segments;
        },
        [this](const PrefillAttentionArgs& a) { device_->prefill_attention(a); });
  }
  void do_decode_attention(const DecodeAttentionArgs& given) override {
    run_paged(
        given,
        [&](Copies& copies) {
          for (const DecodeSegment& s : given.segments) note(copies, s.tables, given.shape.num_kv_heads);
        },
        [](auto& copy, DecodeAttentionArgs& a) {
          copy(a.q);
          copy(a.out);
        },
        [this](const DecodeAttentionArgs& a) { device_->decode_attention(a); });
  }
  void do_glu(const GluArgs& given) override {
    run(
        given,
        [](auto& copy, GluArgs& a) {
          copy(a.gate);
          copy(a.up);
          copy(a.out);
        },
        [this](const GluArgs& a) { device_->glu(a); });
  }
  void do_softcap(const SoftcapArgs& given) override {
    run(
        given, [](auto& copy, SoftcapArgs& a) { copy(a.x); },
        [this](const SoftcapArgs& a) { device_->softcap(a); });
  }
  void do_store_pages(const StorePagesArgs& given) override {
    run_paged(
        given, [&](Copies& copies) { note(copies, given.tables, given.num_kv_heads); },
        [](auto& copy, StorePagesArgs& a) {
          copy(a.k);
          copy(a.v);
        },
        [this](const StorePagesArgs& a) { device_->store_pages(a); });
  }
  void do_sample(const SampleArgs& given) override {
    run(
        given,
        [](auto& copy, SampleArgs& a) {
          copy(a.logits);
          copy(a.drawn);
        },
        [this](const SampleArgs& a) {
          device_->sample(a);
          device_->wait_step();
        });
  }
  void do_store_queries(const StoreQueriesArgs& given) override {
    run_paged(
        given,
        [&](Copies& copies) {
          for (const StoreQueriesSegment& s : given.segments) note(copies, s.ring, given.shape.num_kv_heads);
        },
        [](auto& copy, StoreQueriesArgs& a) { copy(a.q); },
        [this](const StoreQueriesArgs& a) { device_->store_queries(a); });
  }
  void do_factor_projection(const FactorProjectionArgs& given) override {
    run(
        given,
        [](auto& copy, FactorProjectionArgs& a) {
          copy(a.weight);
          copy(a.out);
        },
        [this](const FactorProjectionArgs& a) { device_->factor_projection(a); });
  }
  void do_observe(const ObserveArgs& given) override {
    std::vector<ObserveItem> items = copy_of(given.items);
    run_paged(
        given,
        [&](Copies& copies) {
          for (const ObserveItem& i : items) {
            note(copies, i.rows.pages, given.shape.num_kv_heads);
            if (!i.queries.rows) note(copies, i.queries.ring, given.shape.num_kv_heads);
          }
        },
        [&](auto& copy, ObserveArgs& a) {
          for (ObserveItem& i : items) {
            visit(copy, i.rows);
            copy(i.queries.rows);
            copy(i.projection);
            visit(copy, i.out);
          }
          a.items = items;
        },
        [this](const ObserveArgs& a) { device_->observe(a); });
  }
  void do_score(const ScoreArgs& given) override {
    std::vector<ScoreItem> items = copy_of(given.items);
    run_paged(
        given,
        [&](Copies& copies) {
          for (const ScoreItem& i : items) {
            note(copies, i.rows.pages, given.shape.num_kv_heads);
            if (!i.queries.rows) note(copies, i.queries.ring, given.shape.num_kv_heads);
            note(copies, i.sums, given.shape.num_kv_heads);
          }
        },
        [&](auto& copy, ScoreArgs& a) {
          for (ScoreItem& i : items) {
            visit(copy, i.rows);
            copy(i.queries.rows);
            copy(i.projection);
            visit(copy, i.observation);
            copy(i.out);
          }
          a.items = items;
        },
        [this](const ScoreArgs& a) { device_->score(a); });
  }
  void do_smooth(const SmoothArgs& given) override {
    std::vector<SmoothItem> items = copy_of(given.items);
    run(
        given,
        [&](auto& copy, SmoothArgs& a) {
          for (SmoothItem& i : items) {
            visit(copy, i.rows);
            copy(i.in);
            copy(i.out);
            visit(copy, i.observation);
          }
          a.items = items;
        },
        [this](const SmoothArgs& a) { device_->smooth(a); });
  }
  void do_select(const SelectArgs& given) override {
    std::vector<SelectItem> items = copy_of(given.items);
    run_paged(
        given,
        [&](Copies& copies) {
          for (const SelectItem& i : items) note(copies, i.rows.pages, given.num_kv_heads);
        },
        [&](auto& copy, SelectArgs& a) {
          for (SelectItem& i : items) {
            visit(copy, i.rows);
            for (ConstTensor& scores : i.scores) copy(scores);
            copy(i.kept);
          }
          a.items = items;
        },
        [this](const SelectArgs& a) {
          device_->select(a);
          device_->wait_step();
        });
  }
  void do_compact(const CompactArgs& given) override {
    std::vector<CompactItem> items = copy_of(given.items);
    run_paged(
        given,
        [&](Copies& copies) {
          for (const CompactItem& i : items) {
            note(copies, i.rows.pages, given.shape.num_kv_heads);
            note(copies, i.destination, given.shape.num_kv_heads);
            note(copies, &i.sums, given.shape.num_kv_heads);
          }
        },
        [&](auto& copy, CompactArgs& a) {
          for (CompactItem& i : items) {
            visit(copy, i.rows);
            copy(i.kept);
            copy(i.scores);
          }
          a.items = items;
        },
        [this](const CompactArgs& a) {
          device_->compact(a);
          device_->wait_step();
        });
  }

  std::unique_ptr<Backend> device_;
  std::unique_ptr<Backend> host_;  // for memory
  const bool keeps_memory_;
  std::unique_ptr<DeviceBuffer> memory_;  // of the device, behind it: of the last op
};

}  // namespace

std::unique_ptr<Backend> with_host_memory(std::unique_ptr<Backend> device, bool keeps_memory) {
  return std::make_unique<HostMemoryBackend>(std::move(device), keeps_memory);
}

}  // namespace restkv

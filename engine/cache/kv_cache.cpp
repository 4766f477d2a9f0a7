// Admission takes every page a sequence can ever need; nothing is taken or given back in between.
#include "engine/cache/kv_cache.h"

#include <algorithm>

#include "kernels/base/device_error.h"

namespace restkv {
namespace {

int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Pages of one layer, by kind.
struct LayerPages {
  std::vector<int64_t> entries;  // [K]; of a shared layer: what each head could have without the others
  int64_t all_entries = 0;       // together
  int64_t ring = 0, sums = 0;    // per head
};

LayerPages pages_of_layer(const CacheReservation& r, const CacheShape& shape, int32_t slots, int64_t layer) {
  LayerPages pages;
  int64_t most = 0;
  for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
    const int64_t entries = r.entries[static_cast<size_t>(layer * shape.num_kv_heads + head)];
    most = std::max(most, entries);
    pages.entries.push_back(div_up(entries, slots));
    pages.all_entries += pages.entries.back();
  }
  const auto l = static_cast<size_t>(layer);
  if (!r.shared_layer.empty() && r.shared_layer[l])
    pages.all_entries += shape.num_kv_heads;  // a part page each
  if (r.ring_window > 0 && r.ring_layer[l])
    pages.ring = QueryRing::num_pages(r.ring_window, static_cast<int32_t>(shape.group), slots);
  if (r.has_sums) {
    pages.sums =
        div_up(most, EntrySums::floats_per_page(shape.dtype, slots, static_cast<int32_t>(shape.head_dim)));
  }
  return pages;
}

const int32_t* resident(const SequenceCache& sequence, const SequenceCache::Table& table) {
  return sequence.resident ? sequence.resident + table.begin : nullptr;
}

// Page ids of each head's row in the layer's table. One head of a shared layer could get nearly all of its pages.
int64_t table_width(const CacheReservation& r, const LayerPages& pages, int64_t layer) {
  const bool is_shared = !r.shared_layer.empty() && r.shared_layer[static_cast<size_t>(layer)];
  return is_shared ? pages.all_entries : *std::max_element(pages.entries.begin(), pages.entries.end());
}

}  // namespace

KvCache::KvCache(Backend& backend, const CacheShape& shape, int64_t num_pages)
    : shape_(shape), pool_(num_pages), tables_(backend, num_pages) {
  view_.dtype = shape.dtype;
  view_.slots = backend.page_slots();
  view_.head_dim = static_cast<int32_t>(shape.head_dim);
  view_.page_bytes = page_bytes(backend, shape);
  memory_ = backend.allocate_for("the pages of the KV cache", view_.page_bytes * num_pages);
  view_.pool = memory_->data();
}

int64_t KvCache::page_bytes(const Backend& backend, const CacheShape& shape) {
  return PagedCacheView::bytes_per_page(shape.dtype, backend.page_slots(),
                                        static_cast<int32_t>(shape.head_dim));
}

int64_t KvCache::pages_for(const CacheReservation& reservation, const CacheShape& shape, int32_t slots) {
  int64_t total = 0;
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    const LayerPages pages = pages_of_layer(reservation, shape, slots, layer);
    total += pages.all_entries + shape.num_kv_heads * (pages.ring + pages.sums);
  }
  return total;
}

int64_t KvCache::table_entries(const CacheReservation& reservation, const CacheShape& shape, int32_t slots) {
  int64_t total = shape.num_layers * shape.num_kv_heads;  // lengths
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    const LayerPages pages = pages_of_layer(reservation, shape, slots, layer);
    total += shape.num_kv_heads * (table_width(reservation, pages, layer) + pages.ring + pages.sums);
  }
  return total;
}

SequenceCache KvCache::admit(const CacheReservation& reservation, const SequenceCache* other,
                             int32_t shared_entries) {
  SequenceCache s;
  s.shared_entries = shared_entries;
  const int64_t shared_pages = shared_entries / view_.slots;
  const auto num_layers = static_cast<size_t>(shape_.num_layers);
  const auto num_heads = static_cast<size_t>(shape_.num_kv_heads);
  s.num_pages = pages_for(reservation);
  s.owned.resize(static_cast<size_t>(s.num_pages - shared_pages * shape_.num_layers * shape_.num_kv_heads));
  pool_.take(s.owned);
  std::vector<int32_t> shared;
  s.kv_len.assign(num_layers * num_heads, 0);
  s.capacity = reservation.entries;
  s.sums_len.assign(reservation.has_sums ? num_layers * num_heads : 0, 0);
  s.ring_window = reservation.ring_window;
  auto next = s.owned.begin();
  const auto add_table = [&](std::vector<SequenceCache::Table>& tables, int64_t width) {
    tables.push_back({s.ids.size(), static_cast<int32_t>(width)});
    s.ids.resize(s.ids.size() + num_heads * static_cast<size_t>(width), -1);
    return s.ids.begin() + static_cast<std::ptrdiff_t>(tables.back().begin);
  };
  const auto fill = [&](auto place, int64_t count) {
    std::copy(next, next + count, place);
    next += count;
  };
  for (size_t layer = 0; layer < num_layers; ++layer) {
    const LayerPages pages = pages_of_layer(reservation, shape_, view_.slots, static_cast<int64_t>(layer));
    const bool is_shared = !reservation.shared_layer.empty() && reservation.shared_layer[layer];
    const int64_t width = table_width(reservation, pages, static_cast<int64_t>(layer));
    auto place = add_table(s.entries, width);
    s.spare_begin.push_back(s.spare.size());
    if (is_shared) {
      s.spare.insert(s.spare.end(), next, next + pages.all_entries);
      next += pages.all_entries;
    } else {
      for (size_t head = 0; head < num_heads; ++head) {
        const auto table = place + static_cast<std::ptrdiff_t>(head) * width;
        if (shared_pages > 0) {
          const SequenceCache::Table& from = other->entries[layer];
          const auto first = other->ids.begin() +
                             static_cast<std::ptrdiff_t>(from.begin + head * static_cast<size_t>(from.width));
          std::copy_n(first, shared_pages, table);
          shared.insert(shared.end(), first, first + shared_pages);
        }
        fill(table + static_cast<std::ptrdiff_t>(shared_pages), pages.entries[head] - shared_pages);
      }
    }
    place = add_table(s.ring, pages.ring);
    fill(place, pages.ring * shape_.num_kv_heads);
    place = add_table(s.sums, pages.sums);
    fill(place, pages.sums * shape_.num_kv_heads);
  }
  s.spare_begin.push_back(s.spare.size());
  CHECK(next == s.owned.end()) << "a reservation was counted and handed out differently";
  pool_.share(shared);
  s.owned.insert(s.owned.end(), shared.begin(), shared.end());
  try {
    s.resident = tables_.put(s.ids);
  } catch (const DeviceError&) {
    pool_.give_back(s.owned);
    throw;
  }
  return s;
}

void KvCache::release(SequenceCache& sequence) {
  pool_.give_back(sequence.owned);
  tables_.give_back(sequence.resident, static_cast<int64_t>(sequence.ids.size()));
  sequence = SequenceCache{};
}

HeadTables KvCache::tables(const SequenceCache& sequence, int64_t layer) const {
  const SequenceCache::Table& table = sequence.entries[static_cast<size_t>(layer)];
  return {sequence.ids.data() + table.begin, table.width,
          sequence.kv_len.data() + layer * shape_.num_kv_heads, resident(sequence, table)};
}

QueryRing KvCache::ring(const SequenceCache& sequence, int64_t layer) const {
  const SequenceCache::Table& table = sequence.ring[static_cast<size_t>(layer)];
  if (table.width == 0) return {};
  return {sequence.ids.data() + table.begin, table.width, sequence.ring_window, resident(sequence, table)};
}

EntrySums KvCache::sums(const SequenceCache& sequence, int64_t layer) const {
  const SequenceCache::Table& table = sequence.sums[static_cast<size_t>(layer)];
  if (table.width == 0) return {};
  return {sequence.ids.data() + table.begin, table.width,
          sequence.sums_len.data() + layer * shape_.num_kv_heads, resident(sequence, table)};
}

void KvCache::advance(SequenceCache& sequence, int64_t layer, int64_t rows) const {
  for (int64_t head = 0; head < shape_.num_kv_heads; ++head) {
    const auto index = static_cast<size_t>(layer * shape_.num_kv_heads + head);
    sequence.kv_len[index] += static_cast<int32_t>(rows);
    CHECK(sequence.kv_len[index] <= sequence.capacity[index])
        << sequence.kv_len[index] << " entries, room for " << sequence.capacity[index];
  }
}

void KvCache::share_layer(SequenceCache& sequence, int64_t layer, const int32_t* entries) {
  const auto l = static_cast<size_t>(layer);
  const SequenceCache::Table& table = sequence.entries[l];
  size_t next = sequence.spare_begin[l];
  const size_t end = sequence.spare_begin[l + 1];
  for (int64_t head = 0; head < shape_.num_kv_heads; ++head) {
    const int64_t pages = div_up(entries[head], view_.slots);
    CHECK(next + static_cast<size_t>(pages) <= end)
        << "the shares of layer " << layer << " are past its pages";
    const size_t place = table.begin + static_cast<size_t>(head) * static_cast<size_t>(table.width);
    std::copy_n(sequence.spare.begin() + static_cast<std::ptrdiff_t>(next), pages,
                sequence.ids.begin() + static_cast<std::ptrdiff_t>(place));
    next += static_cast<size_t>(pages);
    sequence.capacity[static_cast<size_t>(layer * shape_.num_kv_heads + head)] = entries[head];
  }
  if (const int32_t* place = resident(sequence, table)) {
    tables_.replace(
        place,
        std::span(sequence.ids).subspan(table.begin, static_cast<size_t>(shape_.num_kv_heads * table.width)));
  }
}

}  // namespace restkv

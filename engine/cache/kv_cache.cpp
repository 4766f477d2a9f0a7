// Admission takes every page a sequence can ever need; nothing is taken or given back in between.
#include "engine/cache/kv_cache.h"

namespace restkv {

KvCache::KvCache(Backend& backend, const CacheShape& shape, int64_t num_pages)
    : shape_(shape), pool_(num_pages) {
  view_.dtype = shape.dtype;
  view_.slots = backend.page_slots();
  view_.head_dim = static_cast<int32_t>(shape.head_dim);
  view_.page_bytes = page_bytes(backend, shape);
  memory_ = backend.allocate(view_.page_bytes * num_pages);
  CHECK(memory_ != nullptr) << num_pages << " pages of " << view_.page_bytes << " bytes";
  view_.pool = memory_->data();
}

int64_t KvCache::page_bytes(const Backend& backend, const CacheShape& shape) {
  return PagedCacheView::bytes_per_page(shape.dtype, backend.page_slots(),
                                        static_cast<int32_t>(shape.head_dim));
}

int64_t KvCache::pages_for(int64_t entries) const {
  return shape_.num_layers * shape_.num_kv_heads * ((entries + view_.slots - 1) / view_.slots);
}

SequenceCache KvCache::admit(int64_t entries) {
  SequenceCache sequence;
  sequence.stride = static_cast<int32_t>((entries + view_.slots - 1) / view_.slots);
  sequence.capacity = static_cast<int32_t>(entries);
  sequence.pages.resize(static_cast<size_t>(pages_for(entries)));
  sequence.kv_len.assign(static_cast<size_t>(shape_.num_layers * shape_.num_kv_heads), 0);
  pool_.take(sequence.pages);
  return sequence;
}

void KvCache::release(SequenceCache& sequence) {
  pool_.give_back(sequence.pages);
  sequence = SequenceCache{};
}

HeadTables KvCache::tables(const SequenceCache& sequence, int64_t layer) const {
  const int64_t first = layer * shape_.num_kv_heads;
  return {sequence.pages.data() + first * sequence.stride, sequence.stride, sequence.kv_len.data() + first};
}

void KvCache::advance(SequenceCache& sequence, int64_t layer, int64_t rows) const {
  for (int64_t head = 0; head < shape_.num_kv_heads; ++head) {
    int32_t& len = sequence.kv_len[static_cast<size_t>(layer * shape_.num_kv_heads + head)];
    len += static_cast<int32_t>(rows);
    DCHECK(len <= sequence.capacity) << len << " entries, room for " << sequence.capacity;
  }
}

}  // namespace restkv

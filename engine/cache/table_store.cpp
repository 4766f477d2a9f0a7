// First fit over the free ranges, by place.
#include "engine/cache/table_store.h"

#include <algorithm>
#include <iterator>

namespace restkv {

TableStore::TableStore(Backend& backend, int64_t num_pages) : backend_(backend) {
  const int64_t size = bytes(backend, num_pages);
  if (size == 0) return;
  memory_ = backend.allocate_for("page tables", size);
  free_[0] = size / 4;
}

Tensor TableStore::tensor(int64_t begin, int64_t count) const {
  return dense(memory_->data() + 4 * begin, DType::kI32, 1, count);
}

const int32_t* TableStore::put(std::span<const int32_t> ids) {
  const auto count = static_cast<int64_t>(ids.size());
  const auto place =
      std::find_if(free_.begin(), free_.end(), [count](const auto& range) { return range.second >= count; });
  if (count == 0 || place == free_.end()) return nullptr;
  const auto [begin, length] = *place;
  const Tensor target = tensor(begin, count);
  backend_.write(target, ids.data());  // first: it may throw
  free_.erase(place);
  if (length > count) free_[begin + count] = length - count;
  return static_cast<const int32_t*>(target.data);
}

void TableStore::replace(const int32_t* place, std::span<const int32_t> ids) {
  const int64_t begin = place - reinterpret_cast<const int32_t*>(memory_->data());
  backend_.write(tensor(begin, static_cast<int64_t>(ids.size())), ids.data());
}

void TableStore::give_back(const int32_t* place, int64_t count) {
  if (place == nullptr) return;
  int64_t begin = place - reinterpret_cast<const int32_t*>(memory_->data());
  auto next = free_.lower_bound(begin);
  CHECK(next == free_.end() || begin + count <= next->first) << "page tables were given back twice";
  if (next != free_.begin()) {
    const auto before = std::prev(next);
    CHECK(before->first + before->second <= begin) << "page tables were given back twice";
    if (before->first + before->second == begin) {
      begin = before->first;
      count += before->second;
      free_.erase(before);
    }
  }
  if (next != free_.end() && begin + count == next->first) {
    count += next->second;
    free_.erase(next);
  }
  free_[begin] = count;
}

}  // namespace restkv

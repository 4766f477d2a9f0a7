// Page tables in the memory of a device, where kernels read them step after step: a sequence's are sent when it is admitted, and
// a layer's again when its heads share pages out. Where there is no room left (tables of heads with very different budgets
// are wider than their pages) the tables of a sequence travel with each op instead. Engine thread only.
#pragma once

#include <cstdint>
#include <map>
#include <span>

#include "kernels/backend.h"

namespace restkv {

class TableStore {
 public:
  // Page ids for each page of the pool: as many again as a sequence of one budget for all its heads has.
  static constexpr int64_t kIdsPerPage = 2;
  static int64_t bytes(const Backend& backend, int64_t num_pages) {
    return backend.is_host_memory() ? 0 : 4 * kIdsPerPage * num_pages;
  }

  TableStore(Backend& backend, int64_t num_pages);

  // Where the ids lie from now on; null: nowhere.
  const int32_t* put(std::span<const int32_t> ids);
  // `ids` replace those at `place`, a part of what put() gave.
  void replace(const int32_t* place, std::span<const int32_t> ids);
  // What put() gave; null is nothing.
  void give_back(const int32_t* place, int64_t count);

 private:
  Tensor tensor(int64_t begin, int64_t count) const;

  Backend& backend_;
  std::unique_ptr<DeviceBuffer> memory_;
  std::map<int64_t, int64_t> free_;  // begin -> ids, no two adjacent
};

}  // namespace restkv

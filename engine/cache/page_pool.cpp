// A stack of free page ids and a holder count for each page.
#include "engine/cache/page_pool.h"

#include "kernels/base/check.h"

namespace restkv {

PagePool::PagePool(int64_t num_pages) : holders_(static_cast<size_t>(num_pages), 0) {
  free_.resize(static_cast<size_t>(num_pages));
  // The lowest ids are taken first: memory that was never used is touched last.
  for (int64_t i = 0; i < num_pages; ++i)
    free_[static_cast<size_t>(i)] = static_cast<int32_t>(num_pages - 1 - i);
}

void PagePool::take(std::span<int32_t> pages) {
  CHECK(can_take(static_cast<int64_t>(pages.size()))) << pages.size() << " pages of " << free();
  for (int32_t& page : pages) {
    page = free_.back();
    free_.pop_back();
    CHECK(holders_[static_cast<size_t>(page)]++ == 0) << "page " << page << " was free and held";
  }
  owned_ += static_cast<int64_t>(pages.size());
}

void PagePool::give_back(std::span<const int32_t> pages) {
  for (const int32_t page : pages) {
    CHECK(page >= 0 && page < total()) << page;
    uint16_t& holders = holders_[static_cast<size_t>(page)];
    CHECK(holders > 0) << "page " << page << " was given back twice";
    if (--holders > 0) continue;
    free_.push_back(page);
    --owned_;
  }
}

void PagePool::share(std::span<const int32_t> pages) {
  for (const int32_t page : pages) {
    uint16_t& holders = holders_[static_cast<size_t>(page)];
    CHECK(holders > 0 && holders < UINT16_MAX) << "page " << page << " has " << holders << " holders";
    ++holders;
  }
}

void PagePool::take_cached(std::span<int32_t> pages) {
  take(pages);
  owned_ -= static_cast<int64_t>(pages.size());
  cached_ += static_cast<int64_t>(pages.size());
}

void PagePool::give_back_cached(std::span<const int32_t> pages) {
  owned_ += static_cast<int64_t>(pages.size());
  cached_ -= static_cast<int64_t>(pages.size());
  give_back(pages);
}

bool PagePool::is_consistent_by_page() const {
  if (!is_consistent()) return false;
  int64_t held = 0;
  for (const uint16_t count : holders_) held += count != 0;
  for (const int32_t page : free_)
    if (holders_[static_cast<size_t>(page)] != 0) return false;
  return held == owned_ + cached_;
}

}  // namespace restkv

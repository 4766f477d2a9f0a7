// The ids of all pages: free + owned + cached == total, always. Plain numbers only: the scheduler and the
// simulation use it without any backend. Engine thread only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace restkv {

class PagePool {
 public:
  explicit PagePool(int64_t num_pages);

  int64_t total() const { return static_cast<int64_t>(holders_.size()); }
  int64_t free() const { return static_cast<int64_t>(free_.size()); }
  int64_t owned() const { return owned_; }    // pages of sequences, each once
  int64_t cached() const { return cached_; }  // pages of the prefix cache
  bool can_take(int64_t count) const { return count <= free(); }
  // Fills `pages` with ids, lowest released last in, first out. CHECKs can_take.
  void take(std::span<int32_t> pages);
  // A page is free again when its last holder gives it back.
  void give_back(std::span<const int32_t> pages);
  // One more holder for each of these owned pages.
  void share(std::span<const int32_t> pages);
  // The prefix cache's: each has one holder.
  void take_cached(std::span<int32_t> pages);
  void give_back_cached(std::span<const int32_t> pages);
  // free + owned + cached == total; take() and give_back() check each page that moves.
  bool is_consistent() const { return free() + owned_ + cached_ == total(); }
  // And none is both free and held. Walks all pages: a card has millions of them and takes a millisecond for it.
  bool is_consistent_by_page() const;

 private:
  std::vector<int32_t> free_;      // stack of page ids
  std::vector<uint16_t> holders_;  // [total] how many hold the page
  int64_t owned_ = 0, cached_ = 0;
};

}  // namespace restkv

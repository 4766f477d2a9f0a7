// Page ids: free + owned == total, no page twice.
#include "engine/cache/page_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

namespace restkv {
namespace {

TEST(PagePool, TakesAndGivesBack) {
  PagePool pool(10);
  std::vector<int32_t> a(4), b(6);
  pool.take(a);
  EXPECT_EQ(pool.free(), 6);
  EXPECT_FALSE(pool.can_take(7));
  EXPECT_TRUE(pool.can_take(6));
  pool.take(b);
  std::set<int32_t> all(a.begin(), a.end());
  all.insert(b.begin(), b.end());
  EXPECT_EQ(all.size(), 10u);
  EXPECT_TRUE(pool.is_consistent_by_page());
  pool.give_back(a);
  EXPECT_EQ(pool.free(), 4);
  EXPECT_EQ(pool.owned(), 6);
  EXPECT_TRUE(pool.is_consistent_by_page());
}

TEST(PagePoolDeath, RefusesWhatWouldCorrupt) {
  PagePool pool(2);
  std::vector<int32_t> pages(2);
  pool.take(pages);
  pool.give_back(pages);
  EXPECT_DEATH(pool.give_back(pages), "given back twice");
  std::vector<int32_t> more(3);
  EXPECT_DEATH(pool.take(more), "3 pages of 2");
  const std::vector<int32_t> stranger = {7};
  EXPECT_DEATH(pool.give_back(stranger), "7");
}

TEST(PagePool, StaysConsistentUnderRandomUse) {
  PagePool pool(64);
  std::mt19937 random(1);
  std::vector<std::vector<int32_t>> held;
  for (int step = 0; step < 5000; ++step) {
    const auto want = static_cast<int64_t>(random() % 9);
    if (random() % 2 && pool.can_take(want)) {
      held.emplace_back(static_cast<size_t>(want));
      pool.take(held.back());
    } else if (!held.empty()) {
      const size_t index = random() % held.size();
      pool.give_back(held[index]);
      held.erase(held.begin() + static_cast<int64_t>(index));
    }
    int64_t owned = 0;
    for (const auto& pages : held) owned += static_cast<int64_t>(pages.size());
    ASSERT_EQ(pool.owned(), owned);
    ASSERT_TRUE(pool.is_consistent_by_page());
  }
}

}  // namespace
}  // namespace restkv

// Page tables on a device: what was put stands there until it is given back, nothing overlaps, and room is found again.
#include "engine/cache/table_store.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <vector>

#include "engine/cache/kv_cache.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/emulator/emulated_backend.h"

namespace restkv {
namespace {

std::vector<int32_t> read(Backend& backend, const int32_t* place, int64_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  backend.read_back(dense(const_cast<int32_t*>(place), DType::kI32, 1, count), ids.data());
  return ids;
}

TEST(TableStore, HoldsWhatWasPut) {
  const auto backend = make_emulated_backend();
  constexpr int64_t kPages = 100;
  TableStore store(*backend, kPages);
  struct Piece {
    const int32_t* place;
    std::vector<int32_t> ids;
  };
  std::vector<Piece> held;
  std::mt19937 random(3);
  int64_t used = 0, num_refused = 0;
  for (int round = 0; round < 2000; ++round) {
    const auto count = static_cast<int64_t>(random() % 60 + 1);
    if (random() % 2 == 0) {
      Piece piece{nullptr, std::vector<int32_t>(static_cast<size_t>(count))};
      std::iota(piece.ids.begin(), piece.ids.end(), round * 100);
      piece.place = store.put(piece.ids);
      if (piece.place == nullptr) {
        ++num_refused;
        EXPECT_GT(used + count, TableStore::kIdsPerPage * kPages / 4) << "refused with most of it free";
      } else {
        used += count;
        held.push_back(piece);
      }
    } else if (!held.empty()) {
      const size_t at = random() % held.size();
      Piece piece = held[at];
      held.erase(held.begin() + static_cast<int64_t>(at));
      EXPECT_EQ(read(*backend, piece.place, static_cast<int64_t>(piece.ids.size())), piece.ids);
      used -= static_cast<int64_t>(piece.ids.size());
      store.give_back(piece.place, static_cast<int64_t>(piece.ids.size()));
    }
  }
  EXPECT_GT(num_refused, 0);
  for (const Piece& piece : held) {
    EXPECT_EQ(read(*backend, piece.place, static_cast<int64_t>(piece.ids.size())), piece.ids);
    store.give_back(piece.place, static_cast<int64_t>(piece.ids.size()));
  }
  // All of it is one piece again.
  const std::vector<int32_t> all(static_cast<size_t>(TableStore::kIdsPerPage * kPages), 7);
  EXPECT_NE(store.put(all), nullptr);
  EXPECT_EQ(store.put(std::vector<int32_t>{1}), nullptr);
}

TEST(TableStore, OnTheHostThereIsNone) {
  const auto backend = make_cpu_backend(1);
  EXPECT_EQ(TableStore::bytes(*backend, 1000), 0);
  TableStore store(*backend, 1000);
  EXPECT_EQ(store.put(std::vector<int32_t>{1, 2}), nullptr);
  store.give_back(nullptr, 2);
}

// Every table of a sequence lies on the device as the host has it, also after a layer's heads have shared its pages out.
TEST(TableStore, TablesOfASequence) {
  const auto backend = make_emulated_backend({.page_slots = 16});
  constexpr int64_t kLayers = 2, kHeads = 2;
  KvCache cache(*backend, {.num_layers = kLayers, .num_kv_heads = kHeads, .group = 2, .head_dim = 8}, 64);
  CacheReservation reservation;
  reservation.entries = {40, 20, 64, 64};
  reservation.shared_layer = {false, true};
  reservation.ring_window = 8;
  reservation.ring_layer = {true, true};
  reservation.has_sums = true;
  SequenceCache sequence = cache.admit(reservation);
  const auto expect_same = [&] {
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      const HeadTables tables = cache.tables(sequence, layer);
      const QueryRing ring = cache.ring(sequence, layer);
      const EntrySums sums = cache.sums(sequence, layer);
      const auto same = [&](const int32_t* resident, const int32_t* pages, int32_t stride) {
        ASSERT_NE(resident, nullptr);
        ASSERT_GT(stride, 0);
        const std::vector<int32_t> expected(pages, pages + kHeads * stride);
        EXPECT_EQ(read(*backend, resident, kHeads * stride), expected) << layer;
      };
      same(tables.resident, tables.pages, tables.stride);
      same(ring.resident, ring.pages, ring.stride);
      same(sums.resident, sums.pages, sums.stride);
    }
  };
  expect_same();
  EXPECT_EQ(cache.tables(sequence, 1).pages[0], -1) << "nobody's yet";
  const std::vector<int32_t> shares = {90, 38};
  cache.share_layer(sequence, 1, shares.data());
  EXPECT_GE(cache.tables(sequence, 1).pages[0], 0);
  expect_same();
  cache.release(sequence);
  EXPECT_EQ(cache.pool().owned(), 0);
}

}  // namespace
}  // namespace restkv

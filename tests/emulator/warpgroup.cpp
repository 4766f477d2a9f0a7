// What 128 threads do together on sm_90a: wgmma, its fence, groups and waits, after the PTX manual (9.7.15: layouts of
// fragments and of shared memory, descriptors).
//   An operand in shared memory is read where its descriptor says, piece of 16 bytes by piece, whatever the kernel meant.
//   A product is worked out when all threads have asked for it, from what lies in shared memory then; its sums are poison for
//   the kernel until the wait, and what it reads must be at the wait what it was.
#include "emulator/warpgroup.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "emulator/device_wgmma.h"

namespace restkv::emulator {
namespace {

constexpr uint32_t kRows = 64, kDepth = 16, kPiece = 16;  // m, k; bytes of a piece
constexpr uint32_t kAtom = 1024;                          // bytes that the swizzle counts in

// Sums on their way to one thread's registers.
struct Sums {
  float* d;
  std::vector<float> values;
  uint32_t group;  // of the last product over them
};
// A product on its way, of the whole warpgroup.
struct Product {
  WgmmaThread operands;  // places only
  std::vector<uint16_t> a, b;
  uint32_t group;
  uint32_t num_waiting;  // threads that have not come past it
  Place place;
};
struct WarpgroupThread {
  std::vector<Sums> sums;
  struct Held {
    const uint32_t* a;
    uint32_t values[4];
    uint32_t group;
  };
  std::vector<Held> held;  // operands in registers
  uint32_t open_group = 0;
  uint32_t done_groups = 0;
  bool is_fenced = false;
  std::vector<uint32_t> landed;  // pieces of shared memory since its last fence_proxy_async()
};
struct State {
  std::vector<WarpgroupThread> threads;
  std::vector<std::vector<Product>> products;  // by warpgroup
  std::vector<uint16_t> unfenced;  // by piece of shared memory: 1 + the thread whose copy landed there
};
thread_local State state;

WarpgroupThread& self() { return state.threads[threadIdx.x]; }
std::string number(uint64_t n) { return std::to_string(n); }

void check_card(const Place& place) {
  if (!options().has_wgmma) fail("wgmma on a card that has none", place);
}

struct Tile {
  uint32_t start, leading, stride;
  explicit Tile(uint64_t bits)
      : start(static_cast<uint32_t>(bits & 0x3FFF) << 4),
        leading(static_cast<uint32_t>(bits >> 16 & 0x3FFF) << 4),
        stride(static_cast<uint32_t>(bits >> 32 & 0x3FFF) << 4) {}
};

void check_tile(uint64_t bits, const Place& place) {
  if (bits >> 62 != 1)
    fail("a wgmma operand without the 128-byte swizzle, the only one there is here", place);
  if ((bits >> 49 & 7) != 0 || Tile(bits).start % kAtom >= 128)
    fail("a wgmma operand whose pattern does not begin at a multiple of 1024 bytes", place);
}

// The piece at `offset` bytes from the tile's start, where the swizzle puts it.
const std::byte* piece_at(const Tile& tile, uint32_t offset, const Place& place) {
  uint32_t address = tile.start + offset;
  address ^= (address >> 7 & 7u) << 4;
  if (address + kPiece > shared_bytes())
    fail("a wgmma operand that ends at " + number(address + kPiece) + " of " + number(shared_bytes()) +
             " bytes of shared memory",
         place);
  const uint16_t writer = state.unfenced.empty() ? uint16_t{0} : state.unfenced[address / kPiece];
  if (writer != 0)
    fail("wgmma reads what cp.async of thread " + number(writer - 1u) +
             " wrote, without fence_proxy_async() of that thread",
         place);
  return shared_base() + address;
}

// [rows, 16] values whose rows lie in shared memory.
std::vector<uint16_t> read_rows(uint64_t bits, uint32_t rows, const Place& place) {
  const Tile tile(bits);
  std::vector<uint16_t> values(size_t{rows} * kDepth);
  for (uint32_t r = 0; r < rows; ++r)
    for (uint32_t piece = 0; piece < 2; ++piece)
      std::memcpy(&values[r * kDepth + piece * 8],
                  piece_at(tile, r / 8 * tile.stride + r % 8 * 128 + piece * kPiece, place), kPiece);
  return values;
}
// [16, columns] values: rows of k in panels of 64 columns.
std::vector<uint16_t> read_columns(uint64_t bits, uint32_t columns, const Place& place) {
  const Tile tile(bits);
  std::vector<uint16_t> values(size_t{columns} * kDepth);
  for (uint32_t k = 0; k < kDepth; ++k)
    for (uint32_t n = 0; n < columns; n += 8)
      std::memcpy(
          &values[k * columns + n],
          piece_at(tile, n / 64 * tile.leading + k / 8 * tile.stride + k % 8 * 128 + n % 64 * 2, place),
          kPiece);
  return values;
}
std::vector<uint16_t> read_a(const WgmmaThread& t, const Place& place) {
  return t.a == nullptr ? read_rows(t.a_tile, kRows, place) : std::vector<uint16_t>();
}
std::vector<uint16_t> read_b(const WgmmaThread& t, const Place& place) {
  return t.transposes_b ? read_columns(t.b_tile, 8 * t.columns, place)
                        : read_rows(t.b_tile, 8 * t.columns, place);
}

// Sums on their way: a signalling NaN, which no arithmetic leaves as it is.
constexpr uint32_t kPoison = 0xFFA5A5A5u;

bool is_poisoned(const Sums& sums) {
  return std::all_of(sums.d, sums.d + sums.values.size(),
                     [](const float& x) { return std::memcmp(&x, &kPoison, 4) == 0; });
}

// The thread's sums over d, with the values they have when the products before are through.
Sums& sums_of(uint32_t thread, const WgmmaThread& t, const Place& place) {
  WarpgroupThread& own = state.threads[thread];
  const size_t count = size_t{4} * t.columns;
  for (Sums& sums : own.sums) {
    if (sums.d == t.d && sums.values.size() == count) {
      if (!is_poisoned(sums)) fail("sums of a wgmma were written while it was on its way", place);
      return sums;
    }
    if (sums.d < t.d + count && t.d < sums.d + sums.values.size())
      fail("sums of two wgmma overlap in part", place);
  }
  if (!own.is_fenced) fail("wgmma over new sums without wgmma_fence() since the last wait", place);
  own.sums.push_back({t.d, std::vector<float>(t.d, t.d + count), 0});
  return own.sums.back();
}

void perform_wgmma(void* const* threads, const Place& place) {
  const uint32_t first = threadIdx.x / kWarpgroup * kWarpgroup;
  const auto& one = *static_cast<const WgmmaThread*>(threads[0]);
  for (uint32_t i = 0; i < kWarpgroup; ++i) {
    const auto& t = *static_cast<const WgmmaThread*>(threads[i]);
    const WarpgroupThread& own = state.threads[first + i];
    if (t.a_tile != one.a_tile || t.b_tile != one.b_tile || t.columns != one.columns ||
        t.accumulates != one.accumulates)
      fail("threads of a warpgroup ask for different products", place);
    if (own.open_group != state.threads[first].open_group)
      fail("threads of a warpgroup have committed different numbers of groups", place);
    if (t.a != nullptr && !own.is_fenced)
      fail("wgmma over registers without wgmma_fence() since the last wait", place);
  }
  check_tile(one.b_tile, place);
  if (one.a == nullptr) check_tile(one.a_tile, place);
  Product product{one, read_a(one, place), read_b(one, place), self().open_group, kWarpgroup, place};

  const uint32_t columns = 8 * one.columns;
  std::vector<float> a(kRows * kDepth), b(size_t{kDepth} * columns), d(size_t{kRows} * columns);
  for (size_t k = 0; k < kDepth; ++k)
    for (size_t n = 0; n < columns; ++n)
      b[k * columns + n] = one.to_f32(product.b[one.transposes_b ? k * columns + n : n * kDepth + k]);
  // Register i / 4 of thread 4 g + t of warp w: row 16 w + g (+ 8), columns 8 n + 2 t (+ 1).
  const auto row_of = [](uint32_t thread, uint32_t i) {
    return thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
  };
  const auto column_of = [](uint32_t thread, uint32_t i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; };
  for (uint32_t i = 0; i < kWarpgroup; ++i) {
    const auto& t = *static_cast<const WgmmaThread*>(threads[i]);
    Sums& sums = sums_of(first + i, t, place);
    for (uint32_t j = 0; j < 4 * one.columns; ++j)
      d[row_of(i, j) * columns + column_of(i, j)] = t.accumulates ? sums.values[j] : 0.0f;
    if (t.a == nullptr) continue;
    for (uint32_t j = 0; j < 8; ++j)
      a[row_of(i, j) * kDepth + column_of(i, j)] =
          t.to_f32(static_cast<uint16_t>(t.a[j / 2] >> (j % 2 * 16)));
  }
  if (one.a == nullptr)
    for (size_t j = 0; j < a.size(); ++j) a[j] = one.to_f32(product.a[j]);

  for (size_t m = 0; m < kRows; ++m) {
    float* row = &d[m * columns];
    for (size_t k = 0; k < kDepth; ++k) {
      const float factor = a[m * kDepth + k];
      const float* other = &b[k * columns];
      for (size_t n = 0; n < columns; ++n) row[n] += factor * other[n];
    }
  }

  for (uint32_t i = 0; i < kWarpgroup; ++i) {
    const auto& t = *static_cast<const WgmmaThread*>(threads[i]);
    WarpgroupThread& own = state.threads[first + i];
    Sums& sums = *std::find_if(own.sums.begin(), own.sums.end(), [&](const Sums& s) { return s.d == t.d; });
    for (uint32_t j = 0; j < 4 * one.columns; ++j)
      sums.values[j] = d[row_of(i, j) * columns + column_of(i, j)];
    sums.group = own.open_group;
    for (size_t j = 0; j < sums.values.size(); ++j) std::memcpy(t.d + j, &kPoison, 4);
    if (t.a != nullptr) own.held.push_back({t.a, {t.a[0], t.a[1], t.a[2], t.a[3]}, own.open_group});
  }
  state.products[first / kWarpgroup].push_back(std::move(product));
}

}  // namespace

void reset_warpgroups(uint32_t num_threads) {
  if (!options().has_wgmma) num_threads = 0;
  state.threads.resize(num_threads);
  for (WarpgroupThread& thread : state.threads) {
    thread.sums.clear();
    thread.held.clear();
    thread.landed.clear();
    thread.open_group = thread.done_groups = 0;
    thread.is_fenced = false;
  }
  state.products.resize(num_threads / kWarpgroup);
  for (std::vector<Product>& products : state.products) products.clear();
  state.unfenced.clear();
}

void note_landed_copy(const void* shared, uint32_t bytes) {
  if (!options().has_wgmma || bytes == 0) return;
  if (state.unfenced.empty()) state.unfenced.resize(shared_bytes() / kPiece + 1);
  const auto at = static_cast<uint32_t>(static_cast<const std::byte*>(shared) - shared_base());
  const uint32_t piece = at / kPiece;
  state.unfenced[piece] = static_cast<uint16_t>(threadIdx.x + 1);
  self().landed.push_back(piece);
}

void fence_proxy_async() {
  if (!options().has_wgmma) return;
  for (const uint32_t piece : self().landed)
    if (state.unfenced[piece] == threadIdx.x + 1) state.unfenced[piece] = 0;
  self().landed.clear();
}

uint64_t wgmma_tile(const void* tile, uint32_t leading_bytes, uint32_t stride_bytes, const Place& place) {
  check_shared(tile, kPiece, kPiece, place);
  const auto start = static_cast<uint64_t>(static_cast<const std::byte*>(tile) - shared_base());
  return start >> 4 | uint64_t{leading_bytes >> 4} << 16 | uint64_t{stride_bytes >> 4} << 32 |
         uint64_t{1} << 62;
}

void wgmma(const WgmmaThread& operands, const Place& place) {
  check_card(place);
  WgmmaThread own = operands;
  warpgroup_collective("wgmma", &own, perform_wgmma, place);
}

void change_registers(const Place& place) {
  check_card(place);
  warpgroup_collective(
      "setmaxnreg", nullptr, [](void* const*, const Place&) {}, place);
}

void wgmma_fence(const Place& place) {
  check_card(place);
  self().is_fenced = true;
}

void wgmma_commit(const Place& place) {
  check_card(place);
  ++self().open_group;
}

void wgmma_wait(uint32_t groups_left, const Place& place) {
  check_card(place);
  WarpgroupThread& own = self();
  own.is_fenced = false;
  const uint32_t done = own.open_group > groups_left ? own.open_group - groups_left : 0;
  std::erase_if(own.held, [&](const WarpgroupThread::Held& held) {
    if (held.group >= done) return false;
    if (!std::equal(held.values, held.values + 4, held.a))
      fail("registers that a wgmma reads were written while it was on its way", place);
    return true;
  });
  std::erase_if(own.sums, [&](const Sums& sums) {
    if (sums.group >= done) return false;
    if (!is_poisoned(sums)) fail("sums of a wgmma were written while it was on its way", place);
    std::copy(sums.values.begin(), sums.values.end(), sums.d);
    return true;
  });
  // The last thread to come past a product sees whether another one has gone ahead and changed what it reads.
  std::erase_if(state.products[threadIdx.x / kWarpgroup], [&](Product& product) {
    if (product.group >= done || product.group < own.done_groups) return false;
    if (--product.num_waiting > 0) return false;
    if (read_a(product.operands, product.place) != product.a ||
        read_b(product.operands, product.place) != product.b)
      fail("shared memory that a wgmma reads was written while it was on its way", product.place);
    return true;
  });
  own.done_groups = std::max(own.done_groups, done);
}

void check_wgmma_done(const float* d, const Place& place) {
  for (const Sums& sums : self().sums)
    if (sums.d == d) fail("sums of a wgmma are taken before the wait for its group", place);
}

std::string unfinished_wgmma() {
  if (state.threads.empty() || self().sums.empty()) return "";
  return "a thread ends with wgmma on its way";
}

}  // namespace restkv::emulator

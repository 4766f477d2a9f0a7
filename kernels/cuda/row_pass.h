// One pass over a row of 32-bit values in the card's memory, shared by the threads of a block or of a warp. One
// multiprocessor reads the L2 at its speed only with 20 KB and more on their way, so loads are of 16 bytes and kLoadsInFlight
// of them are asked for before the first is used.
// A row is cut at 16-byte addresses into quads; of a row that does not begin or end at one, the first or last are partial:
//   [0 .. 4 - shift) | quads 1, 2 .. last - 1, of ids 4 q - shift .. + 3 | the rest          shift: values from the address before
// Thread `index` of `size` has the quads index, index + size ...: its ids come in rising order.
#pragma once

#include "kernels/cuda/device.h"

namespace restkv::cuda {

constexpr uint32_t kLoadsInFlight = 4;  // 64 KB of 1024 threads

// This thread's place among those that share a pass.
struct PassGroup {
  uint32_t index, size;
};

__device__ __forceinline__ uint32_t quad_shift(const uint32_t* row) {
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(row) >> 2) & 3u;
}

// to[i] = map(i, from[i]) for i < size; `from` and `to` are the same row or lie apart. A map that needs many registers has
// fewer loads in flight.
template <uint32_t kLoads = kLoadsInFlight, class Map>
__device__ __forceinline__ void map_row(const uint32_t* from, uint32_t* to, uint32_t size, PassGroup group,
                                        Map map) {
  const uint32_t shift = quad_shift(from);
  const uint32_t first = shift > 0 ? 1 : 0, last = (size + shift) / 4;  // whole quads [first, last)
  const bool is_aligned = quad_shift(to) == shift;
  const auto one = [&](uint32_t i) { store_vector(to + i, map(i, load_vector<uint32_t>(from + i))); };
  if (shift > 0 && group.index == 0)
    for (uint32_t i = 0; i < 4 - shift && i < size; ++i) one(i);
  for (uint32_t begin = group.index; begin < last; begin += kLoads * group.size) {
    uint4 values[kLoads] = {};
#pragma unroll
    for (uint32_t u = 0; u < kLoads; ++u) {
      const uint32_t q = begin + u * group.size;
      if (q >= first && q < last) values[u] = load_vector<uint4>(from + (4 * q - shift));
    }
#pragma unroll
    for (uint32_t u = 0; u < kLoads; ++u) {
      const uint32_t q = begin + u * group.size;
      if (q < first || q >= last) continue;
      const uint32_t i = 4 * q - shift;
      const uint4 mapped = {map(i, values[u].x), map(i + 1, values[u].y), map(i + 2, values[u].z),
                            map(i + 3, values[u].w)};
      if (is_aligned) {
        store_vector(to + i, mapped);
      } else {
        store_vector(to + i, mapped.x);
        store_vector(to + i + 1, mapped.y);
        store_vector(to + i + 2, mapped.z);
        store_vector(to + i + 3, mapped.w);
      }
    }
  }
  if (last >= first && last % group.size == group.index)
    for (uint32_t i = 4 * last - shift; i < size; ++i) one(i);
}

// visit(i, row[i]) for i < size.
template <uint32_t kLoads = kLoadsInFlight, class Visit>
__device__ __forceinline__ void visit_row(const uint32_t* row, uint32_t size, PassGroup group, Visit visit) {
  const uint32_t shift = quad_shift(row);
  const uint32_t first = shift > 0 ? 1 : 0, last = (size + shift) / 4;  // whole quads [first, last)
  if (shift > 0 && group.index == 0)
    for (uint32_t i = 0; i < 4 - shift && i < size; ++i) visit(i, load_vector<uint32_t>(row + i));
  for (uint32_t begin = group.index; begin < last; begin += kLoads * group.size) {
    uint4 values[kLoads] = {};
#pragma unroll
    for (uint32_t u = 0; u < kLoads; ++u) {
      const uint32_t q = begin + u * group.size;
      if (q >= first && q < last) values[u] = load_vector<uint4>(row + (4 * q - shift));
    }
#pragma unroll
    for (uint32_t u = 0; u < kLoads; ++u) {
      const uint32_t q = begin + u * group.size;
      if (q < first || q >= last) continue;
      const uint32_t i = 4 * q - shift;
      visit(i, values[u].x);
      visit(i + 1, values[u].y);
      visit(i + 2, values[u].z);
      visit(i + 3, values[u].w);
    }
  }
  if (last >= first && last % group.size == group.index)
    for (uint32_t i = 4 * last - shift; i < size; ++i) visit(i, load_vector<uint32_t>(row + i));
}

// A pass of one warp over a row whose lanes stay together, so that they can share a list: picks(value) of each value, and of some of
// `beside` where a lane has none; then, where any lane picked one, place(all) by one lane for all that were picked, and put(place + 0,
// 1 .., i, row[i]) of each.
template <uint32_t kLoads = 2, class Picks, class Place, class Put>
__device__ __forceinline__ void visit_in_step(const uint32_t* row, uint32_t size, uint32_t beside,
                                              Picks picks, Place place, Put put) {
  const uint32_t shift = quad_shift(row);
  const uint32_t last = (size + shift + 3) / 4;  // quads, those that the row has only a part of, too
  for (uint32_t begin = 0; begin < last; begin += kLoads * kWarpSize) {
    uint4 values[kLoads];
    const uint32_t first = 4 * (begin + lane_idx()) - shift;  // before 0 it has wrapped around
#pragma unroll
    for (uint32_t u = 0; u < kLoads; ++u) {
      const uint32_t i = first + u * 4 * kWarpSize;
      values[u] = {beside, beside, beside, beside};
      if (i < size && size - i >= 4) {
        values[u] = load_vector<uint4>(row + i);
      } else {
        if (i < size) values[u].x = row[i];
        if (i + 1 < size) values[u].y = row[i + 1];
        if (i + 2 < size) values[u].z = row[i + 2];
        if (i + 3 < size) values[u].w = row[i + 3];
      }
    }
    uint32_t picked = 0;  // bits
#pragma unroll
    for (uint32_t u = 0; u < kLoads; ++u) {
      if (begin + u * kWarpSize >= last) continue;
      picked |= (picks(values[u].x) ? 1u : 0u) << (4 * u);
      picked |= (picks(values[u].y) ? 2u : 0u) << (4 * u);
      picked |= (picks(values[u].z) ? 4u : 0u) << (4 * u);
      picked |= (picks(values[u].w) ? 8u : 0u) << (4 * u);
    }
    if (!any(picked != 0)) continue;
    uint32_t sum = count_bits(picked);
    for (uint32_t n = 1; n < kWarpSize; n *= 2) {
      const uint32_t below = shuffle_up(sum, n);
      if (lane_idx() >= n) sum += below;
    }
    uint32_t at = lane_idx() == kWarpSize - 1 ? place(sum) : 0;
    at = shuffle(at, kWarpSize - 1) + sum - count_bits(picked);
#pragma unroll
    for (uint32_t u = 0; u < kLoads; ++u) {
      const uint32_t i = first + u * 4 * kWarpSize, own = picked >> (4 * u);
      if ((own & 1u) != 0) put(at++, i, values[u].x);
      if ((own & 2u) != 0) put(at++, i + 1, values[u].y);
      if ((own & 4u) != 0) put(at++, i + 2, values[u].z);
      if ((own & 8u) != 0) put(at++, i + 3, values[u].w);
    }
  }
}

// visit(i, row[i]) for the ids that visit_row hands to thread `owner`, dealt out to the lanes of this warp.
template <class Visit>
__device__ __forceinline__ void visit_quads_of(const uint32_t* row, uint32_t size, PassGroup owner,
                                               Visit visit) {
  const uint32_t shift = quad_shift(row);
  for (uint32_t q = owner.index + lane_idx() * owner.size; 4 * q < size + shift; q += kWarpSize * owner.size)
    for (uint32_t i = 4 * q - shift; i != 4 * q - shift + 4; ++i)
      if (i < size) visit(i, load_vector<uint32_t>(row + i));  // before the row i has wrapped around
}

}  // namespace restkv::cuda

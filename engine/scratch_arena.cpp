// First fit, the small part first.
#include "engine/scratch_arena.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace restkv {
namespace {

bool is_large(int64_t blocks) { return blocks > kSmallPromptRows / kScratchBlockRows; }

}  // namespace

ScratchArena::ScratchArena(int64_t total_blocks, bool has_small_part)
    : used_(static_cast<size_t>(total_blocks), false),
      open_(has_small_part ? total_blocks - total_blocks / 8 : total_blocks) {}

int64_t ScratchArena::plan_blocks(int64_t max_model_len) {
  const int64_t open = scratch_blocks(max_model_len);
  // total - total / 8 >= open for total = ceil(8 open / 7).
  return plans_small_part(max_model_len) ? (8 * open + 6) / 7 : open;
}

int64_t ScratchArena::find_run(int64_t begin, int64_t end, int64_t blocks) const {
  int64_t run = 0;
  for (int64_t i = begin; i < end; ++i) {
    run = used_[static_cast<size_t>(i)] ? 0 : run + 1;
    if (run == blocks) return i + 1 - blocks;
  }
  return -1;
}

int64_t ScratchArena::find(int64_t blocks, bool may_use_open) const {
  if (std::find(slots_.begin(), slots_.end(), false) == slots_.end()) return -1;
  if (is_large(blocks) && has_small_part() && num_large_ == kMaxPrefills - 1) return -1;
  if (!is_large(blocks)) {
    const int64_t small = find_run(open_, total(), blocks);
    if (small >= 0) return small;
  }
  return may_use_open ? find_run(0, open_, blocks) : -1;
}

ScratchArena::Lease ScratchArena::take(int64_t rows, bool may_use_open) {
  Lease lease;
  lease.blocks = scratch_blocks(rows);
  lease.begin = find(lease.blocks, may_use_open);
  CHECK(lease.begin >= 0) << "no scratch for " << rows << " rows";
  for (int64_t i = 0; i < lease.blocks; ++i) used_[static_cast<size_t>(lease.begin + i)] = true;
  lease.slot = static_cast<int32_t>(std::find(slots_.begin(), slots_.end(), false) - slots_.begin());
  slots_[static_cast<size_t>(lease.slot)] = true;
  num_used_ += lease.blocks;
  num_large_ += is_large(lease.blocks);
  return lease;
}

void ScratchArena::give_back(Lease& lease) {
  if (lease.slot < 0) return;
  for (int64_t i = 0; i < lease.blocks; ++i) used_[static_cast<size_t>(lease.begin + i)] = false;
  slots_[static_cast<size_t>(lease.slot)] = false;
  num_used_ -= lease.blocks;
  num_large_ -= is_large(lease.blocks);
  lease = Lease{};
}

}  // namespace restkv

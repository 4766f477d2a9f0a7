// Who holds which blocks of the prefill scratch. A prompt takes its rows whole and in one run when its prefill starts.
// The last eighth and one of the slots are for prompts of up to 8k rows alone, so that none of them waits for a very long one.
//   [0, open) any prompt | [open, total) small prompts only (nothing where max_model_len <= 8k)
// Plain numbers; engine thread only.
#pragma once

#include <cstdint>
#include <vector>

namespace restkv {

inline constexpr int64_t kScratchBlockRows = 256;  // rows of a block
inline constexpr int64_t kSmallPromptRows = 8192;
inline int64_t scratch_blocks(int64_t rows) { return (rows + kScratchBlockRows - 1) / kScratchBlockRows; }
// Long prompts in work at once: each keeps its window's queries beside the scratch.
inline constexpr int32_t kMaxPrefills = 4;
static_assert(kMaxPrefills > 1, "one is for small prompts");

class ScratchArena {
 public:
  struct Lease {
    int32_t slot = -1;  // of kMaxPrefills; -1: none
    int64_t begin = 0, blocks = 0;
  };

  explicit ScratchArena(int64_t total_blocks, bool has_small_part);
  // Blocks for one prompt of max_model_len rows, and for the small part where there is one.
  static int64_t plan_blocks(int64_t max_model_len);
  static bool plans_small_part(int64_t max_model_len) { return max_model_len > kSmallPromptRows; }

  // `may_use_open`: false while a longer prompt waits for the open part; small ones then keep to theirs.
  bool can_take(int64_t rows, bool may_use_open) const {
    return find(scratch_blocks(rows), may_use_open) >= 0;
  }
  Lease take(int64_t rows, bool may_use_open);
  void give_back(Lease& lease);
  int64_t num_used() const { return num_used_; }
  int64_t total() const { return static_cast<int64_t>(used_.size()); }

 private:
  int64_t find(int64_t blocks, bool may_use_open) const;  // first block of a free run, -1: none
  int64_t find_run(int64_t begin, int64_t end, int64_t blocks) const;
  bool has_small_part() const { return open_ < total(); }

  std::vector<bool> used_;  // by block
  std::vector<bool> slots_ = std::vector<bool>(kMaxPrefills, false);
  int64_t open_ = 0;
  int64_t num_used_ = 0;
  int32_t num_large_ = 0;  // leases of prompts that the small part is not for
};

}  // namespace restkv

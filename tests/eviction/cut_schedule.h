// When one (layer, KV head) is cut in mode evict and how long it is then, as a closed form: rows_after_cut and the trigger
// (kv_len == C_lh) must lead to the same, step by step.
#pragma once

#include <algorithm>
#include <cstdint>

namespace restkv {

struct CutSchedule {
  int32_t c = 0;  // C_lh
  int32_t stride = 0;
  int32_t stagger = 0;  // the first cut leaves so many rows more

  CutSchedule(int32_t c_lh, int32_t stride, int32_t layer, int32_t num_layers)
      : c(c_lh), stride(stride), stagger(layer * stride / num_layers) {}

  // Entries after `tokens` tokens of which the first `prompt_len` came as the prompt, and after the cut if one is due.
  int64_t kv_len(int64_t prompt_len, int64_t tokens) const {
    const int64_t first_cut = std::max<int64_t>(prompt_len, c);
    if (tokens < first_cut) return tokens;
    const int64_t since = tokens - first_cut, until_second = stride - stagger;
    if (since < until_second) return c - until_second + since;
    return c - stride + (since - until_second) % stride;
  }
  // Whether a cut is due once the entries of `tokens` tokens are there (tokens >= prompt_len).
  bool is_cut(int64_t prompt_len, int64_t tokens) const {
    const int64_t first_cut = std::max<int64_t>(prompt_len, c);
    if (tokens < first_cut) return false;
    const int64_t since = tokens - first_cut, until_second = stride - stagger;
    return since == 0 || (since >= until_second && (since - until_second) % stride == 0);
  }
};

}  // namespace restkv

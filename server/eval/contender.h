// The cache settings of one policy at one budget in an evaluation.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "engine/group_run.h"
#include "server/eval/variants.h"

namespace restkv {

// What evaluations have in common.
struct EvalContext {
  std::vector<int32_t> prefix;  // what stands before each prompt (BOS)
  CacheLimits limits;
  int64_t vocab_size = 0;
  std::function<std::vector<int32_t>(std::string_view)> encode;  // text of a probe
  std::function<void(int64_t done, int64_t total)> progress;     // tokens
  std::function<bool()> is_stopped;                              // true: end early, with what is finished
};

struct ContenderPlan {
  DecodeMode decode = DecodeMode::kEvict;
  bool is_agnostic =
      false;  // the prompt is cut before what follows is known: defaults of compress_at, as the probe
  int32_t budget = 0;  // asked for
  int64_t prompt_len = 0, answer_len = 0;
  // The budget is changed so that the pages are at most those of restkv:paper at the budget asked for (rings and sums
  // count): more entries where no ring is needed, fewer where pages are filled worse. Else all have the budget asked for.
  bool equal_bytes = true;
};

// Errors: as resolve_cache_settings; a variant that sets decode or compress_at itself; no budget has these bytes.
Result<CacheSettings> contender_settings(const GroupRunner& runner, const PolicyVariant& variant,
                                         const ContenderPlan& plan, const EvalContext& context);

}  // namespace restkv

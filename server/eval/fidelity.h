// How far the next-token distributions under a policy are from those of the full cache, on the same text, teacher-forced.
//   prefill   decode: grow    the prompt is cut to C, the cache then grows
//   decode    decode: evict   C holds for the continuation, too
//   agnostic  the prompt but for its last 128 tokens is cut before they are seen; what follows is scored
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "server/eval/contender.h"
#include "server/eval/paired.h"

namespace restkv {

enum class EvalMode : uint8_t { kPrefill, kDecode, kAgnostic };
std::string_view eval_mode_name(EvalMode mode);
// "prefill,decode". Error: what is allowed.
Result<std::vector<EvalMode>> parse_eval_modes(std::string_view list);

struct FidelityOptions {
  std::vector<EvalMode> modes;
  std::vector<int32_t> budgets;
  int32_t prompt_len = 1536;
  int32_t continue_len = 256;  // scored tokens after the prompt
  // Budgets are changed so that every policy has at most the pages of restkv:paper at the budget asked for (rings and
  // sums count); else all have the budget asked for.
  bool equal_bytes = true;
};

struct FidelityRow {
  std::string policy, preset, variant;
  EvalMode mode = EvalMode::kPrefill;
  int32_t budget = 0;       // asked for
  int32_t budget_used = 0;  // see equal_bytes
  int64_t bytes = 0;        // pages, rings, sums and tables of one sequence
  int32_t kept = 0;         // mean entries of a head at the end
  int32_t n = 0;            // texts
  double kl_mean = 0;       // nats a token, full cache to policy
  double kl_p95 = 0;
  double top1 = 0;                           // share of tokens with the full cache's most likely one
  double dnll = 0;                           // nats a token of the text more than the full cache needs
  std::optional<PairedRatio> paper, snapkv;  // kl_mean beside theirs; empty: not in the list
};

struct FidelityRun {
  std::vector<FidelityRow> rows;
  int32_t num_texts = 0;  // that were finished
};

// Tokens of one slice: prompt, continuation and the last one's target.
int64_t fidelity_slice_len(const FidelityOptions& options);
// Settings of one run beside each other, the full cache included.
int32_t fidelity_settings(const FidelityOptions& options, size_t num_variants);

// `slices` [n][fidelity_slice_len].
Result<FidelityRun> run_fidelity(GroupRunner& runner, const std::vector<std::vector<int32_t>>& slices,
                                 const std::vector<PolicyVariant>& variants, const FidelityOptions& options,
                                 const EvalContext& context);

}  // namespace restkv

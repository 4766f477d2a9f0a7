// Whether a number that a text states once is found again.
//   window        the question ends the prompt: its queries see the text before it is cut
//   agnostic      the text is cut, then the question comes
//   later         the text is cut, then 300 further tokens of text, then the question
//   window_later  the question ends the prompt, then 300 further tokens of text, then the question again
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/text/tokenizer.h"
#include "server/eval/contender.h"

namespace restkv {

enum class PasskeyMode : uint8_t { kWindow, kAgnostic, kLater, kWindowLater };
std::string_view passkey_mode_name(PasskeyMode mode);
Result<std::vector<PasskeyMode>> parse_passkey_modes(std::string_view list);

struct PasskeyOptions {
  std::vector<PasskeyMode> modes;
  std::vector<int32_t> budgets;
  std::vector<int32_t> digits = {5, 9};
  int32_t prompt_len = 1536;  // tokens of text around the key, the question not counted
  bool equal_bytes = true;
};

struct PasskeyRow {
  std::string policy, variant;
  PasskeyMode mode = PasskeyMode::kWindow;
  int32_t digits = 0;
  int32_t budget = 0, budget_used = 0;  // 0: the full cache
  int64_t bytes = 0;
  int32_t n = 0, found = 0;
};

// Tokens of one slice.
int64_t passkey_slice_len(const PasskeyOptions& options);
// The most tokens of one run, prefix and probe included.
int64_t passkey_run_len(const PasskeyOptions& options);
int32_t passkey_settings(const PasskeyOptions& options, size_t num_variants);

// `slices` [n][passkey_slice_len]. Rows of the full cache come first. Keys and depths follow from the number of the text.
Result<std::vector<PasskeyRow>> run_passkey(GroupRunner& runner, const Tokenizer& tokenizer,
                                            const std::vector<std::vector<int32_t>>& slices,
                                            const std::vector<PolicyVariant>& variants,
                                            const PasskeyOptions& options, const EvalContext& context);

}  // namespace restkv

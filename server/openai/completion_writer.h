// The JSON of /v1/completions and /v1/chat/completions, whole and as server-sent events. What does not change between chunks
// is prepared once.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "server/openai/api_error.h"
#include "server/openai/completion_request.h"
#include "server/openai/output_assembler.h"

namespace restkv {

struct CompletionHeader {
  CompletionApi api = CompletionApi::kText;
  std::string id;       // "cmpl-...", "chatcmpl-..."
  std::string model;    // served name
  int64_t created = 0;  // Unix seconds
};

// One choice of a whole answer, deltas put together.
struct CompletionChoice {
  int32_t index = 0;
  OutputDelta output;
  const OutputOptions* options = nullptr;
};

OutputUsage& operator+=(OutputUsage& sum, const OutputUsage& usage);

std::string completion_body(const CompletionHeader& header, std::span<const CompletionChoice> choices,
                            const OutputUsage& usage, const Tokenizer& tokenizer);

// "prompt_progress":{...}, llama.cpp's.
void append_prompt_progress(std::string& out, const PromptProgress& progress);

class CompletionEvents {
 public:
  CompletionEvents(const CompletionHeader& header, const Tokenizer& tokenizer, bool include_usage);

  // Each appends whole events, "data: ...\n\n". A chat's choice has a first one with the role and a last one with the
  // finish reason and no text.
  // `usage`: of all choices so far, for continuous_usage_stats.
  void append_chunk(std::string& out, int32_t index, const OutputDelta& delta, const OutputOptions& options,
                    const OutputUsage* usage = nullptr);
  // A chunk of the choice without text.
  void append_progress(std::string& out, int32_t index, const PromptProgress& progress);
  void append_usage(std::string& out, const OutputUsage& usage) const;
  static void append_error(std::string& out, const ApiError& error);
  static void append_done(std::string& out) { out += "data: [DONE]\n\n"; }
  static void append_ping(std::string& out) { out += ": ping\n\n"; }

 private:
  // Whether the chat's choice has had its first chunk; from now on it has.
  bool takes_role(int32_t index);
  void append_chat_chunk(std::string& out, int32_t index, const OutputDelta& delta,
                         const OutputOptions& options, const OutputUsage* usage);
  void append_suffix(std::string& out, const OutputUsage* usage) const;

  CompletionApi api_;
  const Tokenizer* tokenizer_;
  std::vector<bool> has_role_;  // [choices that had a chunk]
  std::string prefix_;          // up to the choice's index
  std::string suffix_;          // behind the choice
  std::string usage_prefix_;
};

// "stop", "length", ...
std::string_view finish_reason_text(FinishReason reason);

}  // namespace restkv

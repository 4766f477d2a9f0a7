// From the engine's token records to what a client reads; the same for every protocol: text (whole code points, stop
// strings held back and cut), log probabilities, finish reasons, usage. Tokens behind a stop string are dropped and not
// counted, so usage does not depend on timing. One assembler per engine request (one prompt, n choices), used by one
// thread.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "engine/request.h"
#include "engine/text/tokenizer.h"
#include "server/openai/stop_matcher.h"

namespace restkv {

struct OutputOptions {
  std::vector<std::string> stop = {};
  std::vector<int32_t> stop_token_ids = {};
  bool include_stop_string = false;  // and the text of a stop token id
  bool skip_special_tokens = true;
  int32_t min_tokens = 0;  // stop strings count only in the text of later tokens
  int32_t logprobs = -1;   // -1: none
  bool echo = false;
  int32_t prompt_logprobs = -1;  // -1: none
  bool return_token_ids = false;
  bool tokens_as_ids = false;      // tokens of logprobs as "token_id:7"
  bool timings_per_token = false;  // /completion: timings in each chunk
  bool return_prompt_text = false;
  int32_t stream_interval = 1;  // chunks of a stream between two that are sent; the first one is sent at once
};

// How far a prompt is, of requests that ask for it.
struct PromptProgress {
  int64_t total = 0, cached = 0, processed = 0;  // tokens; the cached ones are processed
  double ms = 0;                                 // since admission
};

// One token with its log probabilities.
struct TokenOutput {
  int32_t token = 0;
  float logprob = 0;  // NaN: none (the first token of the prompt)
  std::vector<TokenLogprob> top;
  int32_t rank = 0;         // among all tokens, 0-based
  int64_t text_offset = 0;  // code points before it, in the choice's text with the echoed prompt
};

// What became visible of one choice.
struct OutputDelta {
  std::string text;
  std::vector<TokenOutput> tokens;  // with logprobs: those whose text begins in the text shown so far
  std::vector<TokenOutput> prompt;  // with prompt_logprobs, before everything else
  std::vector<int32_t> token_ids, prompt_token_ids;  // with return_token_ids
  std::optional<std::string> prompt_text;            // with return_prompt_text
  FinishReason finish = FinishReason::kNone;
  int stop_index = -1;      // which stop string ended it
  int32_t stop_token = -1;  // or which of stop_token_ids
  Status error;             // finish == kError
  bool has_prompt() const { return !prompt.empty() || !prompt_token_ids.empty() || prompt_text.has_value(); }
  bool empty() const {
    return text.empty() && tokens.empty() && prompt.empty() && token_ids.empty() &&
           finish == FinishReason::kNone;
  }
  void clear() {  // the memory stays
    text.clear();
    tokens.clear();
    prompt.clear();
    token_ids.clear();
    prompt_token_ids.clear();
    prompt_text.reset();
    if (finish == FinishReason::kNone) return;
    finish = FinishReason::kNone;
    stop_index = stop_token = -1;
    error = {};
  }
  void append(OutputDelta next);  // what came after this
};

// usage.cache of one or several answers.
struct CacheUsage {
  PolicyKind policy = PolicyKind::kFull;
  int32_t budget = 0;                          // 0: none (full)
  int64_t kept_sum = 0, num_sequences = 0;     // mean entries a head at the end, summed over the answers
  int32_t kept_max = 0;                        // of any head of any answer
  int64_t evicted = 0, events = 0, bytes = 0;  // sums
};

struct OutputUsage {
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  double queue_ms = 0, prefill_ms = 0, decode_ms = 0;  // of the choice that took longest
  CacheUsage cache;
};

class OutputAssembler {
 public:
  // `tokenizer`, `options` and `handle` must outlive the assembler. `prompt_text`: what echo and return_prompt_text show.
  OutputAssembler(const Tokenizer& tokenizer, const OutputOptions& options, RequestHandle& handle,
                  std::string prompt_text);

  // Adds to `delta` (of the record's choice) what the record makes visible. A stop string cancels the choice in the engine.
  void append(const TokenRecord& record, OutputDelta& delta);
  bool is_finished() const { return num_open_ == 0; }
  OutputUsage usage() const;

 private:
  struct PendingToken {
    TokenOutput output;
    size_t begin = 0;  // bytes of the choice's answer before it
  };
  struct Choice {
    StreamingDetokenizer detokenizer;
    StopMatcher matcher;
    std::deque<PendingToken> pending;
    size_t num_bytes = 0;        // of the answer's text, shown or held
    size_t num_shown = 0;        // bytes
    int64_t num_characters = 0;  // code points, with the echoed prompt
    int64_t num_tokens = 0;
    bool is_started = false, is_finished = false;
    SequenceCounters counters;                // as of the last record that counts
    StreamingDetokenizer prompt_detokenizer;  // for the offsets of the prompt's tokens
    int64_t prompt_characters = 0;
    int64_t num_prompt_tokens = 0;
  };

  void append_prompt_token(Choice& choice, const TokenRecord& record, OutputDelta& delta);
  void append_token(Choice& choice, const TokenRecord& record, OutputDelta& delta);
  void append_finish(Choice& choice, const TokenRecord& record, OutputDelta& delta);
  // Passes `text` through the stop strings. True: one of them ended the choice.
  bool append_text(Choice& choice, const std::string& text, bool can_stop, OutputDelta& delta);
  void show_tokens(Choice& choice, bool all, OutputDelta& delta);
  void start(Choice& choice, OutputDelta& delta);
  void close(Choice& choice, FinishReason reason, OutputDelta& delta);

  const Tokenizer* tokenizer_;
  const OutputOptions* options_;
  RequestHandle* handle_;
  std::string prompt_text_;
  int64_t prompt_characters_;
  std::vector<Choice> choices_;  // [n]
  size_t num_open_;
};

}  // namespace restkv

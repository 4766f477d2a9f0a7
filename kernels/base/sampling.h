// What the sample op takes and gives for one row. Order for /v1: logit bias, allowed and bad tokens ->
// penalties -> temperature -> min-p -> top-k -> top-p. Log probabilities are those after bias and bans,
// before penalties and temperature. The random number is counter-based: a function of (seed, choice,
// position) alone, so the same seed gives the same text whatever else runs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace restkv {

struct LogitBias {
  int32_t token = 0;
  float bias = 0.0f;
};

struct SamplingParams {
  float temperature = 1.0f;        // 0: greedy, the lowest id among equals
  float top_p = 1.0f;              // (0, 1]; at least one token stays
  int32_t top_k = 0;               // 0: off
  float min_p = 0.0f;              // [0, 1]
  float presence_penalty = 0.0f;   // subtracted once from tokens of the answer so far
  float frequency_penalty = 0.0f;  // times their count
  bool temperature_last =
      false;  // llama.cpp's order: top-k, top-p, min-p of the plain distribution, then temperature
  float repetition_penalty = 1.0f;  // divides (or multiplies) logits of tokens of prompt and answer; 1: off
  uint64_t seed = 0;
  std::vector<LogitBias> logit_bias;    // each token once
  std::vector<int32_t> allowed_tokens;  // empty: all
  int32_t num_logprobs = -1;            // -1: none; n: the chosen token's and the n best

  bool has_penalties() const {
    return presence_penalty != 0.0f || frequency_penalty != 0.0f || repetition_penalty != 1.0f;
  }
};

struct SampleRow {
  const SamplingParams* params = nullptr;
  uint32_t choice = 0;    // index among n choices
  uint32_t position = 0;  // of the token being drawn
  std::span<const uint64_t> prompt_tokens =
      {};  // [ceil(V/64)] bitmap of the prompt's tokens; empty without penalties
  std::span<const uint16_t> counts = {};  // [V] counts in the answer so far; empty without penalties
  std::span<const int32_t> banned = {};   // tokens that must not be drawn now (min_tokens, bad_words)
  int32_t forced = -1;  // >= 0: this token is given, not drawn (prompt log probabilities, teacher forcing)
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0.0f;
};

struct SampleResult {
  int32_t token = -1;
  bool is_nan = false;  // a NaN, or no finite logit at all: the request must end with an error
  float logprob = 0.0f;
  int32_t rank = 0;  // 0-based rank of the token by log probability; set with num_logprobs >= 0
  std::vector<TokenLogprob>
      top;  // num_logprobs best, descending, lower ids first among equals; capacity is kept
};

}  // namespace restkv

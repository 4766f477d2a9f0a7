// One answer on the terminal, for the verbs that print what a model says: complete and chat.
#pragma once

#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/text/tokenizer.h"
#include "server/config/settings.h"

namespace restkv {

// What the flags say, over `defaults`.
SamplingParams sampling_of(const AnswerSettings& settings, SamplingParams defaults);

// Tokens the context has left behind a prompt, at most `max_tokens` and at least 1: a prompt that does not fit is the
// engine's error.
int32_t answer_room(const Engine& engine, size_t prompt_len, int64_t max_tokens);

struct Answer {
  std::string text;  // as printed, without the newline behind it
  TokenRecord finish;
};

// Streams the answer to stdout until its end or Ctrl-C (InterruptGuard).
Result<Answer> print_answer(Engine& engine, Request request, const Tokenizer& tokenizer);

// "[prompt 40 tokens, 210.0 tok/s | answer ... | cache ... | end of text]" on stderr.
void print_figures(const TokenRecord& finish);

}  // namespace restkv

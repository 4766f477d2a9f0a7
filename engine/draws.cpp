// The executor's logits: next tokens with what a row must not draw, and log probabilities of prompts.
#include <algorithm>
#include <numeric>

#include "engine/executor.h"

namespace restkv {

void Executor::look_at_rows(Sequence& sequence, int64_t first_row, const Tensor& residual) {
  const bool wants_logprobs = sequence.request().prompt_logprobs >= 0 && first_row + 1 < sequence.prompt_len;
  if (!wants_logprobs && !observer_) return;
  SamplingParams params;
  params.num_logprobs = sequence.request().prompt_logprobs;
  std::vector<int32_t> rows;
  std::vector<SampleRow> targets;
  for (int64_t begin = 0; begin < residual.rows; begin += transformer_.max_logit_rows()) {
    const int64_t count = std::min(transformer_.max_logit_rows(), residual.rows - begin);
    rows.resize(static_cast<size_t>(count));
    std::iota(rows.begin(), rows.end(), static_cast<int32_t>(begin));
    const Tensor logits = transformer_.logits(residual, rows);
    if (observer_) observer_(sequence, first_row + begin, logits);
    if (!wants_logprobs) continue;
    // Row r predicts prompt token r + 1; the last row predicts the answer.
    const int64_t first = first_row + begin;
    const int64_t last = std::min<int64_t>(first + count, sequence.prompt_len - 1);
    if (last <= first) continue;
    targets.assign(static_cast<size_t>(last - first), SampleRow{.params = &params});
    for (int64_t r = first; r < last; ++r)
      targets[static_cast<size_t>(r - first)].forced = sequence.tokens[static_cast<size_t>(r + 1)];
    backend_.sample({.logits = logits.row_range(0, last - first),
                     .rows = targets,
                     .results = std::span(sequence.memory->prompt_logprobs)
                                    .subspan(static_cast<size_t>(first), static_cast<size_t>(last - first))});
  }
  if (wants_logprobs) backend_.synchronize();  // the followers of a group take copies
}

void Executor::collect_banned(const Sequence& sequence, int32_t num_drawn,
                              std::vector<int32_t>& banned) const {
  banned.clear();
  const Request& request = sequence.request();
  if (num_drawn < request.min_tokens) {
    for (const int64_t token : model_.config.eos_token_ids) banned.push_back(static_cast<int32_t>(token));
    banned.insert(banned.end(), request.stop_token_ids.begin(), request.stop_token_ids.end());
  }
  for (const std::vector<int32_t>& word : request.bad_words) {
    const size_t prefix = word.size() - 1;
    if (num_drawn < static_cast<int32_t>(prefix)) continue;
    if (std::equal(word.begin(), word.end() - 1, sequence.tokens.end() - static_cast<int64_t>(prefix)))
      banned.push_back(word.back());
  }
}

Status Executor::why_not_drawn(const Sequence& sequence) const {
  std::vector<int32_t> banned;
  collect_banned(sequence, sequence.num_generated(), banned);
  std::sort(banned.begin(), banned.end());
  banned.erase(std::unique(banned.begin(), banned.end()), banned.end());
  const std::vector<int32_t>& allowed = sequence.request().sampling.allowed_tokens;
  const bool is_banned = allowed.empty() ? static_cast<int64_t>(banned.size()) == model_.config.vocab_size
                                         : std::all_of(allowed.begin(), allowed.end(), [&](int32_t token) {
                                             return std::binary_search(banned.begin(), banned.end(), token);
                                           });
  if (!is_banned)
    return Status(StatusCode::kInternal, "the model's output is not a number").with_reason("nan_logits");
  return invalid_argument("no token may be drawn: bad_words, and min_tokens with what ends an answer, ban " +
                          std::string(allowed.empty() ? "the whole vocabulary" : "all of allowed_token_ids"))
      .with_param(allowed.empty() ? "bad_words" : "allowed_token_ids");
}

void Executor::count_token(Sequence& sequence, int32_t token) {
  uint16_t& count = sequence.memory->counts[static_cast<size_t>(token)];
  if (count < UINT16_MAX) ++count;
}

void Executor::draw(const Tensor& residual, StepInFlight& step) {
  if (step.drawing.empty()) return;
  sample_rows_.clear();
  const size_t count = step.drawing.size();
  CHECK(count <= step.samples.size()) << count << " sequences";
  // As many as the step was filled up to: all that follows is the same for every step of that size.
  if (step.is_whole) rows_.resize(static_cast<size_t>(residual.rows), 0);
  const Tensor logits = transformer_.logits(residual, rows_);
  if (draw_observer_) {
    backend_.synchronize();
    draw_observer_(step.drawing, logits.row_range(0, static_cast<int64_t>(count)));
  }
  for (size_t i = 0; i < count; ++i) {
    Sequence& sequence = *step.drawing[i];
    sequence.drawn_row = static_cast<int32_t>(i);
    // Of the answer, with those that the host has not seen yet.
    collect_banned(sequence, sequence.position - sequence.prompt_len, banned_[i]);
    sample_rows_.push_back({.params = &sequence.request().sampling,
                            .choice = static_cast<uint32_t>(sequence.choice),
                            .position = static_cast<uint32_t>(sequence.position),
                            .prompt_tokens = sequence.memory->prompt_tokens,
                            .counts = sequence.memory->counts,
                            .banned = banned_[i]});
  }
  backend_.sample({.logits = logits,
                   .rows = sample_rows_,
                   .results = std::span(step.samples).first(count),
                   .drawn = buffers_.drawn.col_range(0, static_cast<int64_t>(count))});
}

}  // namespace restkv

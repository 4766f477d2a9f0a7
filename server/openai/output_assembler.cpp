// The life of one token here: counted, detokenised, searched for stop strings, shown.
#include "server/openai/output_assembler.h"

#include <algorithm>

#include "server/openai/json_text.h"

namespace restkv {

void OutputDelta::append(OutputDelta next) {
  text += next.text;
  tokens.insert(tokens.end(), std::make_move_iterator(next.tokens.begin()),
                std::make_move_iterator(next.tokens.end()));
  prompt.insert(prompt.end(), std::make_move_iterator(next.prompt.begin()),
                std::make_move_iterator(next.prompt.end()));
  token_ids.insert(token_ids.end(), next.token_ids.begin(), next.token_ids.end());
  prompt_token_ids.insert(prompt_token_ids.end(), next.prompt_token_ids.begin(), next.prompt_token_ids.end());
  if (next.prompt_text) prompt_text = std::move(next.prompt_text);
  if (next.finish == FinishReason::kNone) return;
  finish = next.finish;
  stop_index = next.stop_index;
  stop_token = next.stop_token;
  error = std::move(next.error);
}

OutputAssembler::OutputAssembler(const Tokenizer& tokenizer, const OutputOptions& options,
                                 RequestHandle& handle, std::string prompt_text)
    : tokenizer_(&tokenizer),
      options_(&options),
      handle_(&handle),
      prompt_text_(std::move(prompt_text)),
      prompt_characters_(options.echo ? count_code_points(prompt_text_) : 0),
      num_open_(static_cast<size_t>(handle.request.num_choices)) {
  choices_.reserve(num_open_);
  for (size_t i = 0; i < num_open_; ++i) {
    Choice choice{.detokenizer = StreamingDetokenizer(tokenizer, options.skip_special_tokens),
                  .matcher = StopMatcher(options.stop, options.include_stop_string),
                  .pending = {},
                  .counters = {},
                  .prompt_detokenizer = StreamingDetokenizer(tokenizer, false, true)};
    choice.num_characters = prompt_characters_;
    choices_.push_back(std::move(choice));
  }
}

void OutputAssembler::append(const TokenRecord& record, OutputDelta& delta) {
  CHECK(record.choice >= 0 && static_cast<size_t>(record.choice) < choices_.size()) << record.choice;
  Choice& choice = choices_[static_cast<size_t>(record.choice)];
  if (choice.is_finished) return;
  switch (record.kind) {
    case TokenRecord::Kind::kPromptToken: return append_prompt_token(choice, record, delta);
    case TokenRecord::Kind::kToken: return append_token(choice, record, delta);
    case TokenRecord::Kind::kFinish: return append_finish(choice, record, delta);
  }
}

// The echoed prompt comes before everything else of the choice.
void OutputAssembler::start(Choice& choice, OutputDelta& delta) {
  if (choice.is_started) return;
  choice.is_started = true;
  if (options_->echo) delta.text += prompt_text_;
  if (options_->return_token_ids) delta.prompt_token_ids = handle_->request.prompt;
  if (options_->return_prompt_text) delta.prompt_text = prompt_text_;
}

void OutputAssembler::append_prompt_token(Choice& choice, const TokenRecord& record, OutputDelta& delta) {
  // The engine gives as many as the field that asks for more; each shows its own number.
  const auto output = [&](int32_t num_top) {
    TokenOutput token{record.token, record.logprob, record.top, record.rank, choice.prompt_characters};
    if (token.top.size() > static_cast<size_t>(num_top)) token.top.resize(static_cast<size_t>(num_top));
    return token;
  };
  if (options_->prompt_logprobs >= 0) {
    start(choice, delta);
    delta.prompt.push_back(output(options_->prompt_logprobs));
  }
  if (!options_->echo || options_->logprobs < 0) return;
  start(choice, delta);
  delta.tokens.push_back(output(options_->logprobs));
  // A BOS that the tokenizer put in front is no part of the text; a control token inside the prompt is.
  const bool is_in_text = !tokenizer_->is_special(record.token) || choice.num_prompt_tokens > 0 ||
                          prompt_text_.starts_with(tokenizer_->token_bytes(record.token));
  if (is_in_text)
    choice.prompt_characters += count_code_points(choice.prompt_detokenizer.append(record.token));
  ++choice.num_prompt_tokens;
}

void OutputAssembler::append_token(Choice& choice, const TokenRecord& record, OutputDelta& delta) {
  start(choice, delta);
  ++choice.num_tokens;
  choice.counters = record.counters;
  if (options_->return_token_ids) delta.token_ids.push_back(record.token);
  if (options_->logprobs >= 0) {
    choice.pending.push_back(
        {{record.token, record.logprob, record.top, record.rank, choice.num_characters}, choice.num_bytes});
  }
  const std::string text = choice.detokenizer.append(record.token);
  if (append_text(choice, text, choice.num_tokens > options_->min_tokens, delta)) return;
  show_tokens(choice, false, delta);
}

void OutputAssembler::append_finish(Choice& choice, const TokenRecord& record, OutputDelta& delta) {
  start(choice, delta);
  choice.counters = record.counters;
  if (record.finish == FinishReason::kStop && record.token >= 0) {
    ++choice.num_tokens;  // the end token counts
    if (options_->return_token_ids) delta.token_ids.push_back(record.token);
  }
  if (append_text(choice, choice.detokenizer.finish(), choice.num_tokens > options_->min_tokens, delta))
    return;
  choice.matcher.finish(delta.text);
  if (record.finish == FinishReason::kStop &&
      std::find(options_->stop_token_ids.begin(), options_->stop_token_ids.end(), record.token) !=
          options_->stop_token_ids.end()) {
    delta.stop_token = record.token;
    if (options_->include_stop_string) delta.text += tokenizer_->token_bytes(record.token);
  }
  delta.error = record.error;
  show_tokens(choice, true, delta);
  close(choice, record.finish, delta);
}

bool OutputAssembler::append_text(Choice& choice, const std::string& text, bool can_stop,
                                  OutputDelta& delta) {
  choice.num_bytes += text.size();
  choice.num_characters += count_code_points(text);
  const size_t before = delta.text.size();
  int match = -1;
  if (can_stop) {
    match = choice.matcher.append(text, delta.text);
  } else {
    choice.matcher.append_unmatched(text, delta.text);
  }
  choice.num_shown += delta.text.size() - before;
  if (match < 0) return false;
  delta.stop_index = match;
  show_tokens(choice, false, delta);
  handle_->cancel_choice(static_cast<int32_t>(&choice - choices_.data()));
  close(choice, FinishReason::kStop, delta);
  return true;
}

void OutputAssembler::show_tokens(Choice& choice, bool all, OutputDelta& delta) {
  while (!choice.pending.empty() && (all || choice.pending.front().begin < choice.num_shown)) {
    delta.tokens.push_back(std::move(choice.pending.front().output));
    choice.pending.pop_front();
  }
}

void OutputAssembler::close(Choice& choice, FinishReason reason, OutputDelta& delta) {
  delta.finish = reason;
  choice.is_finished = true;
  choice.pending.clear();
  --num_open_;
}

OutputUsage OutputAssembler::usage() const {
  OutputUsage usage;
  const Request& request = handle_->request;
  usage.prompt_tokens = static_cast<int64_t>(request.prompt.size());
  usage.cache.policy = request.cache.policy;
  if (request.cache.policy != PolicyKind::kFull)
    usage.cache.budget = budget_for_prompt(request.cache, usage.prompt_tokens);
  for (const Choice& choice : choices_) {
    usage.completion_tokens += choice.num_tokens;
    const CacheCounters& cache = choice.counters.cache;
    usage.cache.kept_sum += cache.kept;
    ++usage.cache.num_sequences;
    usage.cache.kept_max = std::max(usage.cache.kept_max, cache.kept_max);
    usage.cache.evicted += cache.evicted;
    usage.cache.events += cache.events;
    usage.cache.bytes += cache.bytes;
    usage.cached_tokens = std::max<int64_t>(usage.cached_tokens, choice.counters.cached_tokens);
    usage.queue_ms = std::max<double>(usage.queue_ms, choice.counters.queue_ms);
    usage.prefill_ms = std::max<double>(usage.prefill_ms, choice.counters.prefill_ms);
    usage.decode_ms = std::max<double>(usage.decode_ms, choice.counters.decode_ms);
  }
  return usage;
}

}  // namespace restkv

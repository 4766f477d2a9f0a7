// What becomes of a drawn token: records for the sequence's reader, its end, and what both count.
#include "engine/engine_core.h"

#include <algorithm>
#include <limits>

namespace restkv {
namespace {

float milliseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<float, std::milli>(to - from).count();
}

}  // namespace

void EngineCore::deliver(const StepResult& result) {
  Sequence& sequence = *result.sequence;
  const Request& request = sequence.request();
  const SampleResult& sample = *result.sample;
  sequence.cache = *result.cache;
  const Clock::time_point now = now_();
  if (sequence.phase != SequencePhase::kDecode) {
    if (sequence.phase == SequencePhase::kFeed) {
      counters_.prompt_tokens += sequence.prompt_len - sequence.prefill_len;
    } else if (!sequence.leader) {
      counters_.prompt_tokens += sequence.prompt_len;  // computed once for all choices
    }
    scheduler_.start_decode(sequence);
    sequence.first_token = now;
    report_progress(sequence, sequence.prompt_len);
    histograms_.add(Metric::kTimeToFirstToken, seconds_between(request.arrival, now));
    sequence.handle->phase.store(RequestPhase::kDecode, std::memory_order_relaxed);
    deliver_prompt_logprobs(sequence);
  }
  if (sample.is_nan) {
    Status why = executor_.why_not_drawn(sequence);
    const bool is_ill = why.code() == StatusCode::kInternal;
    counters_.nan_requests += is_ill;
    if (is_ill || request.max_tokens > 0) return finish(&sequence, FinishReason::kError, -1, std::move(why));
  }
  if (request.max_tokens == 0) return finish(&sequence, FinishReason::kLength, -1, {});
  if (sequence.last_token != Clock::time_point{})
    histograms_.add(Metric::kInterToken, seconds_between(sequence.last_token, now));
  sequence.tokens.push_back(sample.token);
  sequence.last_token = now;
  ++counters_.generated_tokens;
  sequence.handle->num_generated.fetch_add(1, std::memory_order_relaxed);
  if (request.sampling.has_penalties()) executor_.count_token(sequence, sample.token);
  const auto& eos = model_.config.eos_token_ids;
  const bool is_end = (!request.ignore_eos && std::find(eos.begin(), eos.end(), sample.token) != eos.end()) ||
                      std::find(request.stop_token_ids.begin(), request.stop_token_ids.end(), sample.token) !=
                          request.stop_token_ids.end();
  if (is_end) return finish(&sequence, FinishReason::kStop, sample.token, {});
  TokenRecord record;
  record.choice = sequence.choice;
  record.token = sample.token;
  record.logprob = sample.logprob;
  record.rank = sample.rank;
  record.top = sample.top;
  record.counters = counters_of(sequence, now);
  record.counters.cache = sequence.cache;
  sequence.handle->stream.push(std::move(record));
  touched_.push_back(sequence.handle);
  if (sequence.num_generated() >= request.max_tokens) finish(&sequence, FinishReason::kLength, -1, {});
}

void EngineCore::deliver_prompt_logprobs(Sequence& sequence) {
  if (sequence.request().prompt_logprobs < 0) return;
  std::vector<SampleResult>& results = sequence.memory->prompt_logprobs;
  for (int32_t i = 0; i < sequence.prompt_len; ++i) {
    TokenRecord record;
    record.kind = TokenRecord::Kind::kPromptToken;
    record.choice = sequence.choice;
    record.token = sequence.tokens[static_cast<size_t>(i)];
    record.logprob = std::numeric_limits<float>::quiet_NaN();
    if (i > 0) {
      SampleResult& result = results[static_cast<size_t>(i - 1)];
      record.logprob = result.logprob;
      record.rank = result.rank;
      record.top = std::move(result.top);
    }
    sequence.handle->stream.push(std::move(record));
  }
  results.clear();
}

// All but those of the cache.
SequenceCounters EngineCore::counters_of(const Sequence& sequence, Clock::time_point now) {
  SequenceCounters counters;
  counters.prompt_tokens = sequence.prompt_len;
  counters.cached_tokens = sequence.cached_tokens;
  counters.completion_tokens = sequence.num_generated();
  const bool was_admitted = sequence.admitted != Clock::time_point{};
  const bool has_answer = sequence.first_token != Clock::time_point{};
  counters.queue_ms = milliseconds(sequence.request().arrival, was_admitted ? sequence.admitted : now);
  if (was_admitted)
    counters.prefill_ms = milliseconds(sequence.admitted, has_answer ? sequence.first_token : now);
  if (has_answer) counters.decode_ms = milliseconds(sequence.first_token, now);
  return counters;
}

void EngineCore::finish(Sequence* sequence, FinishReason reason, int32_t token, Status error) {
  const Clock::time_point now = now_();
  CacheCounters cache;
  if (sequence->memory->is_admitted) {
    // A step in flight may be past what was delivered.
    cache = sequence->phase == SequencePhase::kDecode ? sequence->cache : executor_.cache_counters(*sequence);
    const int64_t heads = model_.config.num_layers * model_.config.num_kv_heads;
    counters_.ended_rows += heads * sequence->position;
    counters_.ended_rows_gone += sequence->position > 0 ? sequence->memory->num_gone : 0;
    if (sequence->memory->trace) {
      const Request& request = sequence->request();
      traces_.put(request.id, request.owner, request.first_choice + sequence->choice,
                  sequence->memory->trace->take(), now);
    }
  }
  const std::unique_ptr<Sequence> retired = scheduler_.retire(sequence);
  TokenRecord record;
  record.kind = TokenRecord::Kind::kFinish;
  record.finish = reason;
  record.choice = retired->choice;
  record.token = token;
  record.error = std::move(error);
  record.counters = counters_of(*retired, now);
  record.counters.cache = cache;
  retired->handle->stream.push(std::move(record));
  touched_.push_back(retired->handle);
  trace_.add(counters_.steps, TurnTrace::Event::kFinish, static_cast<int64_t>(retired->key.arrival),
             retired->choice, static_cast<int64_t>(reason));
  InFlight& request = in_flight_.at(retired->handle.get());
  std::erase(request.open, sequence);
  if (request.open.empty()) {
    if (retired->request().timeout.count() > 0)
      deadlines_.erase({retired->request().arrival + retired->request().timeout, retired->handle.get()});
    retired->handle->phase.store(RequestPhase::kFinished, std::memory_order_relaxed);
    finished_.push_back(retired->handle);
    in_flight_.erase(retired->handle.get());
  }
  count_end(*retired, reason, now);
}

void EngineCore::count_end(const Sequence& sequence, FinishReason reason, Clock::time_point now) {
  switch (reason) {
    case FinishReason::kStop: ++counters_.finished_stop; break;
    case FinishReason::kLength: ++counters_.finished_length; break;
    case FinishReason::kCancelled: ++counters_.finished_cancelled; break;
    case FinishReason::kError: ++counters_.finished_error; break;
    case FinishReason::kNone: CHECK(false) << "a sequence ends for a reason";
  }
  if (sequence.admitted == Clock::time_point{}) return;
  const Request& request = sequence.request();
  histograms_.add(Metric::kLatency, seconds_between(request.arrival, now));
  histograms_.add(Metric::kQueueTime, seconds_between(request.arrival, sequence.admitted));
  histograms_.add(Metric::kInferenceTime, seconds_between(sequence.admitted, now));
  histograms_.add(Metric::kPromptTokens, sequence.prompt_len);
  histograms_.add(Metric::kComputedTokens, sequence.prompt_len - sequence.cached_tokens);
  histograms_.add(Metric::kGenerationTokens, sequence.num_generated());
  histograms_.add(Metric::kMaxTokens, request.max_tokens);
  if (sequence.choice == 0) histograms_.add(Metric::kNumChoices, request.num_choices);
  if (sequence.first_token == Clock::time_point{}) return;
  histograms_.add(Metric::kPrefillTime, seconds_between(sequence.admitted, sequence.first_token));
  histograms_.add(Metric::kDecodeTime, seconds_between(sequence.first_token, now));
  if (sequence.num_generated() > 1) {
    histograms_.add(Metric::kTimePerOutputToken, seconds_between(sequence.first_token, sequence.last_token) /
                                                     (sequence.num_generated() - 1));
  }
}

}  // namespace restkv

// What sequences hold: pages for all their entries and scratch for a long prompt, from admission to release.
#include <algorithm>
#include <utility>

#include "engine/executor.h"
#include "kernels/base/device_error.h"

namespace restkv {

void SequenceMemoryDeleter::operator()(SequenceMemory* memory) const { delete memory; }

void Executor::prepare(Sequence& sequence) const {
  sequence.memory.reset(new SequenceMemory);
  Evictor::plan(model_.config, allocation_.get(), sequence.request().cache, sequence.prompt_len,
                sequence.request().max_tokens, *sequence.memory);
  sequence.prefill_len = sequence.memory->prefill_len;
  sequence.probe_len = static_cast<int32_t>(sequence.memory->probe.size());
  sequence.feed_rows = std::max(1, sequence.memory->budget.stride);
  // Where every query has to be there, nothing is read or written.
  const SequenceMemory& memory = *sequence.memory;
  if (sequence.choice > 0 || sequence.request().prompt_logprobs >= 0 || memory.recipe.needs_sums()) return;
  const int32_t computed =
      memory.settings.policy == PolicyKind::kFull ? 1 : std::max(1, memory.settings.window);
  prefixes_.prepare(sequence, sequence.prefill_len - computed, sequence.memory->prefix);
}

int64_t Executor::pages_for(const CacheSettings& settings, int64_t prompt_len, int64_t max_tokens) const {
  SequenceMemory memory;
  Evictor::plan(model_.config, allocation_.get(), settings, prompt_len, max_tokens, memory);
  return cache_.pages_for(memory.reservation);
}

int64_t Executor::pages_for_more(const CacheSettings& settings, int64_t prompt_len,
                                 int64_t max_tokens) const {
  SequenceMemory memory;
  Evictor::plan(model_.config, allocation_.get(), settings, prompt_len, max_tokens, memory);
  return cache_.pages_for(memory.reservation) -
         shared_entries(memory) / cache_.view().slots * model_.config.num_layers * model_.config.num_kv_heads;
}

int32_t Executor::shared_entries(const SequenceMemory& memory) const {
  return memory.may_share ? memory.prefill_len / cache_.view().slots * cache_.view().slots : 0;
}

int64_t Executor::pages_of(const Choices& choices) const {
  const SequenceMemory& first = *choices.front()->memory;
  const int64_t shared =
      shared_entries(first) / cache_.view().slots * model_.config.num_layers * model_.config.num_kv_heads;
  const auto count = static_cast<int64_t>(choices.size());
  return count * cache_.pages_for(first.reservation) - (count - 1) * shared;
}

bool Executor::can_admit(const Choices& choices) const {
  const Sequence& first = *choices.front();
  return prefixes_.can_take(first, first.memory->prefix, pages_of(choices));
}

bool Executor::can_admit(const Sequence& sequence) const {
  return cache_.can_admit(sequence.memory->reservation);
}

void Executor::admit(const Choices& choices) {
  Sequence& first = *choices.front();
  SequenceMemory& memory = *first.memory;
  if (observer_) memory.prefix.keys.clear();
  prefixes_.make_room(first, memory.prefix, pages_of(choices));
  try {
    admit(first);
    const int32_t shared = shared_entries(memory);
    for (size_t i = 1; i < choices.size(); ++i) {
      SequenceMemory& other = *choices[i]->memory;
      other.cache = cache_.admit(other.reservation, &memory.cache, shared);
      begin(*choices[i]);
    }
  } catch (const DeviceError&) {  // they are queued still, and hold nothing
    for (const auto& choice : choices)
      if (std::exchange(choice->memory->is_admitted, false)) cache_.release(choice->memory->cache);
    prefixes_.finish(memory.prefix, false);
    throw;
  }
  prefixes_.begin_insert(first, memory.prefix);
}

void Executor::admit(Sequence& sequence) {
  sequence.memory->cache = cache_.admit(sequence.memory->reservation);
  begin(sequence);
}

void Executor::begin(Sequence& sequence) {
  SequenceMemory& memory = *sequence.memory;
  memory.is_admitted = true;
  evictor_.admit(memory, sequence.prompt_len);
  if (sequence.request().sampling.has_penalties()) {
    const auto vocab = static_cast<size_t>(model_.config.vocab_size);
    memory.prompt_tokens.assign((vocab + 63) / 64, 0);
    for (const int32_t token : sequence.request().prompt)
      memory.prompt_tokens[static_cast<size_t>(token) / 64] |= uint64_t{1} << (token % 64);
    memory.counts.assign(vocab, 0);
  }
  if (sequence.request().prompt_logprobs >= 0 && sequence.prompt_len > 1)
    memory.prompt_logprobs.resize(static_cast<size_t>(sequence.prompt_len - 1));
}

void Executor::release(Sequence& sequence) {
  SequenceMemory& memory = *sequence.memory;
  // A step in flight still writes to its pages, before whoever has them next: the device works in order.
  for (StepInFlight& step : steps_) {
    std::replace(step.drawing.begin(), step.drawing.end(), &sequence, static_cast<Sequence*>(nullptr));
    for (Evictor::Due& due : step.cuts.due)
      if (due.sequence == &sequence) due.sequence = nullptr;
  }
  evictor_.forget(sequence);
  prefixes_.finish(memory.prefix, false);
  if (memory.is_admitted) cache_.release(memory.cache);
  scratch_.give_back(memory.scratch);
  sequence.memory.reset();
}

bool Executor::can_start_prefill(const Sequence& sequence, bool may_use_open) const {
  return scratch_.can_take(sequence.prefill_rows() - sequence.first_row, may_use_open);
}

void Executor::start_prefill(Sequence& sequence, bool may_use_open) {
  sequence.memory->scratch = scratch_.take(sequence.prefill_rows() - sequence.first_row, may_use_open);
}

void Executor::hand_over(Sequence& from, Sequence& to) {
  to.memory->scratch = std::exchange(from.memory->scratch, {});
  to.memory->prefix = std::exchange(from.memory->prefix, {});
  to.memory->cache.shared_entries = 0;  // it writes the layers that are left
  to.memory->prompt_logprobs.swap(from.memory->prompt_logprobs);
}

}  // namespace restkv

// One ordered map of waiting requests; prompts in work share each turn's time with the decode rows.
#include "engine/scheduler.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace restkv {
namespace {

// Time for prompts in a turn, as a part of its decode step's: with the step it stays below two steps, also in the 99th percentile,
// where a prediction is 30 % short. Where more prompts wait than sequences decode, their share grows with that ratio: a gap
// between tokens then delays fewer than it serves, and a queue of prompts would else get no more than 41 % of the machine.
constexpr double kPromptShare = 0.7;
constexpr double kMostWaiting = 5.0;  // prompts to a sequence that decodes: gaps of 4.5 steps, as predicted
// An old long prompt leaves every second unit to a prompt that has less than this part of its work left: otherwise nobody who
// arrives gets a first token before it ends, which may take minutes.
constexpr double kMuchShorter = 0.25;

// Entries of a head that a decode row at `position` reads, about.
int64_t entries_at(const CacheSettings& cache, int64_t position) {
  const bool is_bounded = cache.policy != PolicyKind::kFull && cache.decode == DecodeMode::kEvict;
  return is_bounded ? std::min<int64_t>(position, cache.budget) : position;
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, const CostModel& cost, SequenceHost& host)
    : options_(options), cost_(cost), host_(host) {
  CHECK(options.max_num_batched_tokens > options.max_num_seqs);
}

int64_t Scheduler::decode_entries(const Sequence& sequence) {
  return entries_at(sequence.request().cache, sequence.position);
}

double Scheduler::remaining_seconds(const Sequence& sequence) const {
  const double layer =
      cost_.prompt_seconds(sequence.first_row, sequence.prefill_rows(), options_.max_num_batched_tokens) /
      options_.num_layers;
  const double rows = std::max(1, sequence.prefill_rows() - sequence.first_row);
  const double layers_left =
      options_.num_layers - sequence.unit_layer - (sequence.unit_row - sequence.first_row) / rows;
  return layer * layers_left;
}

ScheduleKey Scheduler::key_of(const Sequence& sequence, Clock::time_point now) {
  const Request& request = sequence.request();
  ScheduleKey key{0.0, num_arrived_++};
  if (options_.policy == SchedulingPolicy::kPriority) key.value = request.priority;
  if (options_.policy == SchedulingPolicy::kShortest) {
    const int64_t fed_steps =
        (sequence.prompt_len - sequence.prefill_len + sequence.feed_rows - 1) / sequence.feed_rows;
    const int64_t tokens = fed_steps + std::max(0, request.max_tokens - 1);
    const double answer = static_cast<double>(tokens) *
                          cost_.step_seconds(1, entries_at(request.cache, sequence.prompt_len + tokens / 2));
    key.value = seconds_between(start_, now) + remaining_seconds(sequence) + answer;
  }
  return key;
}

void Scheduler::enqueue(Choices choices, Clock::time_point now) {
  CHECK(!choices.empty()) << "a request without choices";
  if (num_arrived_ == 0) start_ = now;
  const ScheduleKey key = key_of(*choices.front(), now);
  for (const auto& sequence : choices) {
    sequence->key = key;
    waiting_tokens_ += sequence->prompt_len;
  }
  num_waiting_ += static_cast<int64_t>(choices.size());
  queue_.emplace(key, std::move(choices));
}

std::vector<Sequence*> Scheduler::first_queued() const {
  std::vector<Sequence*> choices;
  if (queue_.empty()) return choices;
  for (const auto& sequence : queue_.begin()->second) choices.push_back(sequence.get());
  return choices;
}

void Scheduler::admit(std::vector<Sequence*>& admitted) {
  while (!queue_.empty()) {
    Choices& choices = queue_.begin()->second;
    if (static_cast<int32_t>(running_.size() + choices.size()) > options_.max_num_seqs ||
        !host_.can_admit(choices))
      return;
    host_.admit(choices);
    Sequence* leader = choices.front().get();
    leader->unit_row = leader->first_row;  // what the prefix cache has is done
    const auto place =
        std::upper_bound(prompts_.begin(), prompts_.end(), leader->key,
                         [](const ScheduleKey& key, const Sequence* other) { return key < other->key; });
    prompts_.insert(place, leader);
    for (auto& sequence : choices) {
      sequence->phase = SequencePhase::kPrefill;
      sequence->index = running_.size();
      if (sequence.get() != leader) {
        sequence->leader = leader;
        leader->followers.push_back(sequence.get());
      }
      --num_waiting_;
      waiting_tokens_ -= sequence->prompt_len;
      admitted.push_back(sequence.get());
      running_.push_back(std::move(sequence));
    }
    queue_.erase(queue_.begin());
  }
}

void Scheduler::plan_step(StepBatch& batch) {
  batch.clear();
  int64_t entries = 0;
  int32_t num_fed = 0;
  for (const auto& sequence : running_) {
    if (sequence->phase == SequencePhase::kFeed) ++num_fed;
    if (sequence->phase != SequencePhase::kDecode) continue;
    if (sequence->position == sequence->max_entries()) continue;  // its last token is being drawn
    batch.decodes.push_back({sequence.get(), 1});
    entries += decode_entries(*sequence);
  }
  auto rows = static_cast<int32_t>(batch.decodes.size());
  for (size_t i = 0; i < running_.size() && num_fed > 0; ++i) {
    Sequence& sequence = *running_[i];
    if (sequence.phase != SequencePhase::kFeed) continue;
    // A row each is always there: max_num_batched_tokens > max_num_seqs.
    const int32_t count = std::min({sequence.feed_rows, sequence.prompt_len - sequence.position,
                                    options_.max_num_batched_tokens - rows - --num_fed});
    batch.decodes.push_back({&sequence, count});
    entries += count * decode_entries(sequence);
    rows += count;
  }
  others_decode_ = rows > 0;
  has_unit_ = false;
  if (others_decode_) {
    const double waiting = static_cast<double>(prompts_.size()) / static_cast<double>(batch.decodes.size());
    seconds_left_ = kPromptShare * std::clamp(waiting, 1.0, kMostWaiting) * cost_.step_seconds(rows, entries);
  } else {
    seconds_left_ = options_.alone_seconds;
  }
  for (Sequence* sequence : prompts_) {
    const int32_t prompt_rows = sequence->prefill_rows() - sequence->first_row;
    if (sequence->in_units || prompt_rows > short_prompt_rows() ||
        rows + prompt_rows > options_.max_num_batched_tokens)
      continue;
    const double seconds = remaining_seconds(*sequence);
    if (others_decode_ && seconds > seconds_left_) continue;
    seconds_left_ -= seconds;
    batch.prompts.push_back(sequence);
    rows += prompt_rows;
  }
}

void Scheduler::start_waiting_prefills() {
  bool may_use_open = true;
  for (Sequence* sequence : prompts_) {
    if (sequence->in_units) continue;
    const bool is_short = sequence->prefill_rows() - sequence->first_row <= short_prompt_rows();
    // A short prompt joins the next step where nothing decodes.
    if (is_short && !others_decode_) continue;
    if (host_.can_start_prefill(*sequence, may_use_open)) {
      host_.start_prefill(*sequence, may_use_open);
      sequence->in_units = true;
    } else {
      may_use_open = false;
    }
  }
}

Sequence* Scheduler::next_in_work() const {
  Sequence *next = nullptr, *shortest = nullptr;
  double best = 0, least = 0, remaining_of_next = 0;
  for (Sequence* sequence : prompts_) {
    if (!sequence->in_units) continue;
    if (options_.policy != SchedulingPolicy::kShortest) return sequence;
    // Shortest remaining first; the key's part that was fixed on arrival makes old ones win in the end.
    const double remaining = remaining_seconds(*sequence);
    const double seconds = seconds_between(start_, sequence->admitted) + remaining;
    if (!next || seconds < best) {
      next = sequence;
      best = seconds;
      remaining_of_next = remaining;
    }
    if (!shortest || remaining < least) {
      shortest = sequence;
      least = remaining;
    }
  }
  return gives_way_ && least < kMuchShorter * remaining_of_next ? shortest : next;
}

PrefillUnit Scheduler::plan_unit() {
  if (has_unit_ && seconds_left_ <= 0) return {};
  if (!has_unit_) start_waiting_prefills();
  Sequence* sequence = next_in_work();
  if (!sequence) return {};
  int32_t rows = options_.max_num_batched_tokens;
  if (others_decode_) rows = cost_.unit_rows(sequence->unit_row, rows, seconds_left_);
  rows = std::min(rows, sequence->prefill_rows() - sequence->unit_row);
  const double seconds = cost_.unit_seconds(sequence->unit_row, rows);
  if (has_unit_ && seconds > seconds_left_) return {};
  // What was never measured may take any time: alone it is one unit.
  seconds_left_ = others_decode_ || seconds > 0 ? seconds_left_ - seconds : 0;
  has_unit_ = true;
  gives_way_ = !gives_way_;
  return {sequence, sequence->unit_layer, sequence->unit_row, rows};
}

bool Scheduler::finish_unit(const PrefillUnit& unit) {
  Sequence& sequence = *unit.sequence;
  sequence.unit_row = unit.row_begin + unit.num_rows;
  if (sequence.unit_row < sequence.prefill_rows()) return false;
  sequence.unit_row = sequence.first_row;
  return ++sequence.unit_layer == options_.num_layers;
}

void Scheduler::start_feed(Sequence& sequence) {
  sequence.phase = SequencePhase::kFeed;
  end_prefill(sequence);
}

void Scheduler::start_decode(Sequence& sequence) {
  if (sequence.phase == SequencePhase::kPrefill) end_prefill(sequence);
  sequence.phase = SequencePhase::kDecode;
}

void Scheduler::end_prefill(Sequence& sequence) {
  if (!sequence.leader) std::erase(prompts_, &sequence);
  sequence.leader = nullptr;
  sequence.followers.clear();
}

void Scheduler::leave_group(Sequence& sequence) {
  if (sequence.leader) {
    std::erase(sequence.leader->followers, &sequence);
    return;
  }
  const auto place = std::find(prompts_.begin(), prompts_.end(), &sequence);
  if (place == prompts_.end()) return;
  if (sequence.followers.empty()) {
    prompts_.erase(place);
    return;
  }
  Sequence* heir = sequence.followers.front();
  *place = heir;
  heir->leader = nullptr;
  heir->followers.assign(sequence.followers.begin() + 1, sequence.followers.end());
  for (Sequence* follower : heir->followers) follower->leader = heir;
  heir->in_units = sequence.in_units;
  heir->first_row = sequence.first_row;
  heir->unit_layer = sequence.unit_layer;
  heir->unit_row = sequence.unit_row;
  sequence.followers.clear();
  host_.hand_over(sequence, *heir);
}

std::unique_ptr<Sequence> Scheduler::retire(Sequence* sequence) {
  std::unique_ptr<Sequence> retired;
  if (sequence->phase == SequencePhase::kQueued) {
    const auto found = queue_.find(sequence->key);
    CHECK(found != queue_.end()) << "a sequence was retired twice";
    Choices& choices = found->second;
    const auto it = std::find_if(choices.begin(), choices.end(),
                                 [sequence](const auto& other) { return other.get() == sequence; });
    CHECK(it != choices.end()) << "a sequence was retired twice";
    retired = std::move(*it);
    choices.erase(it);
    if (choices.empty()) queue_.erase(found);
    --num_waiting_;
    waiting_tokens_ -= sequence->prompt_len;
  } else {
    CHECK(sequence->index < running_.size() && running_[sequence->index].get() == sequence)
        << "a sequence was retired twice";
    leave_group(*sequence);
    host_.release(*sequence);
    retired = std::move(running_[sequence->index]);
    if (sequence->index + 1 < running_.size()) {
      running_[sequence->index] = std::move(running_.back());
      running_[sequence->index]->index = sequence->index;
    }
    running_.pop_back();
  }
  retired->phase = SequencePhase::kFinished;
  return retired;
}

}  // namespace restkv

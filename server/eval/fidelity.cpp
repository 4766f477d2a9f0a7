// Texts outside, settings inside: one prefill and one batch of decode rows for all settings of a text.
#include "server/eval/fidelity.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "server/eval/distribution.h"

namespace restkv {
namespace {

constexpr int32_t kUnseen = 128;  // agnostic: last tokens of the prompt that are not there when it is cut
constexpr std::array<std::string_view, 3> kModes = {"prefill", "decode", "agnostic"};

// One setting: what is asked for and what came out.
struct Contender {
  const PolicyVariant* variant = nullptr;
  EvalMode mode = EvalMode::kPrefill;
  int32_t budget = 0;
  CacheSettings settings;

  // Of the text in work.
  double kl = 0, dnll = 0;
  int32_t agreed = 0;
  // Of all texts so far.
  std::vector<double> text_kl;  // [texts] mean over tokens
  std::vector<float> token_kl;
  double dnll_sum = 0;
  int64_t agreed_sum = 0, tokens = 0;
  double kept_sum = 0;
  int64_t bytes = 0;
};

struct Lengths {
  int64_t prompt = 0, forced = 0;
};
Lengths lengths_of(const FidelityOptions& options, bool is_agnostic, size_t prefix) {
  const int32_t unseen = is_agnostic ? kUnseen : 0;
  return {static_cast<int64_t>(prefix) + options.prompt_len - unseen, int64_t{options.continue_len} + unseen};
}

// One text under all contenders of one prompt length; `full` is setting 0.
Status run_text(GroupRunner& runner, const std::vector<int32_t>& slice, const FidelityOptions& options,
                bool is_agnostic, std::vector<Contender*>& contenders, const EvalContext& context,
                const std::function<void(int64_t)>& progress) {
  const std::vector<int32_t>& prefix = context.prefix;
  const int64_t vocab = context.vocab_size;
  const Lengths lengths = lengths_of(options, is_agnostic, prefix.size());
  const auto prompt_end = slice.begin() + (lengths.prompt - static_cast<int64_t>(prefix.size()));
  GroupText text;
  text.prompt = prefix;
  text.prompt.insert(text.prompt.end(), slice.begin(), prompt_end);
  text.forced.assign(prompt_end, prompt_end + lengths.forced);
  std::vector<CacheSettings> settings = {CacheSettings::full()};
  for (Contender* c : contenders) {
    settings.push_back(c->settings);
    c->kl = c->dnll = 0;
    c->agreed = 0;
  }
  std::vector<float> p(static_cast<size_t>(vocab));  // [V] of the full cache
  // The first prediction comes out of the prefill and is the full cache's for all.
  const auto observe = [&](int32_t fed, const float* logits) {
    const int32_t target = *(prompt_end + fed);
    const Distribution full = distribution_of(logits, vocab);
    probabilities_of(logits, full, p);
    for (size_t i = 0; i < contenders.size(); ++i) {
      Contender& c = *contenders[i];
      const float* other = logits + static_cast<int64_t>(i + 1) * vocab;
      const Distribution d = distribution_of(other, vocab);
      const double kl = divergence(p, logits, full, other, d);
      c.kl += kl;
      c.token_kl.push_back(static_cast<float>(kl));
      c.agreed += d.best == full.best;
      c.dnll +=
          (d.lse - static_cast<double>(other[target])) - (full.lse - static_cast<double>(logits[target]));
    }
    progress(fed);
  };
  const Result<std::vector<GroupOutcome>> outcomes = runner.run(text, settings, observe);
  if (!outcomes.ok()) return outcomes.status();
  for (size_t i = 0; i < contenders.size(); ++i) {
    Contender& c = *contenders[i];
    c.text_kl.push_back(c.kl / static_cast<double>(lengths.forced));
    c.dnll_sum += c.dnll;
    c.agreed_sum += c.agreed;
    c.tokens += lengths.forced;
    c.kept_sum += (*outcomes)[i + 1].cache.kept;
    c.bytes = (*outcomes)[i + 1].cache.bytes;
  }
  return {};
}

const Contender* find_base(const std::vector<Contender>& all, const Contender& of, std::string_view name) {
  for (const Contender& c : all)
    if (c.variant->name == name && c.mode == of.mode && c.budget == of.budget) return &c;
  return nullptr;
}

FidelityRow row_of(const Contender& c, const std::vector<Contender>& all) {
  FidelityRow row;
  row.policy = policy_name(c.settings.policy);
  if (c.settings.policy == PolicyKind::kRestkv)
    row.preset = c.settings.preset == Preset::kPaper ? "paper" : "default";
  row.variant = c.variant->name;
  row.mode = c.mode;
  row.budget = c.budget;
  row.budget_used = c.settings.budget;
  row.bytes = c.bytes;
  row.n = static_cast<int32_t>(c.text_kl.size());
  row.kept = static_cast<int32_t>(std::lround(c.kept_sum / row.n));
  row.kl_mean = mean_of(c.text_kl);
  row.kl_p95 = quantile_of(c.token_kl, 0.95);
  row.top1 = static_cast<double>(c.agreed_sum) / static_cast<double>(c.tokens);
  row.dnll = c.dnll_sum / static_cast<double>(c.tokens);
  if (const Contender* base = find_base(all, c, "restkv:paper"))
    row.paper = paired_ratio(c.text_kl, base->text_kl);
  if (const Contender* base = find_base(all, c, "snapkv"))
    row.snapkv = paired_ratio(c.text_kl, base->text_kl);
  return row;
}

}  // namespace

std::string_view eval_mode_name(EvalMode mode) { return kModes[static_cast<size_t>(mode)]; }

Result<std::vector<EvalMode>> parse_eval_modes(std::string_view list) {
  std::vector<EvalMode> modes;
  while (!list.empty()) {
    const std::string_view name = list.substr(0, list.find(','));
    list.remove_prefix(std::min(list.size(), name.size() + 1));
    const auto* found = std::find(kModes.begin(), kModes.end(), name);
    const auto mode = static_cast<EvalMode>(found - kModes.begin());
    if (found == kModes.end() || std::find(modes.begin(), modes.end(), mode) != modes.end()) {
      return invalid_argument("mode '" + std::string(name.substr(0, 40)) +
                              "' is unknown or given twice; there are prefill, decode and agnostic");
    }
    modes.push_back(mode);
  }
  if (modes.empty()) return invalid_argument("no mode is given; there are prefill, decode and agnostic");
  return modes;
}

int64_t fidelity_slice_len(const FidelityOptions& options) {
  return int64_t{options.prompt_len} + options.continue_len + 1;
}

int32_t fidelity_settings(const FidelityOptions& options, size_t num_variants) {
  const auto agnostic = std::count(options.modes.begin(), options.modes.end(), EvalMode::kAgnostic);
  const auto others = static_cast<int64_t>(options.modes.size()) - agnostic;
  return static_cast<int32_t>(1 + static_cast<int64_t>(num_variants * options.budgets.size()) *
                                      std::max<int64_t>(others, agnostic));
}

Result<FidelityRun> run_fidelity(GroupRunner& runner, const std::vector<std::vector<int32_t>>& slices,
                                 const std::vector<PolicyVariant>& variants, const FidelityOptions& options,
                                 const EvalContext& context) {
  std::vector<Contender> all;
  int64_t tokens_a_text = 0;
  std::array<bool, 2> has_part{};  // seen whole, agnostic
  for (const EvalMode mode : options.modes) {
    const bool is_agnostic = mode == EvalMode::kAgnostic;
    const Lengths lengths = lengths_of(options, is_agnostic, context.prefix.size());
    if (lengths.prompt < 1)
      return invalid_argument("prompt-len must be above " + std::to_string(kUnseen) + " for agnostic");
    if (!has_part[is_agnostic]) tokens_a_text += lengths.forced;
    has_part[is_agnostic] = true;
    for (const PolicyVariant& variant : variants) {
      for (const int32_t budget : options.budgets) {
        const Result<CacheSettings> settings =
            contender_settings(runner, variant,
                               {.decode = mode == EvalMode::kPrefill ? DecodeMode::kGrow : DecodeMode::kEvict,
                                .is_agnostic = is_agnostic,
                                .budget = budget,
                                .prompt_len = lengths.prompt,
                                .answer_len = lengths.forced + 1,
                                .equal_bytes = options.equal_bytes},
                               context);
        if (!settings.ok())
          return invalid_argument("policy '" + variant.name + "': " + settings.status().message());
        Contender c;
        c.variant = &variant;
        c.mode = mode;
        c.budget = budget;
        c.settings = *settings;
        all.push_back(std::move(c));
      }
    }
  }
  FidelityRun out;
  int64_t done = 0;
  const auto total = static_cast<int64_t>(slices.size()) * tokens_a_text;
  for (const std::vector<int32_t>& slice : slices) {
    for (const bool is_agnostic : {false, true}) {
      std::vector<Contender*> part;
      for (Contender& c : all)
        if ((c.mode == EvalMode::kAgnostic) == is_agnostic) part.push_back(&c);
      if (part.empty()) continue;
      const Status status = run_text(runner, slice, options, is_agnostic, part, context,
                                     [&](int64_t fed) { context.progress(done + fed, total); });
      if (!status.ok()) return status;
      done += lengths_of(options, is_agnostic, context.prefix.size()).forced;
    }
    ++out.num_texts;
    if (context.is_stopped()) break;
  }
  for (const Contender& c : all) out.rows.push_back(row_of(c, all));
  return out;
}

}  // namespace restkv

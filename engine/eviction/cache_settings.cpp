// Names, bounds and presets of the `cache` object. Presets first, then what the user gave, then what hangs on both.
#include "engine/eviction/cache_settings.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "engine/eviction/policy.h"

namespace restkv {
namespace {

template <class T>
struct Named {
  std::string_view name;
  T value;
};
constexpr std::array<Named<PolicyKind>, kNumPolicies> kPolicies = {
    {{"full", PolicyKind::kFull},
     {"restkv", PolicyKind::kRestkv},
     {"snapkv", PolicyKind::kSnapkv},
     {"streamingllm", PolicyKind::kStreamingllm},
     {"h2o", PolicyKind::kH2o},
     {"tova", PolicyKind::kTova},
     {"pyramidkv", PolicyKind::kPyramidkv},
     {"adakv", PolicyKind::kAdakv},
     {"lacache", PolicyKind::kLacache},
     {"random", PolicyKind::kRandom}}};
constexpr std::array<Named<Preset>, 2> kPresets = {
    {{"default", Preset::kDefault}, {"paper", Preset::kPaper}}};
constexpr std::array<Named<Allocation>, 4> kAllocations = {{{"uniform", Allocation::kUniform},
                                                            {"calibrated", Allocation::kCalibrated},
                                                            {"pyramid", Allocation::kPyramid},
                                                            {"ada", Allocation::kAda}}};
constexpr std::array<Named<DecodeMode>, 2> kDecodeModes = {
    {{"evict", DecodeMode::kEvict}, {"grow", DecodeMode::kGrow}}};
constexpr std::array<Named<GroupReduce>, 3> kGroups = {
    {{"rss", GroupReduce::kRss}, {"max", GroupReduce::kMax}, {"mean", GroupReduce::kMean}}};
constexpr std::array<Named<Indicator>, 2> kIndicators = {
    {{"query", Indicator::kQuery}, {"after", Indicator::kAfter}}};
constexpr std::array<Named<QueryReduce>, 4> kReduces = {{{"rms", QueryReduce::kRms},
                                                         {"max", QueryReduce::kMax},
                                                         {"ema", QueryReduce::kEma},
                                                         {"mean", QueryReduce::kMean}}};
constexpr std::array<Named<PoolMode>, 6> kPools = {{{"none", PoolMode::kNone},
                                                    {"avg", PoolMode::kAvg},
                                                    {"max", PoolMode::kMax},
                                                    {"forward", PoolMode::kForward},
                                                    {"half_forward", PoolMode::kHalfForward},
                                                    {"adaptive", PoolMode::kAdaptive}}};

template <class Table>
std::string names_of(const Table& table) {
  std::string names;
  for (const auto& entry : table) names += (names.empty() ? "" : ", ") + std::string(entry.name);
  return names;
}

Status bad_field(std::string_view field, const std::string& message) {
  return invalid_argument("cache." + std::string(field) + ": " + message)
      .with_param("cache." + std::string(field));
}

// The first error is kept.
class Reader {
 public:
  template <class Table, class T>
  void name(std::string_view field, const std::optional<std::string>& given, const Table& table, T& out) {
    if (!given || !status_.ok()) return;
    for (const auto& entry : table) {
      if (entry.name == *given) {
        out = entry.value;
        return;
      }
    }
    fail(field, "'" + given->substr(0, 64) + "' is not one of " + names_of(table));
  }
  template <class T>
  void integer(std::string_view field, const std::optional<int64_t>& given, int64_t low, int64_t high,
               T& out) {
    if (!given || !status_.ok()) return;
    if (*given < low || *given > high) {
      fail(field, "is " + std::to_string(*given) + ", must be between " + std::to_string(low) + " and " +
                      std::to_string(high));
      return;
    }
    out = static_cast<int32_t>(*given);
  }
  // (low, high]
  template <class T>
  void number(std::string_view field, const std::optional<double>& given, double low, double high, T& out) {
    if (!given || !status_.ok()) return;
    if (!(*given > low && *given <= high)) {
      fail(field,
           "is " + shortest(*given) + ", must be above " + shortest(low) + " and at most " + shortest(high));
      return;
    }
    out = static_cast<typename std::remove_reference_t<decltype(value_of(out))>>(*given);
  }
  void fail(std::string_view field, const std::string& message) {
    if (status_.ok()) status_ = bad_field(field, message);
  }
  const Status& status() const { return status_; }

 private:
  static float value_of(float) { return 0; }
  static double value_of(const std::optional<double>&) { return 0; }
  static std::string shortest(double x) {
    char text[32];
    const int length = std::snprintf(text, sizeof(text), "%g", x);
    return {text, static_cast<size_t>(length)};
  }
  Status status_;
};

bool is_snapkv_family(PolicyKind policy) {
  return policy == PolicyKind::kSnapkv || policy == PolicyKind::kPyramidkv || policy == PolicyKind::kAdakv;
}

// Allocations that a policy can work with: tova keeps one set for the layer, so its heads must be equal.
bool takes(PolicyKind policy, Allocation allocation) {
  if (allocation == Allocation::kUniform)
    return policy != PolicyKind::kPyramidkv && policy != PolicyKind::kAdakv;
  if (allocation == Allocation::kAda) {
    return policy == PolicyKind::kRestkv || policy == PolicyKind::kSnapkv || policy == PolicyKind::kAdakv;
  }
  if (policy == PolicyKind::kAdakv) return false;
  if (policy == PolicyKind::kPyramidkv) return allocation == Allocation::kPyramid;
  return policy != PolicyKind::kTova || allocation == Allocation::kPyramid;
}

void fill_preset(CacheSettings& s) {
  if (is_snapkv_family(s.policy)) {
    s.sinks = 0;
    s.pool = PoolMode::kAvg;
  }
  if (s.policy == PolicyKind::kRestkv && s.preset == Preset::kPaper) {
    s.sinks = 0;
    s.indicator = Indicator::kAfter;
    s.reduce = QueryReduce::kEma;
    s.pool = PoolMode::kAdaptive;
  }
}

// What the smallest legal budget consists of, for people.
std::string parts_of_budget(const CacheSettings& s, int32_t budget) {
  const PolicyRecipe recipe = make_recipe(s, budget, 1);
  std::string text = std::to_string(recipe.sinks) + " sinks + " + std::to_string(recipe.recent) + " window";
  const int32_t pins = protected_rows(s, budget) - recipe.sinks - recipe.recent;
  if (pins > 0) text += " + " + std::to_string(pins) + " pinned";
  return text + " + " + std::to_string(stride_of(s, budget)) + " stride";
}

bool is_legal(const CacheSettings& s, int32_t budget) {
  const int32_t pinned = pin_rows(s, budget) + s.pin_head + s.pin_tail;
  const int32_t cut = s.decode == DecodeMode::kGrow ? 1 : stride_of(s, budget);
  return protected_rows(s, budget) + cut <= budget && pinned <= budget / 2;
}

}  // namespace

ProbeSpec probe_named(std::string_view name) {
  if (name == "none") return {};
  if (name == "facts") return {.kind = ProbeSpec::Kind::kFacts, .text = {}, .tokens = {}};
  if (name == "summary") return {.kind = ProbeSpec::Kind::kSummary, .text = {}, .tokens = {}};
  return {.kind = ProbeSpec::Kind::kText, .text = std::string(name), .tokens = {}};
}

std::string_view probe_text(const ProbeSpec& probe) {
  switch (probe.kind) {
    case ProbeSpec::Kind::kFacts:
      return "\n\nQuestion: Which names, numbers, codes, dates and facts are given in the text above? "
             "Answer: "
             "According to the text, the";
    case ProbeSpec::Kind::kSummary:
      return "\n\nPlease summarise the text above in two or three sentences. Summary: The text";
    case ProbeSpec::Kind::kText: return probe.text;
    case ProbeSpec::Kind::kNone:
    case ProbeSpec::Kind::kTokens: return {};
  }
  return {};
}

CacheRequest overlay(const CacheRequest& base, const CacheRequest& top) {
  CacheRequest out = base;
  const auto take = [](auto& to, const auto& from) {
    if (from) to = from;
  };
  take(out.profile, top.profile);
  take(out.policy, top.policy);
  take(out.preset, top.preset);
  take(out.allocation, top.allocation);
  take(out.decode, top.decode);
  take(out.group, top.group);
  take(out.indicator, top.indicator);
  take(out.reduce, top.reduce);
  take(out.pool, top.pool);
  take(out.budget, top.budget);
  take(out.compress_at, top.compress_at);
  take(out.window, top.window);
  take(out.sinks, top.sinks);
  take(out.stride, top.stride);
  take(out.kernel, top.kernel);
  take(out.pin, top.pin);
  take(out.pin_head, top.pin_head);
  take(out.pin_tail, top.pin_tail);
  take(out.scale, top.scale);
  take(out.fraction, top.fraction);
  take(out.tau, top.tau);
  take(out.alpha, top.alpha);
  take(out.normalize, top.normalize);
  take(out.output_projection, top.output_projection);
  take(out.trace, top.trace);
  take(out.probe, top.probe);
  return out;
}

Result<CacheSettings> resolve_cache_settings(const CacheRequest& request, const CacheLimits& limits) {
  CacheSettings s;
  Reader read;
  read.name("policy", request.policy, kPolicies, s.policy);
  read.name("preset", request.preset, kPresets, s.preset);
  fill_preset(s);
  constexpr int64_t kMaxRows = 1 << 20;
  read.name("decode", request.decode, kDecodeModes, s.decode);
  read.integer("window", request.window, 1, 1024, s.window);
  read.integer("sinks", request.sinks, 0, 1024, s.sinks);
  read.integer("stride", request.stride, 1, kMaxRows, s.stride);
  read.name("group", request.group, kGroups, s.group);
  read.name("indicator", request.indicator, kIndicators, s.indicator);
  if (s.indicator == Indicator::kAfter) s.reduce = QueryReduce::kEma;
  read.name("reduce", request.reduce, kReduces, s.reduce);
  read.name("pool", request.pool, kPools, s.pool);
  read.integer("kernel", request.kernel, 1, 255, s.kernel);
  read.integer("scale", request.scale, 1, 1 << 30, s.scale);
  read.number("tau", request.tau, 0.0, 8.0, s.tau);
  read.number("alpha", request.alpha, 0.0, 1.0, s.alpha);
  read.number("fraction", request.fraction, 0.0, 1.0, s.fraction);
  read.integer("compress_at", request.compress_at, 1, limits.max_model_len, s.compress_at);
  read.integer("pin", request.pin, 0, kMaxRows, s.pin);
  read.integer("pin_head", request.pin_head, 0, kMaxRows, s.pin_head);
  read.integer("pin_tail", request.pin_tail, 0, kMaxRows, s.pin_tail);
  s.normalize = request.normalize.value_or(s.normalize);
  s.output_projection = request.output_projection.value_or(s.output_projection);
  s.trace = request.trace.value_or(s.trace);

  if (s.policy == PolicyKind::kPyramidkv) s.allocation = Allocation::kPyramid;
  if (s.policy == PolicyKind::kAdakv) s.allocation = Allocation::kAda;
  // The measured default goes with the measured policy; rivals and `paper` stay as published unless asked.
  if (limits.has_calibration && s.policy == PolicyKind::kRestkv && s.preset == Preset::kDefault) {
    s.allocation = Allocation::kCalibrated;
  }
  const Allocation by_default = s.allocation;
  read.name("allocation", request.allocation, kAllocations, s.allocation);
  if (s.policy == PolicyKind::kRestkv && s.preset == Preset::kDefault && s.compress_at) {
    s.probe.kind = ProbeSpec::Kind::kFacts;
  }
  if (request.probe && s.policy == PolicyKind::kRestkv) {
    s.probe = *request.probe;
    s.is_probe_default = false;
  }
  if (!read.status().ok()) return read.status();

  if (s.decode == DecodeMode::kGrow && !limits.allow_grow) {
    return bad_field("decode", "'grow' is not allowed by this server's settings (cache.allow_grow)");
  }
  if (s.trace != TraceMode::kOff && !limits.allow_trace) {
    return bad_field("trace", "is not allowed by this server's settings (cache.allow_trace)");
  }
  if (s.indicator == Indicator::kAfter && s.reduce != QueryReduce::kEma && s.reduce != QueryReduce::kMean) {
    return bad_field("reduce", "indicator 'after' takes ema or mean");
  }
  const bool is_centred =
      s.pool == PoolMode::kAvg || s.pool == PoolMode::kMax || s.pool == PoolMode::kAdaptive;
  if (is_centred && s.kernel.value_or(5) % 2 == 0) {
    return bad_field("kernel", "is " + std::to_string(*s.kernel) + ", must be odd for a centred pool");
  }
  if (is_snapkv_family(s.policy) && s.pool != PoolMode::kAvg && s.pool != PoolMode::kMax &&
      s.pool != PoolMode::kNone) {
    return bad_field("pool", std::string(policy_name(s.policy)) + " takes none, avg or max");
  }
  if (request.allocation && !takes(s.policy, s.allocation)) {
    if (s.policy != PolicyKind::kFull) {
      return bad_field("allocation", "'" + *request.allocation + "' does not go with " +
                                         std::string(policy_name(s.policy)));
    }
    s.allocation = by_default;
  }
  if (s.allocation == Allocation::kCalibrated && !limits.has_calibration) {
    return bad_field("allocation", "this model has no allocation file; make one with `restkv calibrate`");
  }
  if (s.policy == PolicyKind::kH2o && s.stride && *s.stride > s.window) {
    return bad_field("stride", "is " + std::to_string(*s.stride) + ", h2o takes at most the window of " +
                                   std::to_string(s.window));
  }
  if (s.probe.kind == ProbeSpec::Kind::kTokens &&
      (s.probe.tokens.empty() || s.probe.tokens.size() > kMaxProbeTokens)) {
    return bad_field("probe", "has " + std::to_string(s.probe.tokens.size()) +
                                  " tokens, must be between 1 and " + std::to_string(kMaxProbeTokens));
  }
  if (s.probe.kind == ProbeSpec::Kind::kText && (s.probe.text.empty() || s.probe.text.size() > 4096)) {
    return bad_field("probe",
                     "has " + std::to_string(s.probe.text.size()) + " bytes, must be between 1 and 4096");
  }

  const int64_t budget = request.budget.value_or(std::min<int64_t>(s.budget, limits.max_budget));
  if (s.policy == PolicyKind::kFull) {
    s.budget = static_cast<int32_t>(std::clamp<int64_t>(budget, 1, limits.max_budget));
    return s;
  }
  const int32_t smallest = smallest_budget(s);
  if (smallest > limits.max_budget) {
    return bad_field("budget",
                     "must be at least " + std::to_string(smallest) + " (" + parts_of_budget(s, smallest) +
                         ") for these settings; this server allows " + std::to_string(limits.max_budget));
  }
  if (budget < smallest || budget > limits.max_budget) {
    return bad_field("budget", "is " + std::to_string(budget) + ", must be between " +
                                   std::to_string(smallest) + " (" + parts_of_budget(s, smallest) + ") and " +
                                   std::to_string(limits.max_budget));
  }
  if (!is_legal(s, static_cast<int32_t>(budget))) {
    return bad_field("budget", "is " + std::to_string(budget) + ", has no room for " +
                                   parts_of_budget(s, static_cast<int32_t>(budget)) + "; one more has");
  }
  s.budget = static_cast<int32_t>(budget);
  return s;
}

int32_t default_stride(PolicyKind policy, int32_t window, int32_t budget) {
  const int32_t stride = std::max(1, std::min(64, budget / 16));
  return policy == PolicyKind::kH2o ? std::min(stride, window) : stride;
}

int32_t stride_of(const CacheSettings& settings, int32_t budget) {
  const int32_t stride = settings.stride.value_or(default_stride(settings.policy, settings.window, budget));
  // Under `grow` windowed layers alone are cut in decode, and a budget is legal that has room for one row beside the protected.
  if (settings.decode == DecodeMode::kEvict) return stride;
  return std::clamp(budget - protected_rows(settings, budget), 1, stride);
}

int32_t pin_rows(const CacheSettings& settings, int32_t budget) {
  if (settings.policy != PolicyKind::kRestkv || settings.decode == DecodeMode::kGrow) return 0;
  if (settings.pin) return *settings.pin;
  if (settings.preset != Preset::kDefault || settings.pool != PoolMode::kHalfForward || budget < 256)
    return 0;
  // By default pins never make a budget illegal.
  const int32_t others = std::max(settings.sinks, settings.pin_head) + settings.pin_tail + settings.window +
                         stride_of(settings, budget);
  return std::max(
      0, std::min({budget / 4, budget / 2 - settings.pin_head - settings.pin_tail, budget - others}));
}

int32_t smallest_budget(const CacheSettings& settings) {
  if (settings.policy == PolicyKind::kFull) return 1;
  // Above this everything is legal: each term once, doubled because of the shares of C (h2o's half, the pins' half).
  const int64_t enough =
      2 * (int64_t{settings.sinks} + settings.window + settings.pin_head + settings.pin_tail +
           settings.pin.value_or(0) + settings.stride.value_or(64) + 4);
  // Below this nothing is: what is protected and cut at C = 1 only grows with C. The rest of the way is short.
  const int64_t pinned = int64_t{pin_rows(settings, 1)} + settings.pin_head + settings.pin_tail;
  const int64_t cut = settings.decode == DecodeMode::kGrow ? 1 : stride_of(settings, 1);
  int64_t low = std::max(2 * pinned, protected_rows(settings, 1) + cut);
  while (low < enough && !is_legal(settings, static_cast<int32_t>(low))) ++low;
  return static_cast<int32_t>(low);
}

int64_t prefill_tokens(const CacheSettings& settings, int64_t prompt_len) {
  return std::min<int64_t>(settings.compress_at.value_or(INT32_MAX), prompt_len);
}

ProbeSpec probe_for_prompt(const CacheSettings& settings, int64_t prompt_len) {
  if (settings.is_probe_default && prefill_tokens(settings, prompt_len) == prompt_len) return {};
  return settings.probe;
}

int32_t budget_for_prompt(const CacheSettings& settings, int64_t prompt_len) {
  // `full` keeps everything, whatever else was asked for.
  if (!settings.fraction || settings.policy == PolicyKind::kFull) return settings.budget;
  const double rows = std::ceil(*settings.fraction * static_cast<double>(prompt_len));
  const int32_t smallest = std::min(smallest_budget(settings), settings.budget);
  auto budget = static_cast<int32_t>(std::clamp<double>(rows, smallest, settings.budget));
  // h2o's half and stride can both grow from one C to the next: what is legal is not all in one piece.
  while (budget < settings.budget && !is_legal(settings, budget)) ++budget;
  return budget;
}

std::string_view policy_name(PolicyKind policy) {
  for (const auto& entry : kPolicies) {
    if (entry.value == policy) return entry.name;
  }
  return {};
}

}  // namespace restkv

#include "server/eval/contender.h"

namespace restkv {
namespace {

Result<CacheSettings> resolve(CacheRequest request, const ContenderPlan& plan, int32_t budget,
                              const EvalContext& context) {
  if (request.decode || request.compress_at)
    return invalid_argument("decode and compress_at follow from --mode");
  request.budget = budget;
  request.decode = plan.decode == DecodeMode::kGrow ? "grow" : "evict";
  // What is cut is the whole prompt of the run; the setting only brings its default, the probe.
  if (plan.is_agnostic) request.compress_at = plan.prompt_len;
  Result<CacheSettings> settings = resolve_cache_settings(request, context.limits);
  if (!settings.ok()) return settings;
  settings->compress_at.reset();
  if (plan.is_agnostic) settings->is_probe_default = false;
  if (const std::string_view text = probe_text(settings->probe); !text.empty())
    settings->probe.tokens = context.encode(text);
  return settings;
}

}  // namespace

Result<CacheSettings> contender_settings(const GroupRunner& runner, const PolicyVariant& variant,
                                         const ContenderPlan& plan, const EvalContext& context) {
  Result<CacheSettings> settings = resolve(variant.request, plan, plan.budget, context);
  if (!plan.equal_bytes || (settings.ok() && settings->policy == PolicyKind::kFull)) return settings;
  CacheRequest paper;
  paper.preset = "paper";
  const Result<CacheSettings> reference = resolve(paper, plan, plan.budget, context);
  if (!reference.ok()) return reference.status();
  const auto bytes_of = [&](const CacheSettings& s) {
    return runner.page_bytes(s, plan.prompt_len, plan.answer_len);
  };
  const int64_t room = bytes_of(*reference);
  if (settings.ok() && bytes_of(*settings) == room) return settings;
  Status last = settings.ok() ? Status{} : settings.status();
  // A ring never outweighs more entries than that.
  for (int32_t other = plan.budget + 4 * reference->window; other > 0; --other) {
    settings = resolve(variant.request, plan, other, context);
    if (!settings.ok()) {
      last = settings.status();
      if (other < plan.budget) break;
      continue;
    }
    if (bytes_of(*settings) <= room) return settings;
  }
  return invalid_argument("no budget has the bytes of restkv:paper at " + std::to_string(plan.budget) +
                          (last.ok() ? "" : ": " + last.message()));
}

}  // namespace restkv

// restkv eval fidelity|passkey MODEL --texts DIR: what policies do to the model's next-token distributions, and
// what it still finds.
#include <cmath>
#include <cstdio>

#include <nlohmann/json.hpp>

#include "server/cli/allocation_path.h"
#include "server/cli/model_loading.h"
#include "server/cli/terminal.h"
#include "server/cli/verbs.h"
#include "server/eval/fidelity.h"
#include "server/eval/passkey.h"
#include "server/eval/texts.h"

namespace restkv {
namespace {

using Json = nlohmann::ordered_json;

Json number_or_null(double x) { return std::isfinite(x) ? Json(x) : Json(); }

Json row_json(const FidelityRow& row) {
  const auto ratio = [](const std::optional<PairedRatio>& r) {
    return r ? number_or_null(r->ratio) : Json();
  };
  const auto interval = [](const std::optional<PairedRatio>& r) {
    return r ? Json::array({number_or_null(r->low), number_or_null(r->high)}) : Json();
  };
  const auto wins = [](const std::optional<PairedRatio>& r) { return r ? Json(r->wins) : Json(); };
  return {{"policy", row.policy},
          {"preset", row.preset.empty() ? Json() : Json(row.preset)},
          {"variant", row.variant},
          {"mode", eval_mode_name(row.mode)},
          {"budget", row.budget},
          {"budget_used", row.budget_used},
          {"bytes", row.bytes},
          {"kept", row.kept},
          {"n", row.n},
          {"kl_mean", row.kl_mean},
          {"kl_p95", row.kl_p95},
          {"top1", row.top1},
          {"dnll", row.dnll},
          {"ratio_paper", ratio(row.paper)},
          {"ratio_snapkv", ratio(row.snapkv)},
          {"ci", interval(row.paper)},
          {"ci_snapkv", interval(row.snapkv)},
          {"wins_paper", wins(row.paper)},
          {"wins_snapkv", wins(row.snapkv)}};
}

void print_rows(const FidelityRun& run, const FidelityOptions& options) {
  std::printf(
      "%d texts, prompt %d, %d tokens scored; KL in nats a token; ratios of mean KL with 95 %% intervals\n",
      run.num_texts, options.prompt_len, options.continue_len);
  std::printf("%-8s %6s  %-34s %6s %9s %8s %8s %6s %8s  %-24s %-24s\n", "mode", "budget", "policy", "used",
              "KiB", "KL", "KL p95", "top-1", "dNLL", "to restkv:paper (wins)", "to snapkv (wins)");
  const auto ratio_text = [](const std::optional<PairedRatio>& r, int32_t n) -> std::string {
    char text[64];
    if (!r || !std::isfinite(r->ratio)) return "-";
    std::snprintf(text, sizeof(text), "%.3f [%.3f, %.3f] %d/%d", r->ratio, r->low, r->high, r->wins, n);
    return text;
  };
  for (const FidelityRow& row : run.rows) {
    std::printf("%-8s %6d  %-34s %6d %9.1f %8.4f %8.4f %6.3f %8.4f  %-24s %-24s\n",
                std::string(eval_mode_name(row.mode)).c_str(), row.budget, row.variant.c_str(),
                row.budget_used, static_cast<double>(row.bytes) / 1024, row.kl_mean, row.kl_p95, row.top1,
                row.dnll, ratio_text(row.paper, row.n).c_str(), ratio_text(row.snapkv, row.n).c_str());
  }
}

// What both evaluations work with.
struct Workbench {
  LoadedModel loaded;
  EvalContext context;
  std::vector<std::vector<int32_t>> slices;
  std::unique_ptr<GroupRunner> runner;
};

EvalContext context_of(const Tokenizer& tokenizer, int64_t vocab_size, const Settings& settings) {
  return {.prefix = tokenizer.encode("", {}),
          .limits = settings.cache.limits(),
          .vocab_size = vocab_size,
          .encode =
              [&tokenizer](std::string_view text) { return tokenizer.encode(text, {.add_special = false}); },
          .progress = {},
          .is_stopped = InterruptGuard::is_interrupted};
}

// Loads the model and its allocation, slices of `slice_len` tokens of the texts, and a runner for `num_settings` at once.
// run_len: the most tokens of one run, without the prefix that the tokenizer sets before a text.
Result<Workbench> prepare(Settings& settings, int64_t slice_len, int64_t run_len, int32_t num_settings) {
  Result<LoadedModel> loaded = load_model_and_tokenizer(settings);
  if (!loaded.ok()) return loaded.status();
  Workbench bench = {.loaded = *std::move(loaded), .context = {}, .slices = {}, .runner = nullptr};
  const Tokenizer& tokenizer = *bench.loaded.tokenizer;
  if (Status status = apply_allocation(*bench.loaded.model, settings); !status.ok()) return status;
  const Result<std::vector<int32_t>> tokens =
      read_texts(settings.eval.texts, tokenizer, TextPart::kMeasuring);
  if (!tokens.ok()) return Status(tokens.status().code(), "--texts: " + tokens.status().message());
  Result<std::vector<std::vector<int32_t>>> slices =
      cut_slices(*tokens, settings.eval.num_texts.value_or(24), slice_len);
  if (!slices.ok()) return slices.status();
  bench.slices = *std::move(slices);
  bench.context = context_of(tokenizer, bench.loaded.model->config.vocab_size, settings);
  EngineOptions engine = settings.engine;
  if (engine.max_model_len == 0)
    engine.max_model_len = run_len + static_cast<int64_t>(bench.context.prefix.size());
  Result<std::unique_ptr<GroupRunner>> runner = GroupRunner::make(bench.loaded.model, engine, num_settings);
  if (!runner.ok()) return runner.status();
  bench.runner = *std::move(runner);
  return bench;
}

int run_fidelity_verb(Settings settings) {
  const EvalSettings& eval = settings.eval;
  Result<std::vector<PolicyVariant>> variants = parse_variants(eval.policies);
  if (!variants.ok()) return fail("--policies: " + variants.status().message(), kExitUsage);
  Result<std::vector<EvalMode>> modes = parse_eval_modes(eval.modes.empty() ? "prefill,decode" : eval.modes);
  if (!modes.ok()) return fail("--mode: " + modes.status().message(), kExitUsage);
  const FidelityOptions options = {
      .modes = *std::move(modes),
      .budgets = eval.budgets,
      .prompt_len = static_cast<int32_t>(settings.output.prompt_len.value_or(1536)),
      .continue_len = eval.continue_len,
      .equal_bytes = eval.equal == "bytes"};
  Result<Workbench> bench =
      prepare(settings, fidelity_slice_len(options), fidelity_slice_len(options) + kMaxProbeTokens,
              fidelity_settings(options, variants->size()));
  if (!bench.ok()) return fail(bench.status());
  const InterruptGuard guard;
  Result<FidelityRun> run = Status(StatusCode::kInternal, "");
  {
    ProgressBar bar("measuring", "tokens");
    bench->context.progress = [&](int64_t done, int64_t total) { bar.update(done, total); };
    run = run_fidelity(*bench->runner, bench->slices, *variants, options, bench->context);
  }
  if (!run.ok()) return fail(run.status());
  if (settings.output.json) {
    Json rows = Json::array();
    for (const FidelityRow& row : run->rows) rows.push_back(row_json(row));
    const Json json = {{"eval", "fidelity"},
                       {"model", bench->loaded.model->config.name},
                       {"texts", run->num_texts},
                       {"prompt_len", options.prompt_len},
                       {"continue_len", options.continue_len},
                       {"equal", eval.equal},
                       {"rows", rows}};
    std::puts(json.dump(2).c_str());
  } else {
    print_rows(*run, options);
  }
  return InterruptGuard::is_interrupted() ? kExitInterrupted : kExitOk;
}

int run_passkey_verb(Settings settings) {
  const EvalSettings& eval = settings.eval;
  const Result<std::vector<PolicyVariant>> variants = parse_variants(eval.policies);
  if (!variants.ok()) return fail("--policies: " + variants.status().message(), kExitUsage);
  Result<std::vector<PasskeyMode>> modes =
      parse_passkey_modes(eval.modes.empty() ? "window,agnostic" : eval.modes);
  if (!modes.ok()) return fail("--mode: " + modes.status().message(), kExitUsage);
  const PasskeyOptions options = {
      .modes = *std::move(modes),
      .budgets = eval.budgets,
      .digits = eval.digits,
      .prompt_len = static_cast<int32_t>(settings.output.prompt_len.value_or(1536)),
      .equal_bytes = eval.equal == "bytes"};
  Result<Workbench> bench = prepare(settings, passkey_slice_len(options), passkey_run_len(options),
                                    passkey_settings(options, variants->size()));
  if (!bench.ok()) return fail(bench.status());
  const InterruptGuard guard;
  Result<std::vector<PasskeyRow>> rows = Status(StatusCode::kInternal, "");
  {
    ProgressBar bar("searching", "prompts");
    bench->context.progress = [&](int64_t done, int64_t total) { bar.update(done, total); };
    rows = run_passkey(*bench->runner, *bench->loaded.tokenizer, bench->slices, *variants, options,
                       bench->context);
  }
  if (!rows.ok()) return fail(rows.status());
  if (!settings.output.json)
    std::printf("%-12s %6s %6s  %-34s %6s %9s  %s\n", "mode", "digits", "budget", "policy", "used", "KiB",
                "found");
  Json list = Json::array();
  for (const PasskeyRow& row : *rows) {
    const std::string mode(passkey_mode_name(row.mode));
    if (!settings.output.json) {
      std::printf("%-12s %6d %6d  %-34s %6d %9.1f  %d of %d\n", mode.c_str(), row.digits, row.budget,
                  row.variant.c_str(), row.budget_used, static_cast<double>(row.bytes) / 1024, row.found,
                  row.n);
      continue;
    }
    list.push_back({{"policy", row.policy},
                    {"variant", row.variant},
                    {"mode", mode},
                    {"digits", row.digits},
                    {"budget", row.budget == 0 ? Json() : Json(row.budget)},
                    {"budget_used", row.budget == 0 ? Json() : Json(row.budget_used)},
                    {"bytes", row.bytes},
                    {"n", row.n},
                    {"found", row.found}});
  }
  if (settings.output.json) {
    const Json json = {{"eval", "passkey"},
                       {"model", bench->loaded.model->config.name},
                       {"prompt_len", options.prompt_len},
                       {"equal", eval.equal},
                       {"rows", list}};
    std::puts(json.dump(2).c_str());
  }
  return InterruptGuard::is_interrupted() ? kExitInterrupted : kExitOk;
}

}  // namespace

int run_eval(const Invocation& invocation) {
  const Settings& settings = invocation.settings();
  if (settings.eval.texts.empty()) return fail("--texts is missing: a folder of text files", kExitUsage);
  if (invocation.arguments[0] == "fidelity") return run_fidelity_verb(settings);
  if (invocation.arguments[0] == "passkey") return run_passkey_verb(settings);
  return fail("unknown evaluation '" + invocation.arguments[0] + "' (fidelity, passkey)", kExitUsage);
}

}  // namespace restkv

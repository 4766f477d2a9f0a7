// restkv complete MODEL [PROMPT]: the answer streams to stdout, figures go to stderr.
#include "server/cli/allocation_path.h"
#include "server/cli/answer.h"
#include "server/cli/model_loading.h"
#include "server/cli/terminal.h"
#include "server/cli/verbs.h"
#include "server/openai/completion_job.h"
#include "server/openai/probe_tokens.h"

namespace restkv {
namespace {

constexpr int64_t kMaxTokens = 128;  // unless --max-tokens says more

Request request_of(const Settings& settings, const Engine& engine, const LoadedModel& model,
                   const std::string& prompt) {
  const AnswerSettings& answer = settings.answer;
  Request request;
  request.id = "cmpl-terminal";
  request.prompt = model.tokenizer->encode(prompt, {});
  request.max_tokens = answer_room(engine, request.prompt.size(), answer.max_tokens.value_or(kMaxTokens));
  SamplingParams greedy;
  greedy.temperature = 0;
  request.sampling = sampling_of(answer, greedy);
  request.ignore_eos = answer.ignore_eos;
  request.cache = settings.engine.cache;
  if (!answer.ignore_eos)
    request.stop_token_ids = end_tokens_of(*model.tokenizer, model.model->config.vocab_size);
  return request;
}

}  // namespace

int run_complete(const Invocation& invocation) {
  Settings settings = invocation.settings();
  const Result<LoadedModel> loaded = load_model_and_tokenizer(settings);
  if (!loaded.ok()) return fail(loaded.status());
  if (Status status = apply_allocation(*loaded->model, settings); !status.ok()) return fail(status);
  const Tokenizer& tokenizer = *loaded->tokenizer;
  const Result<std::string> prompt =
      invocation.arguments.empty() ? read_standard_input() : Result<std::string>(invocation.arguments[0]);
  if (!prompt.ok()) return fail(prompt.status());
  const Result<std::unique_ptr<Engine>> engine = Engine::start(loaded->model, settings.engine);
  if (!engine.ok()) return fail(engine.status());

  Request request = request_of(settings, **engine, *loaded, *prompt);
  const Status probed = tokenize_probe(request.cache, static_cast<int64_t>(request.prompt.size()), tokenizer);
  if (!probed.ok()) return fail(probed);

  const InterruptGuard guard;
  const Result<Answer> answer = print_answer(**engine, std::move(request), tokenizer);
  if (!answer.ok()) return fail(answer.status());
  print_figures(answer->finish);
  return InterruptGuard::is_interrupted() ? kExitInterrupted : kExitOk;
}

}  // namespace restkv

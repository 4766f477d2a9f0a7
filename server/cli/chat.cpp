// restkv chat MODEL: a conversation on the terminal. Answers go to stdout, everything else to stderr; a line of input is a
// message or a command. Without a terminal (a pipe) there is no prompt, and the end of the input ends the program.
#include <cstdio>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <unistd.h>

#include "server/cli/allocation_path.h"
#include "server/cli/answer.h"
#include "server/cli/line_reader.h"
#include "server/cli/model_loading.h"
#include "server/cli/terminal.h"
#include "server/cli/verbs.h"
#include "server/config/nearest_name.h"
#include "server/config/quantity.h"
#include "server/openai/completion_job.h"
#include "server/openai/probe_tokens.h"

namespace restkv {
namespace {

constexpr int64_t kMaxTokens = 4096;  // unless --max-tokens says otherwise

constexpr std::string_view kCommands[] = {"/budget", "/exit", "/help", "/reset", "/system"};

constexpr const char* kHelp =
    "/budget N       entries of the cache that a (layer, KV head) keeps from now on; full: all of them\n"
    "/budget         what it is now\n"
    "/reset          forget the conversation (the system message stays)\n"
    "/system TEXT    another system message, and forget the conversation\n"
    "/exit           end; so does Ctrl-D\n"
    "/help           this\n"
    "A line that ends with \\ goes on in the next one. Ctrl-C stops an answer, not the program.\n";

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

class Conversation {
 public:
  Conversation(const Settings& settings, const LoadedModel& model, Engine& engine)
      : settings_(settings),
        model_(model),
        engine_(engine),
        defaults_(settings.cache.defaults),
        cache_(settings.engine.cache),
        system_(settings.answer.system) {
    SamplingParams sampling;
    sampling.temperature = kTemperature;
    sampling_ = sampling_of(settings.answer, default_sampling(model.model->config.sampling, sampling));
    if (!settings.answer.seed)
      sampling_.seed = (uint64_t{std::random_device()()} << 32) | std::random_device()();
  }

  // Takes a line. False: the program ends.
  bool take(std::string_view line);
  bool has_failed() const { return has_failed_; }

 private:
  static constexpr float kTemperature = 0.7f;  // where neither flags nor the model's files say one

  void report(const Status& status) {
    has_failed_ = true;
    std::fprintf(stderr, "%s\n", status.message().c_str());
  }
  bool run_command(std::string_view line);
  void set_budget(std::string_view text);
  void print_budget() const;
  void answer(std::string_view text);
  Result<Request> request_of(const RequestJson& messages) const;

  const Settings& settings_;
  const LoadedModel& model_;
  Engine& engine_;
  CacheRequest defaults_;
  CacheSettings cache_;
  SamplingParams sampling_;
  std::string system_;
  RequestJson history_ = RequestJson::array();  // without the system message
  bool has_failed_ = false;
};

bool Conversation::take(std::string_view line) {
  line = trimmed(line);
  if (line.empty()) return true;
  if (line.starts_with('/')) return run_command(line);
  answer(line);
  return true;
}

bool Conversation::run_command(std::string_view line) {
  const size_t space = line.find_first_of(" \t");
  const std::string_view name = line.substr(0, space);
  const std::string_view rest =
      space == std::string_view::npos ? std::string_view() : trimmed(line.substr(space));
  if (name == "/exit" || name == "/quit") return false;
  if (name == "/help") {
    std::fputs(kHelp, stderr);
  } else if (name == "/reset") {
    history_ = RequestJson::array();
    std::fputs("the conversation begins anew\n", stderr);
  } else if (name == "/system") {
    system_ = rest;
    history_ = RequestJson::array();
    std::fputs(
        system_.empty() ? "no system message\n" : "another system message; the conversation begins anew\n",
        stderr);
  } else if (name == "/budget") {
    if (!rest.empty()) set_budget(rest);
    print_budget();
  } else {
    has_failed_ = true;
    std::fprintf(stderr, "unknown command '%s'%s; /help shows all of them\n", std::string(name).c_str(),
                 suggestion(name, kCommands).c_str());
  }
  return true;
}

void Conversation::set_budget(std::string_view text) {
  CacheRequest wanted;
  if (text == "full") {
    wanted.policy = "full";
  } else {
    const Result<int64_t> budget = parse_count(text);
    if (!budget.ok()) return report(budget.status());
    wanted.budget = *budget;
    if (cache_.policy == PolicyKind::kFull) wanted.policy = policy_name(PolicyKind::kRestkv);
  }
  const CacheRequest overlaid = overlay(defaults_, wanted);
  const Result<CacheSettings> cache = resolve_cache_settings(overlaid, settings_.cache.limits());
  if (!cache.ok()) return report(cache.status());
  defaults_ = overlaid;
  cache_ = *cache;
}

void Conversation::print_budget() const {
  if (cache_.policy == PolicyKind::kFull) {
    std::fputs("policy full: nothing is evicted\n", stderr);
  } else {
    std::fprintf(stderr, "policy %s, budget %d entries a (layer, KV head)\n",
                 std::string(policy_name(cache_.policy)).c_str(), cache_.budget);
  }
}

Result<Request> Conversation::request_of(const RequestJson& messages) const {
  ChatPrompt chat;
  chat.input.messages = messages;
  const Result<RenderedPrompt> prompt = render_chat(
      std::move(chat), {model_.chat_format.get(), render_limits(engine_.memory_plan().max_model_len)});
  if (!prompt.ok()) return prompt.status();
  Request request;
  request.id = "chatcmpl-terminal";
  request.prompt = encode_chat(*prompt, *model_.tokenizer, false);
  request.max_tokens =
      answer_room(engine_, request.prompt.size(), settings_.answer.max_tokens.value_or(kMaxTokens));
  request.sampling = sampling_;
  request.cache = cache_;
  const Status probed =
      tokenize_probe(request.cache, static_cast<int64_t>(request.prompt.size()), *model_.tokenizer);
  if (!probed.ok()) return probed;
  request.ignore_eos = settings_.answer.ignore_eos;
  if (!request.ignore_eos)
    request.stop_token_ids = end_tokens_of(*model_.tokenizer, model_.model->config.vocab_size);
  return request;
}

void Conversation::answer(std::string_view text) {
  RequestJson messages = RequestJson::array();
  if (!system_.empty()) messages.push_back({{"role", "system"}, {"content", system_}});
  for (const RequestJson& message : history_) messages.push_back(message);
  const RequestJson question = {{"role", "user"}, {"content", std::string(text)}};
  messages.push_back(question);
  Result<Request> request = request_of(messages);
  if (!request.ok()) return report(request.status());
  ++sampling_.seed;  // the same question asked again may have another answer

  InterruptGuard::clear();
  const Result<Answer> answer = print_answer(engine_, *std::move(request), *model_.tokenizer);
  if (!answer.ok()) {
    report(answer.status());
    if (answer.status().reason() == "context_length_exceeded")
      std::fputs("the conversation does not fit the context any more: /reset begins anew\n", stderr);
    return;
  }
  print_figures(answer->finish);
  history_.push_back(question);
  history_.push_back({{"role", "assistant"}, {"content", answer->text}});
}

}  // namespace

int run_chat(const Invocation& invocation) {
  Settings settings = invocation.settings();
  const Result<LoadedModel> loaded = load_model_and_tokenizer(settings);
  if (!loaded.ok()) return fail(loaded.status());
  if (Status status = apply_allocation(*loaded->model, settings); !status.ok()) return fail(status);
  if (const Status status = loaded->chat_format->status(); !status.ok()) return fail(status);
  const Result<std::unique_ptr<Engine>> engine = Engine::start(loaded->model, settings.engine);
  if (!engine.ok()) return fail(engine.status());

  Conversation conversation(settings, *loaded, **engine);
  const bool is_terminal = ::isatty(STDIN_FILENO) == 1;
  if (is_terminal) {
    std::fprintf(stderr, "%s, template from %s. /help shows the commands, Ctrl-D ends.\n",
                 loaded->model->config.name.c_str(), loaded->chat_format->origin().c_str());
  }
  const InterruptGuard guard(InterruptGuard::Mode::kEach);
  LineReader reader(STDIN_FILENO);
  std::string message;
  for (;;) {
    if (is_terminal) std::fputs(message.empty() ? "> " : "| ", stderr);
    std::string line;
    const LineReader::End end = reader.read(line);
    if (end == LineReader::End::kInterrupted) {
      message.clear();
      std::fputs("\n(/exit or Ctrl-D ends)\n", stderr);
      continue;
    }
    if (end == LineReader::End::kEndOfInput && line.empty() && message.empty()) break;
    message += line;
    if (message.ends_with('\\') && end == LineReader::End::kLine) {
      message.back() = '\n';
      continue;
    }
    const bool goes_on = conversation.take(message);
    message.clear();
    if (!goes_on || end == LineReader::End::kEndOfInput) break;
  }
  if (is_terminal) std::fputs("\n", stderr);
  return conversation.has_failed() && !is_terminal ? kExitFailure : kExitOk;
}

}  // namespace restkv

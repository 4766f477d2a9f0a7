// Any bytes as the body of POST /v1/completions, /v1/chat/completions, /tokenize, /detokenize and /apply-template: an error,
// or requests within their bounds whose answers are JSON, whatever text the tokens make.
#include <cstdint>
#include <string_view>

#include "engine/model/json_reader.h"
#include "server/openai/completion_job.h"
#include "server/openai/completion_writer.h"
#include "server/openai/tokenize_api.h"
#include "tests/server/byte_tokenizer.h"

namespace {

using namespace restkv;

const ByteTokenizer kTokenizer({"hello", " wor", "ld"});
const ChatFormat kFormat(
    "a test",
    {{"default",
      "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}{{ m.tool_calls | tojson }}"
      "{{ eos_token }}{% endfor %}{{ tools | tojson }}{{ enable_thinking }}"}},
    "<s>", "</s>");

void check_json(std::string_view text) {
  JsonLimits limits;
  limits.allow_nul = true;  // a token may be that byte
  const Result<nlohmann::json> parsed = parse_json(text, limits);
  CHECK(parsed.ok()) << parsed.status().message() << ": " << text;
}

// The prompt's own tokens come back as the answer of the first choice.
void answer(const CompletionJob& job, Request request, const std::string& prompt_text) {
  RequestHandle handle(std::move(request), [] {});
  OutputAssembler assembler(kTokenizer, job.output, handle, prompt_text);
  const CompletionHeader header{job.api, "cmpl-1", "model", 1};
  CompletionEvents events(header, kTokenizer, job.include_usage);
  CompletionChoice whole{.index = 0, .output = {}, .options = &job.output};
  const auto take = [&](const TokenRecord& record) {
    OutputDelta delta;
    assembler.append(record, delta);
    std::string event;
    events.append_chunk(event, 0, delta, job.output);
    for (size_t at = 0; at < event.size();) {  // a chat's delta is up to three events
      const size_t end = event.find("\n\n", at);
      CHECK(end != std::string::npos && event.compare(at, 6, "data: ") == 0) << event;
      check_json(std::string_view(event).substr(at + 6, end - at - 6));
      at = end + 2;
    }
    whole.output.text += delta.text;
  };
  TokenRecord record;
  for (const int32_t token : handle.request.prompt) {
    record.token = token;
    take(record);
  }
  record.kind = TokenRecord::Kind::kFinish;
  record.finish = FinishReason::kStop;
  record.token = ByteTokenizer::kEos;
  take(record);
  check_json(completion_body(header, {&whole, 1}, assembler.usage(), kTokenizer));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  const CompletionContext context{.tokenizer = &kTokenizer,
                                  .served_name = "model",
                                  .max_model_len = 4096,
                                  .max_token_bytes = 5,
                                  .strict_params = false,
                                  .chat_format = &kFormat};
  for (const CompletionApi api : {CompletionApi::kText, CompletionApi::kChat}) {
    const Result<CompletionJob> job = read_completion_job(body, api, context);
    if (!job.ok()) {
      CHECK(!job.status().message().empty()) << "an error says what is wrong";
      continue;
    }
    CHECK(!job->requests.empty() && job->requests.size() == job->prompt_texts.size()) << job->requests.size();
    for (size_t i = 0; i < job->requests.size(); ++i) {
      const Request& request = job->requests[i];
      CHECK(request.num_choices >= 1 && request.num_choices <= 16) << request.num_choices;
      CHECK(request.max_tokens >= 0 && request.min_tokens <= request.max_tokens) << request.max_tokens;
      for (const int32_t token : request.prompt)
        CHECK(token >= 0 && token < kTokenizer.vocab_size()) << token;
      if (i < 4 && request.prompt.size() <= 256) answer(*job, request, job->prompt_texts[i]);
    }
  }
  const Result<RequestJson> json = parse_ordered_json(body);
  if (!json.ok()) return 0;
  const TokenizeContext texts{
      .tokenizer = &kTokenizer, .served_name = "model", .max_model_len = 4096, .chat_format = &kFormat};
  for (auto* make_body : {tokenize_body, detokenize_body, apply_template_body}) {
    const Result<std::string> answer = make_body(*json, texts);
    if (answer.ok()) check_json(*answer);
  }
  return 0;
}

// Any bytes as the body of POST /v1/completions, /tokenize and /detokenize: an error, or requests within their bounds whose
// answers are JSON, whatever text the tokens make.
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
  const CompletionEvents events({"cmpl-1", "model", 1}, kTokenizer, job.include_usage);
  CompletionChoice whole{.index = 0, .output = {}, .options = &job.output};
  const auto take = [&](const TokenRecord& record) {
    OutputDelta delta;
    assembler.append(record, delta);
    std::string event;
    events.append_chunk(event, 0, delta, job.output);
    CHECK(event.starts_with("data: ") && event.ends_with("\n\n")) << event;
    check_json(std::string_view(event).substr(6));
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
  check_json(completion_body({"cmpl-1", "model", 1}, {&whole, 1}, assembler.usage(), kTokenizer));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  const CompletionContext context{.tokenizer = &kTokenizer,
                                  .served_name = "model",
                                  .max_model_len = 4096,
                                  .max_token_bytes = 5,
                                  .strict_params = false};
  const Result<CompletionJob> job = read_completion_job(body, context);
  if (job.ok()) {
    CHECK(!job->requests.empty() && job->requests.size() == job->prompt_texts.size()) << job->requests.size();
    for (size_t i = 0; i < job->requests.size(); ++i) {
      const Request& request = job->requests[i];
      CHECK(request.num_choices >= 1 && request.num_choices <= 16) << request.num_choices;
      CHECK(request.max_tokens >= 0 && request.min_tokens <= request.max_tokens) << request.max_tokens;
      for (const int32_t token : request.prompt)
        CHECK(token >= 0 && token < kTokenizer.vocab_size()) << token;
      if (i < 4 && request.prompt.size() <= 256) answer(*job, request, job->prompt_texts[i]);
    }
  } else {
    CHECK(!job.status().message().empty()) << "an error says what is wrong";
  }
  Result<nlohmann::json> json = parse_json(body);
  if (!json.ok()) return 0;
  const Result<std::string> tokens = tokenize_body(*json, kTokenizer, 4096, "model", {});
  if (tokens.ok()) check_json(*tokens);
  const Result<std::string> text = detokenize_body(*std::move(json), kTokenizer, "model", {});
  if (text.ok()) check_json(*text);
  return 0;
}

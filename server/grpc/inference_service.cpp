// The methods of restkv.v1.Inference. Requests become the JSON of the HTTP API and go through its field tables.
#include "server/grpc/inference_service.h"

#include <restkv/v1/inference.grpc.pb.h>

#include <cmath>

#include "engine/model/json_reader.h"
#include "server/grpc/cache_trace_message.h"
#include "server/grpc/generation_call.h"
#include "server/grpc/message_json.h"
#include "server/grpc/unary_call.h"
#include "server/openai/completion_writer.h"
#include "server/openai/field_table.h"
#include "server/openai/json_text.h"
#include "server/openai/tokenize_api.h"

namespace restkv {
namespace {

using grpc::CallbackServerContext;
using json = RequestJson;

// What has types of its own here is one field over HTTP: cache.probe as token ids, cache.trace as "bins".
json body_of(const google::protobuf::Message& request) {
  json body = json_of(request);
  const auto cache = body.find("cache");
  if (cache == body.end()) return body;
  if (const auto ids = cache->find("probe_token_ids"); ids != cache->end()) {
    (*cache)["probe"] = ids->contains("ids") ? std::move((*ids)["ids"]) : json::array();
    cache->erase("probe_token_ids");
  }
  if (const auto bins = cache->find("trace_bins"); bins != cache->end()) {
    if (*bins == true) (*cache)["trace"] = "bins";
    cache->erase("trace_bins");
  }
  return body;
}

// The prompt's three ways are one field over HTTP.
json completion_body_of(const v1::GenerateRequest& request) {
  json body = body_of(request);
  for (const char* name : {"prompt_token_ids", "prompts"}) {
    const auto found = body.find(name);
    if (found == body.end()) continue;
    const char* member = *name == 'p' && name[6] == '_' ? "ids" : "texts";
    body["prompt"] = found->contains(member) ? std::move((*found)[member]) : json::array();
    body.erase(name);
  }
  return body;
}

// Replaces a member that holds JSON as text by what it says.
Status unfold(json& object, const char* name, const std::string& path) {
  const auto found = object.find(name);
  if (found == object.end()) return {};
  Result<json> value = parse_ordered_json(found->get_ref<const std::string&>());
  if (!value.ok()) {
    return invalid_argument("'" + path + "' must be JSON as text: " + value.status().message())
        .with_param(path)
        .with_reason("invalid_value");
  }
  *found = *std::move(value);
  return {};
}

Result<json> chat_body_of(const v1::ChatRequest& request) {
  json body = body_of(request);
  for (const char* name : {"tools", "chat_template_kwargs", "documents"}) {
    if (Status status = unfold(body, name, name); !status.ok()) return status;
  }
  if (!body.contains("messages")) return body;
  json& messages = body["messages"];
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string path = "messages[" + std::to_string(i) + "].tool_calls";
    if (Status status = unfold(messages[i], "tool_calls", path); !status.ok()) return status;
  }
  return body;
}

void fill_logprob(const TokenOutput& output, const Tokenizer& tokenizer, v1::TokenLogprob& out) {
  out.set_token(output.token);
  out.set_text(valid_utf8(tokenizer.token_bytes(output.token)));
  if (!std::isnan(output.logprob)) out.set_logprob(output.logprob);
  out.set_text_offset(output.text_offset);
  out.set_rank(output.rank + 1);
  for (const TokenLogprob& top : output.top) {
    v1::TokenLogprob::Top& item = *out.add_top();
    item.set_token(top.token);
    item.set_text(valid_utf8(tokenizer.token_bytes(top.token)));
    item.set_logprob(top.logprob);
  }
}

void fill_usage(const OutputUsage& usage, v1::Usage& out) {
  out.set_prompt_tokens(usage.prompt_tokens);
  out.set_completion_tokens(usage.completion_tokens);
  out.set_total_tokens(usage.prompt_tokens + usage.completion_tokens);
  out.set_cached_tokens(usage.cached_tokens);
  out.set_prompt_ms(usage.prefill_ms);
  out.set_predicted_ms(usage.decode_ms);
  v1::CacheUsage& cache = *out.mutable_cache();
  const int64_t sequences = std::max<int64_t>(1, usage.cache.num_sequences);
  cache.set_policy(std::string(policy_name(usage.cache.policy)));
  cache.set_budget(usage.cache.budget);
  cache.set_kept((usage.cache.kept_sum + sequences - 1) / sequences);
  cache.set_kept_max(usage.cache.kept_max);
  cache.set_evicted(usage.cache.evicted);
  cache.set_events(usage.cache.events);
  cache.set_bytes(usage.cache.bytes);
}

class GenerateCall final : public GenerationCall, public grpc::ServerWriteReactor<v1::GenerateResponse> {
 public:
  using GenerationCall::GenerationCall;
  void run(const v1::GenerateRequest& request) {
    hold();
    start(CompletionApi::kText, [request]() -> Result<json> { return completion_body_of(request); });
  }
  void run(const v1::ChatRequest& request) {
    hold();
    start(CompletionApi::kChat, [request] { return chat_body_of(request); });
  }

  void OnWriteDone(bool ok) override {
    response_.Clear();  // nobody adds while a write runs
    write_done(ok);
  }
  void OnCancel() override { cancelled(); }
  void OnDone() override { end_of_life(); }

 private:
  void begin() override {
    response_.set_id(id_);
    response_.set_model(shared_.serving->model.name);
    response_.set_created(
        std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
            .count());
  }

  // Deltas of one choice that go out together are one.
  void add(int32_t index, const OutputDelta& delta) override {
    v1::ChoiceDelta* choice = nullptr;
    for (v1::ChoiceDelta& candidate : *response_.mutable_choices()) {
      if (candidate.index() == index) choice = &candidate;
    }
    if (!choice) {
      choice = response_.add_choices();
      choice->set_index(index);
    }
    choice->mutable_text()->append(valid_utf8(delta.text));
    const OutputOptions& options = generation_->job().output;
    for (const TokenOutput& token : delta.tokens)
      fill_logprob(token, *shared_.serving->model.tokenizer, *choice->add_logprobs());
    for (const TokenOutput& token : delta.prompt)
      fill_logprob(token, *shared_.serving->model.tokenizer, *choice->add_prompt_logprobs());
    choice->mutable_token_ids()->Add(delta.token_ids.begin(), delta.token_ids.end());
    choice->mutable_prompt_token_ids()->Add(delta.prompt_token_ids.begin(), delta.prompt_token_ids.end());
    if (delta.prompt_text) choice->set_prompt_text(*delta.prompt_text);
    if (delta.finish == FinishReason::kNone) return;
    choice->set_finish_reason(std::string(finish_reason_text(delta.finish)));
    if (delta.stop_index >= 0) {
      choice->set_stop_string(options.stop[static_cast<size_t>(delta.stop_index)]);
    } else if (delta.stop_token >= 0) {
      choice->set_stop_token(delta.stop_token);
    }
  }

  void send(const OutputUsage* usage) override {
    if (usage) fill_usage(*usage, *response_.mutable_usage());
    StartWrite(&response_);
  }

  void after_last() override { end(grpc::Status::OK); }
  void finish(const grpc::Status& status) override { Finish(status); }

  v1::GenerateResponse response_;
};

class InferenceService final : public v1::Inference::CallbackService {
 public:
  explicit InferenceService(GrpcShared& shared) : shared_(shared) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(CallbackServerContext* context,
                                                           const v1::GenerateRequest* request) override {
    const auto call = std::make_shared<GenerateCall>(shared_, *context, "restkv.v1.Inference/Generate");
    call->run(*request);
    return call.get();
  }

  grpc::ServerWriteReactor<v1::GenerateResponse>* Chat(CallbackServerContext* context,
                                                       const v1::ChatRequest* request) override {
    const auto call = std::make_shared<GenerateCall>(shared_, *context, "restkv.v1.Inference/Chat");
    call->run(*request);
    return call.get();
  }

  grpc::ServerUnaryReactor* Tokenize(CallbackServerContext* context, const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    return run_unary(
        shared_, *context, "restkv.v1.Inference/Tokenize",
        [this, request, response](const Caller&) -> Status {
          const ServedModel& model = shared_.serving->model;
          if (Status status = check_model_name(request->model(), model.name); !status.ok()) return status;
          const bool parses = !request->has_parse_special() || request->parse_special();
          const std::vector<int32_t> ids = model.tokenizer->encode(
              request->prompt(),
              {.add_special = !request->has_add_special_tokens() || request->add_special_tokens(),
               .special_tokens = parses ? SpecialTokens::kParse : SpecialTokens::kAsText});
          response->mutable_tokens()->Add(ids.begin(), ids.end());
          response->set_max_model_len(model.engine->memory_plan().max_model_len);
          return {};
        });
  }

  grpc::ServerUnaryReactor* Detokenize(CallbackServerContext* context, const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override {
    return run_unary(
        shared_, *context, "restkv.v1.Inference/Detokenize",
        [this, request, response](const Caller&) -> Status {
          const ServedModel& model = shared_.serving->model;
          if (Status status = check_model_name(request->model(), model.name); !status.ok()) return status;
          std::vector<int32_t> ids;
          const json list(std::vector<int32_t>(request->tokens().begin(), request->tokens().end()));
          if (Status status = read_token_ids(list, "tokens", model.tokenizer->vocab_size(), ids);
              !status.ok())
            return status;
          response->set_prompt(valid_utf8(model.tokenizer->decode(ids)));
          return {};
        });
  }

  grpc::ServerUnaryReactor* ListModels(CallbackServerContext* context, const v1::ListModelsRequest*,
                                       v1::ListModelsResponse* response) override {
    return run_unary(shared_, *context, "restkv.v1.Inference/ListModels", [this, response](const Caller&) {
      fill_model(*response->add_models());
      return Status();
    });
  }

  grpc::ServerUnaryReactor* GetModel(CallbackServerContext* context, const v1::GetModelRequest* request,
                                     v1::Model* response) override {
    return run_unary(shared_, *context, "restkv.v1.Inference/GetModel",
                     [this, request, response](const Caller&) -> Status {
                       if (request->id().empty())
                         return invalid_argument("'id' is required")
                             .with_param("id")
                             .with_reason("missing_required_parameter");
                       if (Status status = check_model_name(request->id(), shared_.serving->model.name);
                           !status.ok())
                         return std::move(status).with_param("id");
                       fill_model(*response);
                       return {};
                     });
  }

  grpc::ServerUnaryReactor* GetCacheTrace(CallbackServerContext* context,
                                          const v1::GetCacheTraceRequest* request,
                                          v1::CacheTrace* response) override {
    return run_unary(shared_, *context, "restkv.v1.Inference/GetCacheTrace",
                     [this, request, response](const Caller& caller) {
                       return fill_cache_trace(*request, shared_.serving->model.engine->traces(),
                                               caller.name(), *response);
                     });
  }

 private:
  void fill_model(v1::Model& out) const {
    const Serving& serving = *shared_.serving;
    out.set_id(serving.model.name);
    out.set_created(serving.created);
    out.set_max_model_len(serving.model.engine->memory_plan().max_model_len);
  }

  GrpcShared& shared_;
};

}  // namespace

std::unique_ptr<grpc::Service> make_inference_service(GrpcShared& shared) {
  return std::make_unique<InferenceService>(shared);
}

}  // namespace restkv

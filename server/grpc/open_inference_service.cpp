// Text in, text out, as tensors: outputs text_output and finish_reason, BYTES [choices].
#include "server/grpc/open_inference_service.h"

#include <inference/open_inference_grpc.grpc.pb.h>

#include "server/config/build_info.h"
#include "server/grpc/generation_call.h"
#include "server/grpc/open_inference_request.h"
#include "server/grpc/unary_call.h"
#include "server/openai/completion_writer.h"
#include "server/openai/json_text.h"
#include "server/openai/tokenize_api.h"

namespace restkv {
namespace {

using grpc::CallbackServerContext;
using inference::ModelInferRequest;
using inference::ModelInferResponse;
using inference::ModelStreamInferResponse;
using json = RequestJson;

constexpr const char* kVersion = "1";  // of the one model; versions are the client's matter elsewhere
constexpr const char* kFinishReason = "finish_reason";

// A request without its content, for the answer.
struct InferHead {
  std::string id;
  bool is_raw = false;  // answers come as the request did
};

Status check_version(const std::string& version) {
  if (version.empty() || version == kVersion) return {};
  return not_found("this server has version 1 of its model alone").with_param("model_version");
}

void append_bytes_element(std::string& raw, const std::string& text) {
  const auto len = static_cast<uint32_t>(text.size());
  for (int shift = 0; shift < 32; shift += 8) raw += static_cast<char>(len >> shift & 0xFF);
  raw += text;
}

void add_output(const char* name, const std::vector<std::string>& texts, bool is_raw,
                ModelInferResponse& out) {
  auto& tensor = *out.add_outputs();
  tensor.set_name(name);
  tensor.set_datatype("BYTES");
  tensor.add_shape(static_cast<int64_t>(texts.size()));
  if (!is_raw) {
    for (const std::string& text : texts) tensor.mutable_contents()->add_bytes_contents(text);
    return;
  }
  std::string& raw = *out.add_raw_output_contents();
  for (const std::string& text : texts) append_bytes_element(raw, text);
}

void fill_answer(const Serving& serving, const InferHead& head, const std::vector<std::string>& texts,
                 const std::vector<std::string>& reasons, const OutputUsage* usage, ModelInferResponse& out) {
  out.set_model_name(serving.model.name);
  out.set_model_version(kVersion);
  out.set_id(head.id);
  add_output(kTextOutput, texts, head.is_raw, out);
  add_output(kFinishReason, reasons, head.is_raw, out);
  if (!usage) return;
  (*out.mutable_parameters())["prompt_tokens"].set_int64_param(usage->prompt_tokens);
  (*out.mutable_parameters())["completion_tokens"].set_int64_param(usage->completion_tokens);
}

// ModelInfer: one answer with everything.
class InferCall final : public GenerationCall, public grpc::ServerUnaryReactor {
 public:
  InferCall(GrpcShared& shared, CallbackServerContext& context, ModelInferResponse* response)
      : GenerationCall(shared, context, "inference.GRPCInferenceService/ModelInfer"), response_(response) {}

  void run(const ModelInferRequest& request) {
    hold();
    head_ = {request.id(), request.raw_input_contents_size() > 0};
    start(CompletionApi::kText, [request]() -> Result<json> {
      if (Status status = check_version(request.model_version()); !status.ok()) return status;
      Result<json> body = completion_body_of(request);
      if (body.ok() && body->value("stream", json(false)) == json(true)) {
        return invalid_argument("'stream' needs ModelStreamInfer; ModelInfer gives one answer")
            .with_param("stream")
            .with_reason("invalid_value");
      }
      return body;
    });
  }
  void OnCancel() override { cancelled(); }
  void OnDone() override { end_of_life(); }

 private:
  bool sends_parts() const override { return false; }
  void begin() override {
    texts_.resize(generation_->num_choices());
    reasons_.resize(generation_->num_choices());
  }
  void add(int32_t index, const OutputDelta& delta) override {
    const auto i = static_cast<size_t>(index);
    texts_[i] += delta.text;
    if (delta.finish != FinishReason::kNone) reasons_[i] = finish_reason_text(delta.finish);
  }
  void send(const OutputUsage* usage) override {
    fill_answer(*shared_.serving, head_, texts_, reasons_, usage, *response_);
    end(grpc::Status::OK);
  }
  void after_last() override {}
  void finish(const grpc::Status& status) override { Finish(status); }

  ModelInferResponse* response_;
  InferHead head_;
  std::vector<std::string> texts_, reasons_;  // [choices]
};

// ModelStreamInfer: each request is answered to its end before the next is read. Errors of a request are a message of their
// own, as Triton's clients expect; the call goes on.
class StreamInferCall final : public GenerationCall,
                              public grpc::ServerBidiReactor<ModelInferRequest, ModelStreamInferResponse> {
 public:
  StreamInferCall(GrpcShared& shared, CallbackServerContext& context)
      : GenerationCall(shared, context, "inference.GRPCInferenceService/ModelStreamInfer") {}

  void run() {
    hold();
    read_next();
  }
  void OnReadDone(bool ok) override {
    --shared_.num_waiting;
    if (!ok) {
      const std::lock_guard lock(mutex_);
      if (!is_ended_) end(grpc::Status::OK);
      return;
    }
    arrival_ = Clock::now();
    head_ = {request_.id(), request_.raw_input_contents_size() > 0};
    start(CompletionApi::kText, [request = std::move(request_)]() -> Result<json> {
      if (Status status = check_version(request.model_version()); !status.ok()) return status;
      Result<json> body = completion_body_of(request);
      if (!body.ok()) return body;
      const json n = body->value("n", json(1));
      if (n.is_number() && n != 1) {
        return invalid_argument("'n' must be 1 for ModelStreamInfer")
            .with_param("n")
            .with_reason("invalid_value");
      }
      body->erase("stream");
      return body;
    });
    request_ = ModelInferRequest();
  }
  void OnWriteDone(bool ok) override {
    response_.Clear();
    write_done(ok);
  }
  void OnCancel() override { cancelled(); }
  void OnDone() override { end_of_life(); }

 private:
  void add(int32_t, const OutputDelta& delta) override {
    text_ += delta.text;
    if (delta.finish != FinishReason::kNone) reason_ = finish_reason_text(delta.finish);
  }
  void send(const OutputUsage* usage) override {
    ModelInferResponse& answer = *response_.mutable_infer_response();
    fill_answer(*shared_.serving, head_, {std::exchange(text_, {})}, {std::exchange(reason_, {})}, usage,
                answer);
    (*answer.mutable_parameters())["triton_final_response"].set_bool_param(usage != nullptr);
    StartWrite(&response_);
  }
  void after_last() override {
    log(std::exchange(outcome_, grpc::Status::OK));
    read_next();
  }
  void read_next() {
    ++shared_.num_waiting;
    StartRead(&request_);
  }
  void fail(const Status& status, int64_t) override {
    outcome_ = grpc_error(status);
    text_.clear();
    reason_.clear();
    response_.set_error_message(outcome_.error_message());
    response_.mutable_infer_response()->set_id(head_.id);
    response_.mutable_infer_response()->set_model_name(shared_.serving->model.name);
    (*response_.mutable_infer_response()->mutable_parameters())["triton_final_response"].set_bool_param(true);
    begin_write(true);
    StartWrite(&response_);
  }
  void finish(const grpc::Status& status) override { Finish(status); }

  ModelInferRequest request_;
  ModelStreamInferResponse response_;
  InferHead head_;
  grpc::Status outcome_;  // of the request that runs
  std::string text_, reason_;
};

class OpenInferenceService final : public inference::GRPCInferenceService::CallbackService {
 public:
  explicit OpenInferenceService(GrpcShared& shared) : shared_(shared) {}

  grpc::ServerUnaryReactor* ServerLive(CallbackServerContext* context, const inference::ServerLiveRequest*,
                                       inference::ServerLiveResponse* response) override {
    response->set_live(true);
    return answered(*context);
  }
  grpc::ServerUnaryReactor* ServerReady(CallbackServerContext* context, const inference::ServerReadyRequest*,
                                        inference::ServerReadyResponse* response) override {
    response->set_ready(shared_.serving->is_ready());
    return answered(*context);
  }
  grpc::ServerUnaryReactor* ModelReady(CallbackServerContext* context,
                                       const inference::ModelReadyRequest* request,
                                       inference::ModelReadyResponse* response) override {
    return run_unary(shared_, *context, "inference.GRPCInferenceService/ModelReady",
                     [this, request, response](const Caller&) {
                       response->set_ready(check_model(request->name(), request->version()).ok() &&
                                           shared_.serving->is_ready());
                       return Status();
                     });
  }
  grpc::ServerUnaryReactor* ServerMetadata(CallbackServerContext* context,
                                           const inference::ServerMetadataRequest*,
                                           inference::ServerMetadataResponse* response) override {
    return run_unary(shared_, *context, "inference.GRPCInferenceService/ServerMetadata",
                     [response](const Caller&) {
                       response->set_name("restkv");
                       response->set_version(std::string(build_version()));
                       return Status();
                     });
  }
  grpc::ServerUnaryReactor* ModelMetadata(CallbackServerContext* context,
                                          const inference::ModelMetadataRequest* request,
                                          inference::ModelMetadataResponse* response) override {
    return run_unary(shared_, *context, "inference.GRPCInferenceService/ModelMetadata",
                     [this, request, response](const Caller&) -> Status {
                       if (Status status = check_model(request->name(), request->version()); !status.ok())
                         return status;
                       fill_metadata(*response);
                       return {};
                     });
  }
  grpc::ServerUnaryReactor* ModelInfer(CallbackServerContext* context, const ModelInferRequest* request,
                                       ModelInferResponse* response) override {
    const auto call = std::make_shared<InferCall>(shared_, *context, response);
    call->run(*request);
    return call.get();
  }
  grpc::ServerBidiReactor<ModelInferRequest, ModelStreamInferResponse>* ModelStreamInfer(
      CallbackServerContext* context) override {
    const auto call = std::make_shared<StreamInferCall>(shared_, *context);
    call->run();
    return call.get();
  }
  grpc::ServerUnaryReactor* RepositoryIndex(CallbackServerContext* context,
                                            const inference::RepositoryIndexRequest* request,
                                            inference::RepositoryIndexResponse* response) override {
    return run_unary(shared_, *context, "inference.GRPCInferenceService/RepositoryIndex",
                     [this, request, response](const Caller&) {
                       if (request->ready() && !shared_.serving->is_ready()) return Status();
                       auto& model = *response->add_models();
                       model.set_name(shared_.serving->model.name);
                       model.set_version(kVersion);
                       model.set_state(shared_.serving->is_ready() ? "READY" : "UNAVAILABLE");
                       return Status();
                     });
  }

 private:
  Status check_model(const std::string& name, const std::string& version) const {
    if (name.empty())
      return invalid_argument("'name' is required")
          .with_param("name")
          .with_reason("missing_required_parameter");
    if (Status status = check_model_name(name, shared_.serving->model.name); !status.ok()) return status;
    return check_version(version);
  }
  static grpc::ServerUnaryReactor* answered(CallbackServerContext& context) {
    auto* reactor = context.DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  void fill_metadata(inference::ModelMetadataResponse& out) const {
    out.set_name(shared_.serving->model.name);
    out.add_versions(kVersion);
    out.set_platform("restkv");
    const struct {
      const char* name;
      const char* datatype;
    } inputs[] = {{kTextInput, "BYTES"},
                  {"max_tokens", "INT32"},
                  {"temperature", "FP32"},
                  {"sampling_parameters", "BYTES"}};
    for (const auto& [name, datatype] : inputs) {
      auto& tensor = *out.add_inputs();
      tensor.set_name(name);
      tensor.set_datatype(datatype);
      tensor.add_shape(1);
    }
    for (const char* name : {kTextOutput, kFinishReason}) {
      auto& tensor = *out.add_outputs();
      tensor.set_name(name);
      tensor.set_datatype("BYTES");
      tensor.add_shape(-1);
    }
  }

  GrpcShared& shared_;
};

}  // namespace

std::unique_ptr<grpc::Service> make_open_inference_service(GrpcShared& shared) {
  return std::make_unique<OpenInferenceService>(shared);
}

}  // namespace restkv

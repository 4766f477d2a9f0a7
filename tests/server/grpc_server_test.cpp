// The gRPC server in this process, with a fake engine, over real sockets.
#include "server/grpc/grpc_server.h"

#include <google/rpc/error_details.pb.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <restkv/v1/inference.grpc.pb.h>

#include <random>
#include <thread>

#include "server/config/logging.h"
#include "server/grpc/message_json.h"
#include "tests/server/fake_engine.h"

namespace restkv {
namespace {

using namespace std::chrono_literals;

template <class Condition>
bool becomes_true(Condition condition, std::chrono::milliseconds limit = 5s) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(2ms);
  }
  return true;
}

struct Answer {
  std::string text;
  int num_messages = 0;
  v1::Usage usage;
  grpc::Status status;
};

class GrpcServerTest : public testing::Test {
 protected:
  GrpcServerTest() {
    settings_.logging.level = LogLevel::kError;
    set_up_logging(settings_.logging);
  }

  void start(FakeEngineOptions options = {}) {
    engine_ = std::make_shared<FakeEngine>(std::move(options));
    serving_ = std::make_shared<Serving>(
        settings_, ServedModel{"test-model", engine_, std::make_shared<ByteTokenizer>()});
    Result<std::unique_ptr<GrpcServer>> server = GrpcServer::start(serving_, 0);
    ASSERT_TRUE(server.ok()) << server.status().message();
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel("127.0.0.1:" + std::to_string(server_->port()),
                                   grpc::InsecureChannelCredentials());
    stub_ = v1::Inference::NewStub(channel_);
  }

  static v1::GenerateRequest request(const std::string& prompt, int64_t max_tokens = 16) {
    v1::GenerateRequest request;
    request.set_prompt(prompt);
    request.set_max_tokens(max_tokens);
    return request;
  }
  static v1::GenerateRequest endless() {
    v1::GenerateRequest r = request("a", 900'000);
    r.set_ignore_eos(true);
    return r;
  }
  Answer generate(const v1::GenerateRequest& request, std::chrono::milliseconds timeout = 20s) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + timeout);
    const auto reader = stub_->Generate(&context, request);
    Answer answer;
    v1::GenerateResponse message;
    while (reader->Read(&message)) {
      ++answer.num_messages;
      for (const auto& choice : message.choices()) answer.text += choice.text();
      if (message.has_usage()) answer.usage = message.usage();
    }
    answer.status = reader->Finish();
    return answer;
  }

  Settings settings_;
  std::shared_ptr<FakeEngine> engine_;
  std::shared_ptr<Serving> serving_;
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

constexpr FakeEngineOptions long_answers() {
  return {.answer = "x", .step = 1ms, .max_model_len = 1'000'000};
}

TEST_F(GrpcServerTest, TextAndUsage) {
  start();
  const Answer answer = generate(request("hi"));
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, "hello world");
  EXPECT_EQ(answer.usage.prompt_tokens(), 3);
  EXPECT_EQ(answer.usage.completion_tokens(), 12);
  EXPECT_TRUE(becomes_true([&] { return server_->is_idle(); }));
}

// What needs no place in the engine's queue is answered while that is full.
TEST_F(GrpcServerTest, FullQueueRefusesNoList) {
  start({.max_queue = 1});
  engine_->hold(true);
  grpc::ClientContext waiting;
  const auto reader = stub_->Generate(&waiting, request("a"));
  ASSERT_TRUE(becomes_true([&] { return engine_->stats().waiting == 1; }));
  EXPECT_EQ(generate(request("b")).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  grpc::ClientContext context;
  v1::ListModelsResponse models;
  EXPECT_TRUE(stub_->ListModels(&context, {}, &models).ok());
  EXPECT_EQ(models.models_size(), 1);
  engine_->hold(false);
}

TEST_F(GrpcServerTest, SeveralTokensAMessageWhenTheyAreThere) {
  start({.answer = std::string(1000, 'x'), .max_model_len = 10'000});
  const Answer answer = generate(request("a", 1000));
  EXPECT_EQ(answer.text.size(), 1000u);
  EXPECT_LT(answer.num_messages, 900);
}

TEST_F(GrpcServerTest, CancelDeadlineAndGoneClientsReachTheEngine) {
  start(long_answers());
  for (int i = 0; i < 3; ++i) {
    grpc::ClientContext context;
    if (i == 2) context.set_deadline(std::chrono::system_clock::now() + 50ms);
    const auto reader = stub_->Generate(&context, endless());
    v1::GenerateResponse message;
    ASSERT_TRUE(reader->Read(&message));
    if (i < 2) context.TryCancel();
    while (reader->Read(&message)) {
    }
    EXPECT_EQ(reader->Finish().error_code(),
              i < 2 ? grpc::StatusCode::CANCELLED : grpc::StatusCode::DEADLINE_EXCEEDED);
    EXPECT_TRUE(becomes_true([&] { return engine_->num_cancelled() == i + 1; }));
    EXPECT_TRUE(becomes_true([&] { return server_->is_idle(); }));
  }
}

TEST_F(GrpcServerTest, CancelInEveryState) {
  start({.answer = "x", .step = 100us, .max_model_len = 1'000'000});
  std::mt19937 random(7);
  for (int i = 0; i < 300; ++i) {
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, endless());
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
    context.TryCancel();
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  EXPECT_TRUE(becomes_true([&] { return engine_->is_idle() && server_->is_idle(); }));
  EXPECT_EQ(generate(request("a", 3)).text, "x");
}

TEST_F(GrpcServerTest, ReaderThatStandsStillIsDropped) {
  settings_.server.write_timeout = 300ms;
  start({.answer = std::string(64, 'x'), .max_model_len = 10'000'000});
  grpc::ChannelArguments arguments;  // a client that reads ahead no more than it must
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16 << 10);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto stub = v1::Inference::NewStub(grpc::CreateCustomChannel(
      "127.0.0.1:" + std::to_string(server_->port()), grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  v1::GenerateRequest slow = request("a", 5'000'000);
  slow.set_ignore_eos(true);
  const auto reader = stub->Generate(&context, slow);
  EXPECT_TRUE(becomes_true([&] { return engine_->num_cancelled() == 1; }, 20s));
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
  }
  EXPECT_FALSE(reader->Finish().ok());
  EXPECT_TRUE(becomes_true([&] { return server_->is_idle(); }));
}

TEST_F(GrpcServerTest, NanEndsACallAsAnInternalError) {
  start({.nan_at = 2});
  const Answer answer = generate(request("a"));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INTERNAL);
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(answer.status.error_details()));
  google::rpc::ErrorInfo info;
  ASSERT_GE(details.details_size(), 1);
  ASSERT_TRUE(details.details(0).UnpackTo(&info));
  EXPECT_EQ(info.reason(), "nan_logits");
}

TEST_F(GrpcServerTest, DrainFinishesWhatRunsAndRefusesTheRest) {
  start({.answer = std::string(200, 'x'), .step = 2ms});
  Answer running;
  std::thread client([&] { running = generate(request("a", 200)); });
  ASSERT_TRUE(becomes_true([&] { return engine_->num_tokens() > 5; }));
  server_->drain();
  EXPECT_FALSE(server_->is_idle());
  EXPECT_EQ(generate(request("a")).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  client.join();
  EXPECT_TRUE(running.status.ok());
  EXPECT_EQ(running.text.size(), 200u);
  EXPECT_TRUE(becomes_true([&] { return server_->is_idle(); }));
}

TEST_F(GrpcServerTest, StopEndsRunningCalls) {
  start(long_answers());
  Answer running;
  std::thread client([&] { running = generate(endless()); });
  ASSERT_TRUE(becomes_true([&] { return engine_->num_tokens() > 5; }));
  server_->stop();
  client.join();
  EXPECT_FALSE(running.status.ok());
  EXPECT_TRUE(becomes_true([&] { return engine_->num_cancelled() == 1; }));
}

TEST_F(GrpcServerTest, PortInUse) {
  start();
  const auto second = GrpcServer::start(serving_, server_->port());
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.status().message().find("--grpc-port"), std::string::npos);
}

TEST(MessageJsonTest, OnlyWhatIsSet) {
  v1::GenerateRequest request;
  EXPECT_EQ(json_of(request).dump(), "{}");
  request.set_prompt("a");
  request.set_temperature(0);
  request.set_echo(false);
  request.add_stop("x");
  (*request.mutable_logit_bias())[0] = 0.5;
  (*request.mutable_logit_bias())[7] = 0;
  request.mutable_cache()->set_budget(64);
  EXPECT_EQ(nlohmann::json::parse(json_of(request).dump()),  // the order of members says nothing
            nlohmann::json::parse(R"({"prompt":"a","temperature":0.0,"echo":false,"stop":["x"],
      "logit_bias":{"0":0.5,"7":0.0},"cache":{"budget":64}})"));
}

}  // namespace
}  // namespace restkv

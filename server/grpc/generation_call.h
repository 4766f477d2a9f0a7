// A call that generates text, whatever its messages look like: read on a worker, submit, send what is there, one message in
// flight. The reactor of a method derives from this and from gRPC's class.
//   reading --submit--> running --last message or error--> ended        a cancel or a write that fails: ended, the engine is told
// Callbacks of gRPC, the queue's thread and workers meet here; one mutex guards everything.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "server/grpc/call_context.h"
#include "server/grpc/grpc_error.h"
#include "server/serving/generation.h"

namespace restkv {

class GenerationCall : public Pumped, public std::enable_shared_from_this<GenerationCall> {
 public:
  GenerationCall(GrpcShared& shared, grpc::CallbackServerContext& context, const char* method);

  void pump() override;
  void check_time(Clock::time_point now) override;

 protected:
  // What a worker makes of the request's message.
  using Read = std::function<Result<RequestJson>()>;
  // Once, by the method's handler; the object is held until end_of_life. `read` must own what it reads: a call may end while a
  // worker still reads.
  void hold() { shared_.ready->add(shared_from_this()); }
  void start(CompletionApi api, Read read);

  // All with the lock held. `add` collects into the message that `send` starts to write; `usage` comes with the last one.
  virtual void add(int32_t index, const OutputDelta& delta) = 0;
  virtual void send(const OutputUsage* usage) = 0;
  virtual bool sends_parts() const { return true; }  // false: one message with everything
  virtual void begin() {}                            // submitted: id_ and generation_ are there
  virtual void after_last() = 0;                     // the last message of a request is out
  // No text follows for this request.
  virtual void fail(const Status& status, int64_t retry_after_s = 1) {
    end(grpc_error(status, retry_after_s));
  }
  virtual void finish(const grpc::Status& status) = 0;  // the reactor's Finish
  void end(const grpc::Status& status);
  // Before StartWrite; `is_last`: after_last follows when it is out.
  void begin_write(bool is_last);

  // From the reactor's callbacks.
  void write_done(bool ok);
  void cancelled();
  void end_of_life();  // OnDone: the object goes when the last thread lets go
  // The line of the request that ran last, unless it has one. With the lock held.
  void log(const grpc::Status& status);

  GrpcShared& shared_;
  grpc::CallbackServerContext& context_;
  const char* method_;
  const std::string request_id_;
  Clock::time_point arrival_;
  std::mutex mutex_;
  std::unique_ptr<Generation> generation_;
  std::string id_;  // "cmpl-..."
  std::optional<Caller> caller_;
  bool is_ended_ = false;  // Finish was called

 private:
  void submit(CompletionJob job);
  void pump_locked();

  grpc::Status final_;
  bool is_writing_ = false, is_cancelled_ = false, is_last_ = false, is_logged_ = false;
  const TraceContext trace_;
  std::optional<OutputUsage> usage_;  // of the request that ran last
  Clock::time_point write_begin_{};
};

}  // namespace restkv

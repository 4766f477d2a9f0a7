// One job in the engine, for any protocol: submits its requests, gives what became visible of each choice, sums up usage, and
// cancels what still runs when its owner lets go. Used by one thread at a time.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "server/openai/completion_job.h"
#include "server/serving/serving.h"

namespace restkv {

// Why a request does not run now, and when it might. Ok: it runs.
struct Refusal {
  Status status = {};
  int64_t retry_after_s = 1;
  bool ok() const { return status.ok(); }
};

class Generation {
 public:
  // `id`: of all requests of the job.
  Generation(Serving& serving, Caller caller, CompletionJob job, std::string id);
  ~Generation();
  Generation(const Generation&) = delete;

  // Within the limits of the caller's key. `wake`: on the engine thread, when there is something to take (TokenStream).
  // `timeout` 0: none. What is refused is not charged to the key.
  Refusal submit(Clock::time_point arrival, std::chrono::nanoseconds timeout,
                 const std::function<void()>& wake);
  // What one more record made visible; false: nothing is there now. `index` counts choices over all prompts.
  bool take(int32_t& index, OutputDelta& delta);
  // How far a prompt is that asked for it, each time this has changed; false: it has not.
  bool take_progress(int32_t& index, PromptProgress& progress);
  // What ends the whole answer: an error of the model, a cancel by id, the engine's end.
  Status fatal_error(const OutputDelta& delta) const;

  bool is_finished() const;
  void cancel();
  OutputUsage usage() const;
  size_t num_choices() const;  // over all prompts
  const CompletionJob& job() const { return job_; }
  const Request& request(size_t prompt_idx) const {
    return running_[prompt_idx].handle->request;
  }  // submitted

 private:
  Status check_list() const;  // whether all of it can be in the queue
  Status submit_prompts(Clock::time_point arrival, std::chrono::nanoseconds timeout,
                        const std::function<void()>& wake);
  // An error of the engine, whose field gets the client's name for it.
  Status with_name_of_field(Status status, size_t prompt_idx) const;

  struct Running {
    std::shared_ptr<RequestHandle> handle;
    std::unique_ptr<OutputAssembler> assembler;
    std::vector<TokenRecord> records;  // taken, [next, end) not shown yet
    size_t next = 0;
    int32_t num_prefilled = 0;  // reported so far
  };

  Serving& serving_;
  const Caller caller_;
  CompletionJob job_;
  const std::string id_;
  std::vector<Running> running_;  // one a prompt
};

}  // namespace restkv

// Collects what an engine delivers, for tests.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/engine.h"

namespace restkv::testing {

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<float> prompt_logprobs;
  FinishReason finish = FinishReason::kNone;
  int32_t finish_token = -1;
  Status error;
  SequenceCounters counters;
  int num_finishes = 0;
  bool operator==(const Answer& other) const {
    return tokens == other.tokens && logprobs == other.logprobs && finish == other.finish;
  }
};

// Waits for all choices of all handles.
class Collector {
 public:
  std::shared_ptr<RequestHandle> handle(Request request) {
    if (request.arrival == Clock::time_point{}) request.arrival = Clock::now();
    return std::make_shared<RequestHandle>(std::move(request), [bell = bell_] {
      const std::lock_guard lock(bell->mutex);
      bell->is_rung = true;
      bell->ready.notify_one();
    });
  }

  std::vector<std::vector<Answer>> collect(const std::vector<std::shared_ptr<RequestHandle>>& handles) {
    std::vector<std::vector<Answer>> answers;
    int open = 0;
    for (const auto& h : handles) {
      answers.emplace_back(static_cast<size_t>(h->request.num_choices));
      open += h->request.num_choices;
    }
    std::vector<TokenRecord> records;
    while (open > 0) {
      {
        std::unique_lock lock(bell_->mutex);
        if (!bell_->ready.wait_for(lock, std::chrono::seconds(60), [this] { return bell_->is_rung; })) {
          ADD_FAILURE() << "no record for 60 s";
          return answers;
        }
        bell_->is_rung = false;
      }
      for (size_t i = 0; i < handles.size(); ++i) {
        if (!handles[i]->stream.take(records)) continue;
        for (const TokenRecord& record : records)
          open -= add(record, answers[i][static_cast<size_t>(record.choice)]);
      }
    }
    return answers;
  }

 private:
  // 1: the choice ended.
  static int add(const TokenRecord& record, Answer& answer) {
    switch (record.kind) {
      case TokenRecord::Kind::kPromptToken: answer.prompt_logprobs.push_back(record.logprob); return 0;
      case TokenRecord::Kind::kToken:
        EXPECT_EQ(answer.num_finishes, 0) << "a token after the end";
        answer.tokens.push_back(record.token);
        answer.logprobs.push_back(record.logprob);
        return 0;
      case TokenRecord::Kind::kFinish: break;
    }
    answer.finish = record.finish;
    answer.finish_token = record.token;
    answer.error = record.error;
    answer.counters = record.counters;
    ++answer.num_finishes;
    return 1;
  }

  // Shared with the engine: it may ring once more after the last record was taken.
  struct Bell {
    std::mutex mutex;
    std::condition_variable ready;
    bool is_rung = false;
  };
  std::shared_ptr<Bell> bell_ = std::make_shared<Bell>();
};

// Submits all and waits for all.
inline std::vector<std::vector<Answer>> ask(Engine& engine, const std::vector<Request>& requests) {
  Collector collector;
  std::vector<std::shared_ptr<RequestHandle>> handles;
  for (const Request& request : requests) {
    handles.push_back(collector.handle(request));
    const Status status = engine.submit(handles.back());
    EXPECT_TRUE(status.ok()) << status.message();
    if (!status.ok()) handles.pop_back();
  }
  return collector.collect(handles);
}

inline void expect_idle_and_free(Engine& engine) {
  for (int i = 0; i < 1000 && !engine.is_idle(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  EXPECT_TRUE(engine.is_idle());
  EXPECT_EQ(engine.stats().pages_owned, 0);
  EXPECT_EQ(engine.stats().pages_free + engine.stats().pages_cached, engine.stats().pages_total);
  EXPECT_TRUE(engine.is_healthy());
}

inline std::unique_ptr<Engine> start_engine(const std::shared_ptr<const Model>& model,
                                            const EngineOptions& options) {
  Result<std::unique_ptr<Engine>> engine = Engine::start(model, options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return std::move(*engine);
}

}  // namespace restkv::testing

// Engine thread -> sending threads: which calls have something to send. The engine only appends a pointer; taking records,
// making text and messages happens on the queue's own thread. A tick on the same thread looks at times.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_set>
#include <vector>

#include "engine/request.h"

namespace restkv {

// A call as the queue sees it.
class Pumped {
 public:
  virtual ~Pumped() = default;
  virtual void pump() = 0;  // send what is there
  virtual void check_time(Clock::time_point now) = 0;
};

class ReadyQueue {
 public:
  ReadyQueue();
  ~ReadyQueue() { stop(); }
  ReadyQueue(const ReadyQueue&) = delete;

  void wake(std::weak_ptr<Pumped> call);  // any thread; does not block on calls
  void add(const std::shared_ptr<Pumped>& call);
  void remove(const std::shared_ptr<Pumped>& call);
  int64_t num_calls() const { return num_calls_; }
  void stop();

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable is_ready_;
  std::vector<std::weak_ptr<Pumped>> ready_;
  std::unordered_set<std::shared_ptr<Pumped>> calls_;  // from their start to their end
  std::atomic<int64_t> num_calls_{0};
  bool is_stopping_ = false;
  std::thread thread_;
};

}  // namespace restkv

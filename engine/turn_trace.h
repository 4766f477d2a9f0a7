// The last events of the engine thread, for the report of a failed self-check: numbers only, no text, no tokens.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace restkv {

class TurnTrace {
 public:
  enum class Event : uint8_t { kArrive, kAdmit, kStep, kUnit, kFinish, kFault };

  // `a`, `b`: arrival number and pages; rows of decodes and prompts; layer and rows; reason.
  void add(int64_t turn, Event event, int64_t sequence, int64_t a, int64_t b) {
    entries_[static_cast<size_t>(num_added_++) % entries_.size()] = {turn, event, sequence, a, b};
  }
  // One line an event, oldest first.
  std::string text() const;

 private:
  struct Entry {
    int64_t turn;
    Event event;
    int64_t sequence, a, b;
  };
  std::array<Entry, 512> entries_{};
  int64_t num_added_ = 0;
};

}  // namespace restkv

// Text of a ring of events.
#include "engine/turn_trace.h"

#include <algorithm>

namespace restkv {

std::string TurnTrace::text() const {
  static constexpr const char* kNames[] = {"arrive", "admit", "step", "unit", "finish", "fault"};
  const auto size = static_cast<int64_t>(entries_.size());
  std::string out;
  for (int64_t i = std::max<int64_t>(0, num_added_ - size); i < num_added_; ++i) {
    const Entry& e = entries_[static_cast<size_t>(i % size)];
    out += "turn " + std::to_string(e.turn) + " " + kNames[static_cast<size_t>(e.event)] + " seq " +
           std::to_string(e.sequence) + " " + std::to_string(e.a) + " " + std::to_string(e.b) + "\n";
  }
  return out;
}

}  // namespace restkv

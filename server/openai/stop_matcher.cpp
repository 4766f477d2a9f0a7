// Searching what is held plus the new piece: at most 255 bytes and a token's text.
#include "server/openai/stop_matcher.h"

#include <algorithm>

namespace restkv {

int StopMatcher::append(std::string_view text, std::string& out) {
  if (stops_->empty()) {
    out += text;
    return -1;
  }
  held_ += text;
  int match = -1;
  size_t match_begin = 0, match_end = 0;
  for (size_t i = 0; i < stops_->size(); ++i) {
    const std::string& stop = (*stops_)[i];
    const size_t begin = held_.find(stop);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop.size();
    if (match < 0 || end < match_end || (end == match_end && begin < match_begin)) {
      match = static_cast<int>(i);
      match_begin = begin;
      match_end = end;
    }
  }
  if (match >= 0) {
    out.append(held_, 0, keeps_match_ ? match_end : match_begin);
    held_.clear();
    return match;
  }
  size_t keep = 0;
  for (const std::string& stop : *stops_) {
    for (size_t len = std::min(stop.size() - 1, held_.size()); len > keep; --len) {
      if (held_.compare(held_.size() - len, len, stop, 0, len) == 0) keep = len;
    }
  }
  const size_t released = held_.size() - keep;
  out.append(held_, 0, released);
  held_.erase(0, released);
  return -1;
}

void StopMatcher::append_unmatched(std::string_view text, std::string& out) {
  finish(out);
  out += text;
}

void StopMatcher::finish(std::string& out) {
  out += held_;
  held_.clear();
}

}  // namespace restkv

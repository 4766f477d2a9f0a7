// Stop strings in text that comes in pieces. Text that could still turn out to be the beginning of a stop string is held
// back, nothing else is; the result does not depend on where the pieces are cut.
//   text so far: [ released ... | held: longest suffix that is a proper prefix of a stop string ]
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace restkv {

class StopMatcher {
 public:
  // `stops` must outlive the matcher. `keeps_match`: the matched string is released too.
  StopMatcher(const std::vector<std::string>& stops, bool keeps_match)
      : stops_(&stops), keeps_match_(keeps_match) {}

  // Appends what may be shown to `out`. Returns the index of the stop string that ended the text (the one whose end comes
  // first; of two that end together the longer), or -1; behind a match the text is dropped.
  int append(std::string_view text, std::string& out);
  // Text in which no stop string counts (min_tokens); what was held is released.
  void append_unmatched(std::string_view text, std::string& out);
  // The end of the answer: what was held is released.
  void finish(std::string& out);

 private:
  const std::vector<std::string>* stops_;
  bool keeps_match_;
  std::string held_;
};

}  // namespace restkv

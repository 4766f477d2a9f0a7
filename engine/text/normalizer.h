// What happens to text before it is cut into words: a list of steps, each a function from text to text. An empty list
// changes nothing and costs nothing.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace restkv {

class Normalizer {
 public:
  using Step = std::function<std::string(std::string text)>;
  // `growth`: how many bytes at most become of one.
  void add(Step step, double growth = 1) {
    steps_.push_back({std::move(step), false});
    growth_ *= growth;
  }
  // Of the stretch alone that a text begins with.
  void add_first(Step step) { steps_.push_back({std::move(step), true}); }
  bool empty() const { return steps_.empty(); }
  size_t num_steps() const { return steps_.size(); }
  double growth() const { return growth_; }  // of all steps together
  std::string apply(std::string_view text, bool first = false) const {
    std::string out(text);
    for (const auto& [step, is_first] : steps_) {
      if (first || !is_first) out = step(std::move(out));
    }
    return out;
  }

 private:
  std::vector<std::pair<Step, bool>> steps_;  // bool: of the first stretch alone
  double growth_ = 1;
};

// `from` must not be empty.
std::string replace_all(std::string_view text, std::string_view from, std::string_view to);

// The steps of the formats, by the names of tokenizer.json.
enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };
Normalizer::Step unicode_form_step(UnicodeForm form);  // bytes that are not UTF-8 stay as they are
Normalizer::Step lowercase_step();
Normalizer::Step strip_accents_step();
Normalizer::Step strip_step(bool left, bool right);
Normalizer::Step prepend_step(std::string prefix);  // not to empty text
Normalizer::Step replace_step(std::string from, std::string to);

}  // namespace restkv

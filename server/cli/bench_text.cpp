// Prose, so that prompts have the tokens of real text.
#include "server/cli/bench_text.h"

namespace restkv {
namespace {

constexpr std::string_view kText =
    "The lighthouse stands where the river meets the sea, on a rock that is an island twice a day. Its "
    "keeper wrote "
    "down the weather every six hours for thirty-one years: wind, cloud, the height of the waves and the "
    "names of the "
    "ships that passed. Most of the entries are short. On the ninth of March 1874 he noted fog from four in "
    "the "
    "morning until noon, two schooners at anchor, and a seal on the steps that would not leave. In summer "
    "there were "
    "visitors, who asked how the lamp was lit and whether he was lonely; he answered the first question at "
    "length. "
    "The oil came by boat in barrels of forty gallons, and a night in December used nearly three of them. "
    "When the "
    "new lens arrived in 1881 it took eleven men to carry it up the stairs, a hundred and ninety-six of "
    "them, and a "
    "week to level it. After that the light could be seen from twenty-two miles away, which the fishermen "
    "thought "
    "was four more than anybody needed. ";

}  // namespace

std::string_view bench_text() { return kText; }

std::vector<std::string_view> bench_words() {
  std::vector<std::string_view> words;
  for (std::string_view rest = kText; !rest.empty();) {
    const size_t end = rest.find(' ');
    if (end != 0) words.push_back(rest.substr(0, end));
    if (end == std::string_view::npos) break;
    rest.remove_prefix(end + 1);
  }
  return words;
}

}  // namespace restkv

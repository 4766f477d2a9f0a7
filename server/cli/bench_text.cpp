// Prose, so that prompts have the tokens of real text.
#include "server/cli/bench_text.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>

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

Result<std::vector<int32_t>> bench_tokens(const std::string& file, const Tokenizer& tokenizer) {
  std::string text(bench_text());
  if (!file.empty()) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream) return not_found("cannot read the text file " + file);
    text.assign(std::istreambuf_iterator<char>(stream), {});
  }
  std::vector<int32_t> tokens = tokenizer.encode(text, {.add_special = false});
  if (tokens.empty()) return invalid_argument("the text has no tokens: " + file);
  return tokens;
}

std::vector<int32_t> bench_prompt(const std::vector<int32_t>& tokens, int64_t first, int64_t count) {
  std::vector<int32_t> prompt(static_cast<size_t>(count));
  for (size_t i = 0; i < prompt.size(); ++i)
    prompt[i] = tokens[(static_cast<size_t>(first) + i) % tokens.size()];
  return prompt;
}

// getrusage would count what ran before exec.
int64_t peak_rss_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::strtoll(line.c_str() + 6, nullptr, 10) * 1024;
  }
  return 0;
}

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<size_t>(q * static_cast<double>(values.size()));
  return values[std::min(rank, values.size() - 1)];
}

}  // namespace restkv

#include "server/eval/passkey.h"

#include <algorithm>
#include <array>
#include <random>

namespace restkv {
namespace {

constexpr std::array<std::string_view, 4> kPasskeyModes = {"window", "agnostic", "later", "window_later"};
constexpr int32_t kLaterTokens = 300;
constexpr int32_t kRoom = 64;  // of key and question, more than they ever take
constexpr std::string_view kQuestion = "\n\nQuestion: What is the pass key?\nAnswer: The pass key is";

bool is_later(PasskeyMode mode) { return mode >= PasskeyMode::kLater; }
bool is_window(PasskeyMode mode) { return mode == PasskeyMode::kWindow || mode == PasskeyMode::kWindowLater; }

struct Task {
  GroupText text;
  std::string key;
};

Task make_task(const Tokenizer& tokenizer, const std::vector<int32_t>& slice, const PasskeyOptions& options,
               const EvalContext& context, PasskeyMode mode, int32_t digits, uint32_t number) {
  std::mt19937 random(number * 64 + static_cast<uint32_t>(digits));
  Task task;
  task.key += static_cast<char>('1' + random() % 9);
  while (static_cast<int32_t>(task.key.size()) < digits) task.key += static_cast<char>('0' + random() % 10);
  const auto encode = [&](const std::string& text) { return tokenizer.encode(text, {.add_special = false}); };
  const std::vector<int32_t> question = encode(std::string(kQuestion));
  const std::vector<int32_t> key = encode("\n\nThe pass key is " + task.key + ". Remember it.\n\n");
  // Behind the end of a sentence, where there is one soon after the depth drawn.
  const auto text_len = static_cast<size_t>(options.prompt_len) - key.size();
  size_t depth = text_len / 20 + random() % (text_len * 9 / 10);
  for (size_t place = depth; place < std::min(depth + 100, text_len); ++place) {
    if (tokenizer.token_bytes(slice[place]).ends_with('.')) {
      depth = place + 1;
      break;
    }
  }
  std::vector<int32_t>& prompt = task.text.prompt;
  prompt = context.prefix;
  const auto at = [&](size_t place) { return slice.begin() + static_cast<std::ptrdiff_t>(place); };
  prompt.insert(prompt.end(), slice.begin(), at(depth));
  prompt.insert(prompt.end(), key.begin(), key.end());
  prompt.insert(prompt.end(), at(depth), at(text_len));
  std::vector<int32_t>& forced = task.text.forced;
  if (is_window(mode)) prompt.insert(prompt.end(), question.begin(), question.end());
  if (is_later(mode)) forced.assign(at(text_len), at(text_len + kLaterTokens));
  if (mode != PasskeyMode::kWindow) forced.insert(forced.end(), question.begin(), question.end());
  task.text.max_tokens = digits + 3;
  return task;
}

bool answers(const Tokenizer& tokenizer, const std::vector<int32_t>& tokens, const std::string& key) {
  std::string text;
  for (const int32_t token : tokens) text += tokenizer.token_bytes(token);
  const size_t first = text.find_first_not_of(" \n:'\"");
  return first != std::string::npos && text.compare(first, key.size(), key) == 0;
}

}  // namespace

std::string_view passkey_mode_name(PasskeyMode mode) { return kPasskeyModes[static_cast<size_t>(mode)]; }

Result<std::vector<PasskeyMode>> parse_passkey_modes(std::string_view list) {
  std::vector<PasskeyMode> modes;
  while (!list.empty()) {
    const std::string_view name = list.substr(0, list.find(','));
    list.remove_prefix(std::min(list.size(), name.size() + 1));
    const auto* found = std::find(kPasskeyModes.begin(), kPasskeyModes.end(), name);
    const auto mode = static_cast<PasskeyMode>(found - kPasskeyModes.begin());
    if (found == kPasskeyModes.end() || std::find(modes.begin(), modes.end(), mode) != modes.end()) {
      return invalid_argument(
          "mode '" + std::string(name.substr(0, 40)) +
          "' is unknown or given twice; there are window, agnostic, later and window_later");
    }
    modes.push_back(mode);
  }
  if (modes.empty())
    return invalid_argument("no mode is given; there are window, agnostic, later and window_later");
  return modes;
}

int64_t passkey_slice_len(const PasskeyOptions& options) {
  return int64_t{options.prompt_len} + kLaterTokens;
}

int64_t passkey_run_len(const PasskeyOptions& options) {
  return passkey_slice_len(options) + 4 * kRoom + kMaxProbeTokens;
}

int32_t passkey_settings(const PasskeyOptions& options, size_t num_variants) {
  return static_cast<int32_t>(1 + num_variants * options.budgets.size());
}

Result<std::vector<PasskeyRow>> run_passkey(GroupRunner& runner, const Tokenizer& tokenizer,
                                            const std::vector<std::vector<int32_t>>& slices,
                                            const std::vector<PolicyVariant>& variants,
                                            const PasskeyOptions& options, const EvalContext& context) {
  struct Group {
    PasskeyMode mode;
    int32_t digits;
    std::vector<PasskeyRow> rows;  // the full cache, then variants x budgets
    std::vector<CacheSettings> settings;
  };
  if (options.prompt_len <= 2 * kRoom)
    return invalid_argument("prompt-len must be above " + std::to_string(2 * kRoom));
  std::vector<Group> groups;
  for (const PasskeyMode mode : options.modes) {
    for (const int32_t digits : options.digits) {
      if (digits < 1 || digits > 16)
        return invalid_argument("digits is " + std::to_string(digits) + ", must be between 1 and 16");
      Group group{mode, digits, {}, {}};
      const GroupText text = make_task(tokenizer, slices.at(0), options, context, mode, digits, 0).text;
      const auto add = [&](std::string policy, std::string name, int32_t budget, CacheSettings settings) {
        PasskeyRow row;
        row.policy = std::move(policy);
        row.variant = std::move(name);
        row.mode = mode;
        row.digits = digits;
        row.budget = budget;
        row.budget_used = budget == 0 ? 0 : settings.budget;
        group.rows.push_back(std::move(row));
        group.settings.push_back(std::move(settings));
      };
      add("full", "full", 0, CacheSettings::full());
      for (const PolicyVariant& variant : variants) {
        for (const int32_t budget : options.budgets) {
          Result<CacheSettings> settings = contender_settings(
              runner, variant,
              {.decode = DecodeMode::kEvict,
               .is_agnostic = !is_window(mode),
               .budget = budget,
               .prompt_len = static_cast<int64_t>(text.prompt.size()),
               .answer_len = static_cast<int64_t>(text.forced.size()) + text.max_tokens + 1,
               .equal_bytes = options.equal_bytes},
              context);
          if (!settings.ok())
            return invalid_argument("policy '" + variant.name + "': " + settings.status().message());
          const std::string policy(policy_name(settings->policy));
          add(policy, variant.name, budget, *std::move(settings));
        }
      }
      groups.push_back(std::move(group));
    }
  }
  int64_t done = 0;
  const auto total = static_cast<int64_t>(slices.size() * groups.size());
  for (uint32_t number = 0; number < slices.size() && !context.is_stopped(); ++number) {
    for (Group& group : groups) {
      const Task task =
          make_task(tokenizer, slices[number], options, context, group.mode, group.digits, number);
      const auto outcomes = runner.run(task.text, group.settings, nullptr);
      if (!outcomes.ok()) return outcomes.status();
      for (size_t i = 0; i < group.rows.size(); ++i) {
        PasskeyRow& row = group.rows[i];
        ++row.n;
        row.found += answers(tokenizer, (*outcomes)[i].tokens, task.key);
        row.bytes = (*outcomes)[i].cache.bytes;
      }
      context.progress(++done, total);
    }
  }
  std::vector<PasskeyRow> rows;
  for (Group& group : groups)
    rows.insert(rows.end(), std::make_move_iterator(group.rows.begin()),
                std::make_move_iterator(group.rows.end()));
  return rows;
}

}  // namespace restkv

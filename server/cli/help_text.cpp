// Flags stand in the table's order, grouped by their YAML section.
#include "server/cli/help_text.h"

#include <algorithm>

#include "server/config/options.h"

namespace restkv {
namespace {

constexpr size_t kHelpColumn = 34;

std::string option_line(const Option& option) {
  std::string line = "  ";
  for (const std::string_view alias : option.aliases) {
    if (alias.size() <= 3) line += "-" + std::string(alias) + ", ";
  }
  line += "--" + std::string(option.flag) + value_name(option);
  line.resize(std::max(line.size() + 2, kHelpColumn), ' ');
  line += option.help;
  if (const std::string text = default_text(option); !text.empty() && option.type != OptionType::kBool) {
    line += " [" + text + "]";
  }
  std::string others;
  for (const std::string_view alias : option.aliases) {
    if (alias.size() > 3) others += (others.empty() ? "" : ", ") + std::string("--") + std::string(alias);
  }
  return line + (others.empty() ? "" : " (also " + others + ")") + "\n";
}

}  // namespace

std::string value_name(const Option& option) {
  switch (option.type) {
    case OptionType::kBool: return "";
    case OptionType::kInt: return " N";
    case OptionType::kFloat: return " X";
    case OptionType::kSize: return " SIZE";
    case OptionType::kDuration: return " TIME";
    case OptionType::kString: return " TEXT";
    case OptionType::kPath: return " PATH";
    case OptionType::kIntList: return " N,N,...";
    case OptionType::kEnum: break;
  }
  std::string list;
  for (const std::string_view choice : option.choices)
    list += (list.empty() ? " " : "|") + std::string(choice);
  return list;
}

std::string help_of_program() {
  std::string text =
      "restkv: an LLM inference server\n\n"
      "usage: restkv COMMAND [ARGUMENTS] [FLAGS]\n\n";
  for (const VerbInfo& verb : verb_table()) {
    std::string line = "  " + std::string(verb.name);
    line.resize(14, ' ');
    text += line + std::string(verb.summary) + "\n";
  }
  return text +
         "\nMODEL is a folder with config.json, a .gguf file, ORG/REPO[:QUANT] of the Hugging Face hub, or "
         "demo.\n"
         "restkv help COMMAND shows its flags.\n";
}

std::string help_of_verb(const VerbInfo& verb) {
  std::string text = "usage: restkv " + std::string(verb.name) + " " + std::string(verb.synopsis) +
                     (verb.bit == 0 ? "" : " [FLAGS]") + "\n\n" + std::string(verb.summary) + ".\n";
  if (!verb.notes.empty()) text += std::string(verb.notes) + "\n";
  if (verb.bit == 0) return text;
  if (verb.bit == kConfig) {
    return text + "Takes the flags of serve that have a YAML key (restkv help serve).\n";
  }
  std::vector<std::string_view> sections = {""};
  for (const std::string_view section : yaml_sections()) sections.push_back(section);
  for (const std::string_view section : sections) {
    std::string lines;
    for (const Option& option : option_table()) {
      if (option.section == section && (option.verbs & verb.bit)) lines += option_line(option);
    }
    if (!lines.empty()) text += "\n" + (section.empty() ? "flags" : std::string(section)) + ":\n" + lines;
  }
  return text +
         "\nEach flag is also an environment variable: RESTKV_ and its name, as RESTKV_MAX_MODEL_LEN. Flags "
         "win over the\n"
         "environment, that over the YAML file. Numbers: 32k = 32000, 32K = 32768, 16GiB, 500ms, 30s, 10m.\n";
}

}  // namespace restkv

// roff for man(7). Text of the tables is escaped; nothing else of it is interpreted.
#include "server/cli/man_page.h"

#include <string_view>

#include "server/cli/help_text.h"
#include "server/cli/verbs.h"
#include "server/config/build_info.h"
#include "server/config/options.h"

namespace restkv {
namespace {

// A minus that stays one when it is copied, no escape, no request at the beginning of a line.
std::string roff(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\') {
      out += "\\e";
    } else if (c == '-') {
      out += "\\-";
    } else if ((c == '.' || c == '\'') && (out.empty() || out.back() == '\n')) {
      out += "\\&";
      out += c;
    } else {
      out += c;
    }
  }
  return out;
}

std::string bold(std::string_view text) { return "\\fB" + roff(text) + "\\fR"; }

std::string verb_text(const VerbInfo& verb) {
  std::string out = ".TP\n" + bold(verb.name);
  if (!verb.synopsis.empty()) out += " " + roff(verb.synopsis);
  out += "\n" + roff(verb.summary) + ".\n";
  if (!verb.notes.empty()) out += roff(verb.notes) + "\n";
  return out;
}

std::string commands_of(const Option& option) {
  std::string names;
  for (const VerbInfo& verb : verb_table()) {
    if (option.verbs & verb.bit) names += (names.empty() ? "" : ", ") + std::string(verb.name);
  }
  return names;
}

std::string option_text_of(const Option& option) {
  std::string out = ".TP\n" + bold("--" + std::string(option.flag)) + roff(value_name(option));
  for (const std::string_view alias : option.aliases)
    out += ", " + bold((alias.size() <= 3 ? "-" : "--") + std::string(alias));
  out += "\n" + roff(option.help) + ".\n";
  if (const std::string text = default_text(option); !text.empty()) out += "Default: " + bold(text) + ".\n";
  if (!option.section.empty())
    out += "YAML: " + bold(std::string(option.section) + "." + std::string(option.key)) + ".\n";
  return out + "Taken by " + roff(commands_of(option)) + ".\n";
}

}  // namespace

std::string man_page() {
  std::string out =
      ".\\\" Made by `restkv help man`.\n.TH RESTKV 1 \"\" \"restkv " + std::string(build_version()) +
      "\" \"User Commands\"\n"
      ".SH NAME\nrestkv \\- LLM inference server whose KV cache has a fixed size per sequence\n"
      ".SH SYNOPSIS\n.B restkv\n.I COMMAND\n[\\fIARGUMENTS\\fR] [\\fIFLAGS\\fR]\n"
      ".SH DESCRIPTION\n"
      "Serves a language model over OpenAI\\-compatible HTTP and gRPC.\n"
      ".I MODEL\n"
      "is a folder with config.json and safetensors files, a .gguf file, a repository of the Hugging Face "
      "hub (ORG/REPO[:QUANT], downloaded where it is missing) or\n.BR demo .\n"
      ".SH COMMANDS\n";
  for (const VerbInfo& verb : verb_table()) out += verb_text(verb);
  out +=
      ".SH OPTIONS\n"
      "Flags win over the environment, that over the YAML file of\n.BR \\-\\-config .\n"
      "Numbers: 32k = 32000, 32K = 32768, 16GiB, 500ms, 30s, 10m. A switch is turned off by\n"
      ".BR \\-\\-no\\-FLAG .\n";
  std::vector<std::string_view> sections = {""};
  for (const std::string_view section : yaml_sections()) sections.push_back(section);
  for (const std::string_view section : sections) {
    out += ".SS " + roff(section.empty() ? "without a YAML key" : section) + "\n";
    for (const Option& option : option_table()) {
      if (option.section == section) out += option_text_of(option);
    }
  }
  return out +
         ".SH ENVIRONMENT\n"
         ".TP\n\\fBRESTKV_\\fIFLAG\\fR\nEach flag, as \\fBRESTKV_MAX_MODEL_LEN\\fR for "
         "\\fB\\-\\-max\\-model\\-len\\fR.\n"
         ".TP\n\\fBHF_TOKEN\\fR, \\fBHF_TOKEN_PATH\\fR, \\fBHF_HOME\\fR, \\fBHF_HUB_CACHE\\fR, "
         "\\fBHF_HUB_OFFLINE\\fR, \\fBHF_ENDPOINT\\fR\nAs for Hugging Face's own tools.\n"
         ".TP\n\\fBCUDA_VISIBLE_DEVICES\\fR\nThe cards that may be used.\n"
         ".TP\n\\fBNO_COLOR\\fR\nNo colours on a terminal.\n"
         ".SH SIGNALS\n"
         ".TP\n\\fBSIGTERM\\fR, \\fBSIGINT\\fR\n"
         "serve: no new requests, those that run may finish within drain_timeout; a second one ends it at "
         "once.\n"
         ".TP\n\\fBSIGHUP\\fR\nserve: API keys and cache.profiles are read again, both or neither.\n"
         ".SH EXIT STATUS\n"
         "0: done. 1: it failed. 2: bad flags or settings. 130: Ctrl\\-C.\n"
         ".SH FILES\n"
         ".TP\n\\fI/etc/restkv/config.yaml\\fR\nSettings of the systemd unit.\n"
         ".TP\n\\fI~/.cache/huggingface/hub\\fR\nModels of the hub, shared with Hugging Face's own tools.\n"
         ".SH SEE ALSO\n.BR systemd.service (5)\n";
}

}  // namespace restkv

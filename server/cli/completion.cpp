// restkv completion bash|zsh|fish: a script for the shell, made from the tables of verbs and options.
#include <cstdio>

#include "server/cli/verbs.h"

namespace restkv {
namespace {

// The words that may stand directly behind a verb.
std::string_view words_of(const VerbInfo& verb) {
  if (verb.name == "completion") return "bash zsh fish";
  if (verb.name == "config") return "check show schema options";
  if (verb.name == "bench") return "latency throughput serve";
  if (verb.name == "eval") return "fidelity passkey";
  return verb.takes_model ? "demo" : "";
}

std::string joined(const std::vector<std::string_view>& words) {
  std::string text;
  for (const std::string_view word : words) text += (text.empty() ? "" : " ") + std::string(word);
  return text;
}

// For single quotes of a shell.
std::string shell_quoted(std::string_view text) {
  std::string result;
  for (const char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return "'" + result + "'";
}

std::string verb_names() {
  std::vector<std::string_view> names;
  for (const VerbInfo& verb : verb_table()) names.push_back(verb.name);
  return joined(names);
}

std::string flags_of(const VerbInfo& verb) {
  std::string text = "--help";
  for (const Option& option : option_table()) {
    if (!takes_option(verb, option)) continue;
    text += " --" + std::string(option.flag);
    if (option.type == OptionType::kBool) text += " --no-" + std::string(option.flag);
  }
  return text;
}

std::string bash_script() {
  std::string script =
      "# bash completion of restkv: source <(restkv completion bash)\n"
      "_restkv() {\n"
      "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} flags= words=\n"
      "  COMPREPLY=()\n"
      "  if (( COMP_CWORD == 1 )); then COMPREPLY=($(compgen -W " +
      shell_quoted(verb_names()) +
      " -- \"$word\")); return; fi\n"
      "  case $before in\n";
  for (const Option& option : option_table()) {
    if (option.type == OptionType::kEnum)
      script += "    --" + std::string(option.flag) + ") COMPREPLY=($(compgen -W " +
                shell_quoted(joined(option.choices)) + " -- \"$word\")); return ;;\n";
    if (option.type == OptionType::kPath)
      script += "    --" + std::string(option.flag) + ") COMPREPLY=($(compgen -f -- \"$word\")); return ;;\n";
  }
  script += "  esac\n  case ${COMP_WORDS[1]} in\n";
  for (const VerbInfo& verb : verb_table()) {
    script += "    " + std::string(verb.name) + ") flags=" + shell_quoted(flags_of(verb)) +
              " words=" + shell_quoted(verb.name == "help" ? verb_names() : std::string(words_of(verb))) +
              " ;;\n";
  }
  return script +
         "  esac\n"
         "  if [[ $word == -* ]]; then\n"
         "    COMPREPLY=($(compgen -W \"$flags\" -- \"$word\"))\n"
         "  else\n"
         "    COMPREPLY=($(compgen -W \"$words\" -- \"$word\") $(compgen -f -- \"$word\"))\n"
         "  fi\n"
         "}\n"
         "complete -o filenames -F _restkv restkv\n";
}

// A description inside [...] of zsh's _arguments.
std::string zsh_text(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == '[' || c == ']' || c == ':' || c == '\\') result += '\\';
    result += c;
  }
  return result;
}

std::string zsh_flag(const Option& option) {
  std::string spec = "--" + std::string(option.flag);
  if (option.type != OptionType::kBool) spec += "=";
  spec += "[" + zsh_text(option.help) + "]";
  if (option.type == OptionType::kEnum) return spec + ":value:(" + joined(option.choices) + ")";
  if (option.type == OptionType::kPath) return spec + ":file:_files";
  return option.type == OptionType::kBool ? spec : spec + ":value:";
}

std::string zsh_script() {
  std::string script =
      "#compdef restkv\n"
      "# zsh completion of restkv: restkv completion zsh > ~/.zfunc/_restkv, or source <(restkv completion "
      "zsh)\n"
      "_restkv() {\n"
      "  local -a verbs\n  verbs=(\n";
  for (const VerbInfo& verb : verb_table())
    script += "    " + shell_quoted(std::string(verb.name) + ":" + zsh_text(verb.summary)) + "\n";
  script +=
      "  )\n"
      "  if (( CURRENT == 2 )); then _describe command verbs; return; fi\n"
      "  local verb=$words[2]\n"
      "  shift words; (( CURRENT-- ))\n"
      "  case $verb in\n";
  for (const VerbInfo& verb : verb_table()) {
    script += "    " + std::string(verb.name) + ")\n      _arguments '--help[Show help]'";
    for (const Option& option : option_table()) {
      if (takes_option(verb, option)) script += " \\\n        " + shell_quoted(zsh_flag(option));
    }
    const std::string_view words = words_of(verb);
    if (!words.empty())
      script += " \\\n        " + shell_quoted("1:argument:_alternative \"words:word:(" + std::string(words) +
                                               ")\" \"files:file:_files\"");
    script += " \\\n        '*:argument:_files' ;;\n";
  }
  return script +
         "  esac\n"
         "}\n"
         "if [[ $funcstack[1] == _restkv ]]; then _restkv \"$@\"; else compdef _restkv restkv; fi\n";
}

std::string fish_script() {
  std::string script =
      "# fish completion of restkv: restkv completion fish > ~/.config/fish/completions/restkv.fish\n"
      "complete -c restkv -n __fish_use_subcommand -f\n";
  for (const VerbInfo& verb : verb_table())
    script += "complete -c restkv -n __fish_use_subcommand -a " + std::string(verb.name) + " -d " +
              shell_quoted(verb.summary) + "\n";
  for (const VerbInfo& verb : verb_table()) {
    const std::string under =
        "complete -c restkv -n '__fish_seen_subcommand_from " + std::string(verb.name) + "'";
    if (!words_of(verb).empty()) script += under + " -a " + shell_quoted(words_of(verb)) + "\n";
    for (const Option& option : option_table()) {
      if (!takes_option(verb, option)) continue;
      script += under + " -l " + std::string(option.flag);
      if (option.type == OptionType::kEnum) script += " -x -a " + shell_quoted(joined(option.choices));
      if (option.type == OptionType::kPath) script += " -r";
      if (option.type != OptionType::kBool && option.type != OptionType::kEnum &&
          option.type != OptionType::kPath)
        script += " -x";
      script += " -d " + shell_quoted(option.help) + "\n";
    }
  }
  return script;
}

}  // namespace

int run_completion(const Invocation& invocation) {
  const std::string& shell = invocation.arguments[0];
  std::string script;
  if (shell == "bash") script = bash_script();
  if (shell == "zsh") script = zsh_script();
  if (shell == "fish") script = fish_script();
  if (script.empty()) return fail("unknown shell '" + shell + "' (bash, zsh or fish)", kExitUsage);
  std::fputs(script.c_str(), stdout);
  return kExitOk;
}

}  // namespace restkv

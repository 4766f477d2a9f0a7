// restkv tokenize MODEL [TEXT]: one id a line, or {"tokens": [...]}.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "engine/text/tokenizer.h"
#include "server/cli/model_path.h"
#include "server/cli/terminal.h"
#include "server/cli/verbs.h"

namespace restkv {

int run_tokenize(const Invocation& invocation) {
  const OutputSettings& output = invocation.settings().output;
  if (!output.file.empty() && !invocation.arguments.empty()) {
    return fail("TEXT and --file are both given; one is enough", kExitUsage);
  }
  const Result<std::string> path = resolve_model(invocation.settings().model);
  if (!path.ok()) return fail(path.status());
  const Result<std::shared_ptr<const Tokenizer>> tokenizer = load_tokenizer(*path);
  if (!tokenizer.ok()) return fail(tokenizer.status());

  std::string text;
  if (!output.file.empty()) {
    std::ifstream file(output.file, std::ios::binary);
    if (!file || std::filesystem::is_directory(output.file))
      return fail("cannot read the text file " + output.file);
    text.assign(std::istreambuf_iterator<char>(file), {});
  } else if (!invocation.arguments.empty()) {
    text = invocation.arguments[0];
  } else {
    Result<std::string> piped = read_standard_input();
    if (!piped.ok()) return fail(piped.status());
    text = *std::move(piped);
  }

  std::string out = output.json ? "{\"tokens\": [" : "";
  bool is_first = true;
  for (const int32_t id : (*tokenizer)->encode(text, {})) {
    if (output.json && !is_first) out += ", ";
    out += std::to_string(id);
    if (!output.json) out += '\n';
    is_first = false;
  }
  if (output.json) out += "]}\n";
  std::fwrite(out.data(), 1, out.size(), stdout);
  return kExitOk;
}

}  // namespace restkv

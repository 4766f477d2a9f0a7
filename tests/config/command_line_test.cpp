// argv by the option table: forms of flags, the errors' words, MODEL, and the help texts.
#include "server/cli/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/cli/help_text.h"

namespace restkv {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

CommandLine parse(const std::vector<std::string>& arguments) {
  return parse_command_line(arguments, [](const std::string&) { return std::nullopt; });
}

TEST(CommandLine, TakesAllFormsOfFlags) {
  const CommandLine line =
      parse({"serve", "some.gguf", "--port", "81", "--max_model_len=2K", "-t", "3", "--insecure",
             "--host=0.0.0.0", "--no-log-content", "--idle-timeout", "1m", "--strict-params=yes"});
  EXPECT_THAT(line.errors, IsEmpty());
  const Settings& settings = line.invocation.settings();
  EXPECT_EQ(settings.model.path, "some.gguf");
  EXPECT_EQ(settings.server.port, 81);
  EXPECT_EQ(settings.engine.max_model_len, 2048);
  EXPECT_EQ(settings.engine.threads, 3);
  EXPECT_TRUE(settings.server.insecure);
  EXPECT_TRUE(settings.server.strict_params);
  EXPECT_FALSE(settings.logging.log_content);
  EXPECT_EQ(settings.server.idle_timeout, milliseconds(60'000));
}

TEST(CommandLine, ModelIsTheFirstArgumentUnlessAFlagSaysIt) {
  EXPECT_THAT(parse({"complete", "m", "text"}).invocation.arguments, ElementsAre("text"));
  EXPECT_THAT(parse({"complete", "-m", "m", "text"}).invocation.arguments, ElementsAre("text"));
  EXPECT_EQ(parse({"complete", "text", "-m", "m"}).invocation.settings().model.path, "m");
  EXPECT_THAT(parse({"complete", "m", "--", "--text"}).invocation.arguments, ElementsAre("--text"));
  EXPECT_THAT(parse({"bench", "latency", "m"}).invocation.arguments, ElementsAre("latency"));
  EXPECT_EQ(parse({"bench", "latency", "m"}).invocation.settings().model.path, "m");
  EXPECT_THAT(
      parse({"serve"}).errors,
      ElementsAre("MODEL is missing: a folder, a .gguf file, ORG/REPO[:QUANT] or demo (restkv serve MODEL)"));
  EXPECT_THAT(parse({"serve", "m", "n"}).errors, ElementsAre("unexpected argument 'n'"));
  EXPECT_THAT(
      parse({"bench"}).errors,
      ElementsAre("an argument is missing: restkv bench latency MODEL | throughput MODEL | serve URL"));
}

TEST(CommandLine, LastOfSeveralWins) {
  EXPECT_EQ(parse({"serve", "m", "--port", "1", "--port", "2"}).invocation.settings().server.port, 2);
}

TEST(CommandLine, ReportsEveryError) {
  EXPECT_THAT(
      parse({"serve", "m", "--prot", "1", "--port", "70000", "--max-tokens", "3", "--threads=many", "--host"})
          .errors,
      ElementsAre("unknown flag '--prot' (did you mean '--port'?)",
                  "'--max-tokens' is not a flag of 'serve' (it belongs to: complete, chat)",
                  "--host: needs a value", "unexpected argument '1'",
                  "--port: 70000 is out of bounds (0 to 65535)",
                  "--threads: 'many' is not a whole number (examples: 4096, 32k, 32K)"));
  EXPECT_THAT(parse({"serv"}).errors, ElementsAre("unknown command 'serv' (did you mean 'serve'?)"));
  EXPECT_THAT(parse({"serve", "m", "--no-insecure=true"}).errors,
              ElementsAre("'--no-insecure' takes no value"));
  EXPECT_THAT(parse({"serve", "m", "--no-port"}).errors, ElementsAre(HasSubstr("unknown flag '--no-port'")));
  EXPECT_THAT(parse({"serve", "m", "--host", "0.0.0.0"}).errors, ElementsAre(HasSubstr("--insecure")));
  EXPECT_THAT(parse({"serve", "m", "--p\x1b[31m"}).errors, ElementsAre(HasSubstr("\\x1b")));
}

TEST(CommandLine, VerbsOfTheIssueExist) {
  for (const char* name :
       {"serve", "complete", "tokenize", "logits", "inspect", "bench", "config", "version", "help"}) {
    EXPECT_NE(find_verb(name), nullptr) << name;
  }
  EXPECT_EQ(parse({"--version"}).verb, find_verb("version"));
  EXPECT_EQ(parse({}).verb, find_verb("help"));
  EXPECT_TRUE(parse({"serve", "--help"}).wants_help);
}

TEST(HelpText, NamesEveryFlagOfAVerb) {
  for (const VerbInfo& verb : verb_table()) {
    EXPECT_THAT(help_of_program(), HasSubstr("  " + std::string(verb.name) + " "));
    const std::string help = help_of_verb(verb);
    if (verb.bit == 0 || verb.bit == kConfig) continue;
    for (const Option& option : option_table()) {
      const bool is_named = help.find("--" + std::string(option.flag) + " ") != std::string::npos;
      EXPECT_EQ(is_named, (option.verbs & verb.bit) != 0) << verb.name << " --" << option.flag;
    }
  }
}

}  // namespace
}  // namespace restkv

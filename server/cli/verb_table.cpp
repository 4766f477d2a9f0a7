// The rows of the verb table, and the two verbs that only print: version and help.
#include <cstdio>

#include "server/cli/help_text.h"
#include "server/cli/man_page.h"
#include "server/cli/verbs.h"
#include "server/config/build_info.h"
#include "server/config/nearest_name.h"

namespace restkv {
namespace {

constexpr VerbInfo kVerbs[] = {
    {.name = "serve",
     .bit = kServe,
     .synopsis = "MODEL",
     .summary = "Answer OpenAI's API over HTTP, and gRPC",
     .notes = "Ctrl-C or SIGTERM lets running requests finish (drain-timeout); a second one stops at once.",
     .takes_model = true,
     .run = run_serve},
    {.name = "complete",
     .bit = kComplete,
     .synopsis = "MODEL [PROMPT]",
     .summary = "Continue a text on the terminal",
     .notes = "Without PROMPT the text is read from standard input. Ctrl-C ends the answer.",
     .takes_model = true,
     .max_arguments = 1,
     .run = run_complete},
    {.name = "chat",
     .bit = kChat,
     .synopsis = "MODEL",
     .summary = "Talk with a model on the terminal",
     .notes =
         "A line is a message or a command: /budget N, /reset, /system TEXT, /exit, /help. Ctrl-C stops an "
         "answer, not the program.",
     .takes_model = true,
     .run = run_chat},
    {.name = "tokenize",
     .bit = kTokenize,
     .synopsis = "MODEL [TEXT]",
     .summary = "Print the token ids of a text, one a line",
     .notes = "Without TEXT and --file the text is read from standard input. A GGUF file with a vocabulary "
              "only will do.",
     .takes_model = true,
     .max_arguments = 1,
     .run = run_tokenize},
    {.name = "logits",
     .bit = kLogits,
     .synopsis = "MODEL --tokens N,N,... --out FILE",
     .summary = "Write the logits of every position to a safetensors file",
     .notes = "The tensor is called logits, f32 [T, V].",
     .takes_model = true,
     .run = run_logits},
    {.name = "inspect",
     .bit = kInspect,
     .synopsis = "MODEL",
     .summary = "Show shapes, types, tokenizer, context and the memory plan",
     .takes_model = true,
     .run = run_inspect},
    {.name = "bench",
     .bit = kBench,
     .synopsis = "latency MODEL | throughput MODEL | serve URL",
     .summary =
         "Measure one sequence at a time or many at once in this process, or a running server over HTTP",
     .notes = "serve: without --request-rate all requests arrive at once; --max-concurrency bounds those in "
              "flight. "
              "OPENAI_API_KEY in the environment is sent as the key.",
     .takes_model = true,
     .min_arguments = 1,
     .max_arguments = 1,
     .run = run_bench},
    {.name = "eval",
     .bit = kEval,
     .synopsis = "fidelity|passkey MODEL --texts DIR",
     .summary = "Measure what policies and budgets do to the model's predictions",
     .notes =
         "fidelity: against the full cache on the same text; passkey: is a number found that the text states "
         "once?\n"
         "A policy is written as restkv, restkv:paper or\n"
         "snapkv[kernel=7]; ratios are those of the mean KL to restkv:paper and snapkv where they are "
         "listed.",
     .takes_model = true,
     .min_arguments = 1,
     .max_arguments = 1,
     .run = run_eval},
    {.name = "calibrate",
     .bit = kCalibrate,
     .synopsis = "MODEL --texts DIR",
     .summary = "Compute how a model's budget is best spread over layers and heads",
     .notes =
         "The file is found again by serve and the other verbs: beside the model or in configs/allocations.",
     .takes_model = true,
     .run = run_calibrate},
    {.name = "pull",
     .bit = kPull,
     .synopsis = "ORG/REPO[:QUANT]",
     .summary = "Download a model of the Hugging Face hub, or what is missing of it",
     .notes = "Prints where it is. The cache is shared with Hugging Face's tools; a download that was cut "
              "goes on where it "
              "ended.\n"
              "Without :QUANT: the safetensors files, or else the GGUF file of the first type there is of "
              "Q4_K_M, Q4_K_S, "
              "Q4_0, Q4_1,\nQ5_K_M, Q5_K_S, Q6_K, Q8_0, BF16, F16, F32. QUANT may be the name of a .gguf "
              "file, too.\n"
              "Environment: HF_TOKEN, HF_TOKEN_PATH, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT, "
              "HF_HUB_DOWNLOAD_TIMEOUT.",
     .min_arguments = 1,
     .max_arguments = 1,
     .run = run_pull},
    {.name = "ls", .bit = kList, .summary = "List the models that are on this machine", .run = run_ls},
    {.name = "rm",
     .bit = kRemove,
     .synopsis = "ORG/REPO[:QUANT]",
     .summary = "Remove a model from the hub's cache",
     .notes = "With --revision that snapshot alone, with :QUANT its GGUF file alone. A file that another "
              "snapshot needs stays.",
     .min_arguments = 1,
     .max_arguments = 1,
     .run = run_rm},
    {.name = "config",
     .bit = kConfig,
     .synopsis = "check [FILE...] | show | schema | options",
     .summary = "Check YAML files, show all settings and where they come from, print the JSON schema or the "
                "option table",
     .min_arguments = 1,
     .max_arguments = 1000,
     .run = run_config},
    {.name = "doctor",
     .bit = kDoctor,
     .synopsis = "[MODEL]",
     .summary = "Check this machine: processor, GPU, memory, port, limits, cache, model, settings",
     .notes =
         "Each line is ok, warn or fail, with what to do; exit 1 if something fails. Nothing is downloaded.",
     .takes_model = true,
     .is_model_optional = true,
     .run = run_doctor},
    {.name = "healthcheck",
     .bit = kHealth,
     .synopsis = "[URL]",
     .summary = "Ask a server whether it is ready; exit 0: yes, 1: no",
     .notes = "Without URL: the configured host and port.",
     .max_arguments = 1,
     .run = run_healthcheck},
    {.name = "completion",
     .synopsis = "bash|zsh|fish",
     .summary = "Print a completion script for a shell",
     .notes = "bash: source <(restkv completion bash)",
     .min_arguments = 1,
     .max_arguments = 1,
     .run = run_completion},
    {.name = "version", .summary = "Print version, commit, compiler and processor", .run = run_version},
    {.name = "help",
     .synopsis = "[COMMAND | man]",
     .summary = "Print this, a command's help or the manual page",
     .notes = "man: roff, as in restkv help man > restkv.1",
     .max_arguments = 1,
     .run = run_help},
};

}  // namespace

std::span<const VerbInfo> verb_table() { return kVerbs; }

bool takes_option(const VerbInfo& verb, const Option& option) {
  return (option.verbs & verb.bit) != 0 || (verb.bit == kConfig && !option.section.empty());
}

const VerbInfo* find_verb(std::string_view name) {
  for (const VerbInfo& verb : kVerbs) {
    if (verb.name == name) return &verb;
  }
  return nullptr;
}

int run_version(const Invocation&) {
  std::printf("restkv %s (commit %s, %s)\nprocessor: %s\n", std::string(build_version()).c_str(),
              std::string(build_commit()).c_str(), std::string(build_compiler()).c_str(),
              cpu_features().c_str());
  return kExitOk;
}

int run_help(const Invocation& invocation) {
  if (invocation.arguments.empty()) {
    std::fputs(help_of_program().c_str(), stdout);
    return kExitOk;
  }
  if (invocation.arguments[0] == "man") {
    std::fputs(man_page().c_str(), stdout);
    return kExitOk;
  }
  const VerbInfo* verb = find_verb(invocation.arguments[0]);
  if (verb == nullptr) {
    std::vector<std::string_view> known;
    for (const VerbInfo& row : kVerbs) known.push_back(row.name);
    return fail(
        "unknown command '" + invocation.arguments[0] + "'" + suggestion(invocation.arguments[0], known),
        kExitUsage);
  }
  std::fputs(help_of_verb(*verb).c_str(), stdout);
  return kExitOk;
}

}  // namespace restkv

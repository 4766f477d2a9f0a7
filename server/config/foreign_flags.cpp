// The option table is looked up first: a row here that an option takes over is never reached.
#include "server/config/foreign_flags.h"

#include <algorithm>

#include "server/config/logging.h"

namespace restkv {
namespace {

std::vector<ForeignFlag> make_table() {
  constexpr bool kValue = true, kSwitch = false;
  const std::vector<std::string_view> always = {"true"}, never = {"false"};
  return {
      // vLLM
      {{"dtype"}, kValue, {"auto"}, "weights are computed in the type of their file"},
      {{"quantization", "q"},
       kValue,
       {},
       "the file says how it is quantized; take another file (ORG/REPO:Q4_K_M)"},
      {{"load-format"}, kValue, {"auto"}, "the format is that of the file: safetensors or GGUF"},
      {{"block-size"}, kValue, {}, "the size of a cache page is fixed for each backend"},
      {{"tensor-parallel-size", "tp", "pipeline-parallel-size", "pp", "data-parallel-size", "dp"},
       kValue,
       {"1"},
       "a model runs on one device"},
      {{"enable-prefix-caching"}, kSwitch, always, "use --prefix-fraction 0"},
      {{"enable-chunked-prefill"}, kSwitch, always, "prompts are always cut"},
      {{"swap-space", "cpu-offload-gb"}, kValue, {"0"}, "nothing is moved between devices"},
      {{"tokenizer"}, kValue, {}, "the tokenizer is the one beside the weights"},
      {{"generation-config"}, kValue, {"auto"}, "the model's own file gives what requests leave open"},
      {{"tokenizer-mode"}, kValue, {"auto"}, "the tokenizer is the one beside the weights"},
      {{"trust-remote-code"}, kSwitch, never, "code out of a model's repository is never run"},
      {{"tool-call-parser", "reasoning-parser"}, kValue, {}, "answers are not parsed for it"},
      {{"enable-auto-tool-choice"}, kSwitch, never, "answers are not parsed for tool calls"},
      {{"ssl-keyfile", "ssl-certfile", "ssl-ca-certs"},
       kValue,
       {},
       "there is no TLS here: put a reverse proxy in front"},
      {{"otlp-traces-endpoint"}, kValue, {}, "traces are not exported; W3C traceparent goes to the log"},
      {{"enable-lora", "enable-sleep-mode"}, kSwitch, never, "it is not there"},
      {{"lora-modules", "speculative-config", "lora", "model-draft", "md", "draft-model"},
       kValue,
       {},
       "it is not there"},
      {{"enforce-eager"}, kSwitch, {}, "there is nothing to switch off"},
      {{"disable-log-requests", "disable-log-stats", "enable-log-requests"}, kSwitch, {}, "use --log-level"},
      {{"uvicorn-log-level"}, kValue, {}, "use --log-level"},
      {{"root-path", "allowed-origins"}, kValue, {}, "it is not there: put a reverse proxy in front"},
      {{"hf-token", "hft"},
       kValue,
       {},
       "tokens on a command line can be seen by everybody; put it in HF_TOKEN or HF_TOKEN_PATH"},
      // llama.cpp
      {{"n-gpu-layers", "gpu-layers", "ngl"},
       kValue,
       {"99", "999", "-1", "all", "auto"},
       "a model runs on one device as a whole, by default the card; none of it on the card is --device cpu"},
      {{"tensor-split", "ts", "split-mode", "sm", "main-gpu", "mg"},
       kValue,
       {},
       "a model runs on one device as a whole, its layers are not divided; use --device cuda:N"},
      {{"jinja"}, kSwitch, always, "templates are always Jinja"},
      {{"metrics"}, kSwitch, always, "/metrics is always there"},
      {{"flash-attn", "fa"}, kValue, {"on", "auto", "1"}, "attention always works so"},
      {{"cont-batching", "cb"}, kSwitch, always, "requests are always batched so"},
      {{"context-shift"}, kSwitch, never, "a full context ends the answer; --budget bounds the cache"},
      {{"mmap"}, kSwitch, always, "files are always mapped"},
      {{"mlock"}, kSwitch, never, "memory is not locked"},
      {{"cache-type-v", "ctv"}, kValue, {}, "K and V have one type: --cache-dtype"},
      {{"ubatch-size", "ub"}, kValue, {}, "use --max-num-batched-tokens"},
      {{"threads-batch", "tb"}, kValue, {}, "prompts and answers share --threads"},
      {{"hf-file", "hff"}, kValue, {}, "name the file behind the repository: ORG/REPO:FILE.gguf"},
      {{"model-url", "mu"}, kValue, {}, "addresses are not fetched; MODEL may be ORG/REPO[:QUANT]"},
      {{"threads-http"}, kValue, {}, "use --io-threads"},
      {{"timeout", "to"}, kValue, {}, "use --write-timeout or --request-timeout"},
      {{"log-disable", "verbose", "v"}, kSwitch, {}, "use --log-level"},
      {{"embedding", "embeddings", "reranking", "rerank"}, kSwitch, never, "only text is generated"},
      {{"grammar", "grammar-file", "json-schema", "j"}, kValue, {}, "answers cannot be constrained"},
      {{"keep"}, kValue, {}, "use --sinks"},
  };
}

}  // namespace

std::span<const ForeignFlag> foreign_flags() {
  static const std::vector<ForeignFlag> table = make_table();
  return table;
}

const ForeignFlag* find_foreign_flag(std::string_view name) {
  std::string dashed(name);
  std::replace(dashed.begin(), dashed.end(), '_', '-');
  for (const ForeignFlag& flag : foreign_flags()) {
    if (std::find(flag.names.begin(), flag.names.end(), dashed) != flag.names.end()) return &flag;
  }
  return nullptr;
}

Status check_foreign_flag(const ForeignFlag& flag, std::string_view spelling, std::string_view value) {
  if (std::find(flag.accepted.begin(), flag.accepted.end(), value) != flag.accepted.end()) return {};
  std::string allowed;
  if (flag.takes_value) {
    for (const std::string_view one : flag.accepted)
      allowed += (allowed.empty() ? "; only " : " or ") + std::string(one);
  }
  return unimplemented(quote_text(spelling) + " cannot be honoured: " + std::string(flag.reason) + allowed);
}

}  // namespace restkv

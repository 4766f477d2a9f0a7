// The text continues the prompt: no token of its own begins it, and nothing in it is a special token.
#include "server/openai/probe_tokens.h"

namespace restkv {

Status tokenize_probe(CacheSettings& settings, int64_t prompt_len, const Tokenizer& tokenizer) {
  const ProbeSpec probe = probe_for_prompt(settings, prompt_len);
  if (probe.kind == ProbeSpec::Kind::kNone || probe.kind == ProbeSpec::Kind::kTokens) return {};
  settings.probe.tokens =
      tokenizer.encode(probe_text(probe), {.add_special = false, .special_tokens = SpecialTokens::kAsText});
  const size_t count = settings.probe.tokens.size();
  if (count >= 1 && count <= static_cast<size_t>(kMaxProbeTokens)) return {};
  return invalid_argument("cache.probe: the text has " + std::to_string(count) +
                          " tokens, must be between 1 and " + std::to_string(kMaxProbeTokens))
      .with_param("cache.probe");
}

}  // namespace restkv

// A probe's text to token ids: the engine takes ids alone.
#pragma once

#include "engine/eviction/cache_settings.h"
#include "engine/text/tokenizer.h"

namespace restkv {

// Fills in the ids of the probe that a prompt of so many tokens gets, if it is a text. Error: too many of them.
Status tokenize_probe(CacheSettings& settings, int64_t prompt_len, const Tokenizer& tokenizer);

}  // namespace restkv

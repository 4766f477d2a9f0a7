// SentencePiece's BPE from pieces and scores, as GGUF files and tokenizer.model give them. The model works on plain
// spaces: "▁" in pieces and in text is a space from the start, which is the same as writing spaces as "▁".
#pragma once

#include <memory>
#include <span>

#include "engine/text/bpe_model.h"
#include "engine/text/text_tokenizer.h"

namespace restkv {

// The bytes a piece stands for: byte tokens their byte, others with "▁" as a space.
std::string sentencepiece_bytes(std::string_view piece, TokenType type);

// Pairs are merged by the score of what they become, higher first. scores: [vocab], no NaN.
Result<std::unique_ptr<BpeModel>> make_sentencepiece_bpe(const Vocabulary& vocabulary,
                                                         std::span<const float> scores, int32_t unknown_id,
                                                         bool byte_fallback);

}  // namespace restkv

// Two small vocabularies that the tests of this folder share: byte-level BPE and SentencePiece BPE.
#pragma once

#include <string>
#include <vector>

#include "engine/text/utf8.h"
#include "tests/text/gguf_builder.h"

namespace restkv {

struct SmallBpe {
  std::vector<std::string> tokens, merges;
  std::vector<int32_t> types;

  // 256 bytes, then "th", "the", " the", " t", "aa", "aaaa"; <|start|>, <|im_end|> (control), <user> (user-defined).
  SmallBpe() {
    for (int byte = 0; byte < 256; ++byte)
      tokens.push_back(alphabet_text_of_bytes(std::string(1, static_cast<char>(byte))));
    for (const char* token : {"th", "the", "\xC4\xA0the", "\xC4\xA0t", "aa", "aaaa"}) tokens.push_back(token);
    types.assign(tokens.size(), 1);
    for (const char* token : {"<|start|>", "<|im_end|>", "<user>"}) tokens.push_back(token);
    types.insert(types.end(), {3, 3, 4});
    merges = {"t h", "th e", "\xC4\xA0 the", "\xC4\xA0 t", "a a", "aa aa"};
  }
  static constexpr int32_t kTh = 256, kThe = 257, kSpaceThe = 258, kSpaceT = 259, kAa = 260, kAaaa = 261;
  static constexpr int32_t kStart = 262, kEnd = 263, kUser = 264;

  GgufBuilder builder(const std::string& pre = "gpt-2") const {
    GgufBuilder out;
    out.string("tokenizer.ggml.model", "gpt2").string("tokenizer.ggml.pre", pre);
    out.strings("tokenizer.ggml.tokens", tokens).strings("tokenizer.ggml.merges", merges);
    out.numbers("tokenizer.ggml.token_type", GgufType::kI32, types);
    out.number("tokenizer.ggml.bos_token_id", kStart).number("tokenizer.ggml.eos_token_id", kStart);
    return out;
  }
};

struct SmallSentencePiece {
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<float> scores = {0, 0, 0};
  std::vector<int32_t> types = {2, 3, 3};

  // <unk> <s> </s>, 256 bytes, then these, the earlier the stronger.
  SmallSentencePiece() {
    for (int byte = 0; byte < 256; ++byte) {
      constexpr const char* kDigits = "0123456789ABCDEF";
      add(std::string("<0x") + kDigits[byte >> 4] + kDigits[byte & 15] + ">", 0, 6);
    }
    for (const char* piece : {"he", "\xE2\x96\x81the", "\xE2\x96\x81t", "\xE2\x96\x81", "t", "h", "e", "a"}) {
      add(piece, -static_cast<float>(tokens.size()), 1);
    }
    add("[u]", 0, 4);
  }
  static constexpr int32_t kByte = 3, kHe = 259, kSpaceThe = 260, kSpaceT = 261, kSpace = 262, kT = 263,
                           kH = 264;
  static constexpr int32_t kE = 265, kA = 266, kUser = 267;

  void add(const std::string& token, float score, int32_t type) {
    tokens.push_back(token);
    scores.push_back(score);
    types.push_back(type);
  }
  GgufBuilder builder() const {
    GgufBuilder out;
    out.string("tokenizer.ggml.model", "llama").strings("tokenizer.ggml.tokens", tokens);
    out.numbers("tokenizer.ggml.scores", GgufType::kF32, scores);
    out.numbers("tokenizer.ggml.token_type", GgufType::kI32, types);
    out.number("tokenizer.ggml.bos_token_id", 1).number("tokenizer.ggml.eos_token_id", 2);
    return out;
  }
};

}  // namespace restkv

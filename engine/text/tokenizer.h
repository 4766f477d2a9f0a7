// Text <-> token ids. Thread-safe after construction. No recursion over the input; linear or n log n on any input.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace restkv {

class GgufFile;

enum class SpecialTokens : uint8_t {
  kAsText,  // "<|im_end|>" in the text is just characters (what users type)
  kParse,   // becomes the token (rendered templates, /v1/completions prompts)
};

// Bytes [begin, end) of a text.
struct ByteSpan {
  size_t begin = 0, end = 0;
};

struct EncodeOptions {
  bool add_special = true;  // BOS / EOS as the file says
  SpecialTokens special_tokens = SpecialTokens::kParse;
  // With kParse: bytes that no special token may touch, what users wrote in a rendered template. Sorted, disjoint.
  std::span<const ByteSpan> plain = {};
};

// What decoding drops at the start of a text.
enum class LeadingSpaces : uint8_t {
  kStay,
  kOneGoes,            // SentencePiece's dummy prefix
  kAllOfFirstTokenGo,  // as tokenizer.json's Metaspace does: also those inside it
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const = 0;
  // The bytes that token `id` adds behind other tokens (may be part of a code point); special tokens: their text.
  virtual std::string_view token_bytes(int32_t id) const = 0;
  // The token as the vocabulary writes it ("Ġthe", "▁the", "<0x0A>").
  virtual std::string_view token_text(int32_t id) const = 0;
  virtual bool is_special(int32_t id) const = 0;  // control tokens: hidden from answers by default
  virtual int32_t vocab_size() const = 0;
  virtual std::string_view kind()
      const = 0;                       // "byte-level BPE (llama-bpe)", "SentencePiece BPE": for inspect
  virtual int32_t bos_id() const = 0;  // -1: none
  virtual const std::vector<int32_t>& eos_ids() const = 0;  // end of text and of turn
  virtual bool adds_bos() const = 0;
  virtual LeadingSpaces leading_spaces() const = 0;

  std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;
};

// From the metadata of a GGUF file, also a vocabulary-only one.
Result<std::shared_ptr<const Tokenizer>> load_gguf_tokenizer(const GgufFile& file);
// From a model: a .gguf, or a folder with tokenizer.json, tokenizer.model, tekken.json or a tiktoken rank file.
Result<std::shared_ptr<const Tokenizer>> load_tokenizer(const std::string& path);

// Turns tokens into text as they come; never gives out part of a code point (incomplete bytes wait for the next token;
// bytes that can never become valid are U+FFFD, as Python's errors="replace").
class StreamingDetokenizer {
 public:
  // `at_start`: the tokens begin a text, so that a dummy prefix is taken back as in decode(); an answer continues its
  // prompt instead, and its first space counts.
  explicit StreamingDetokenizer(const Tokenizer& tokenizer, bool skip_special = true, bool at_start = false);
  // Text that became complete with this token.
  std::string append(int32_t id);
  // What is left at the end of the answer.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  bool at_start_;
  std::string pending_;  // at most 3 bytes of an unfinished code point
};

}  // namespace restkv

// A tokenizer whose tokens are bytes, for tests that need no vocabulary. "<s>" and "</s>" are tokens where plain spans are
// given (a rendered template) and none of them is touched.
//   ids: 0..255 bytes | 256 "<s>" | 257 "</s>" | 258.. the pieces given
#pragma once

#include <string>
#include <vector>

#include "engine/text/tokenizer.h"

namespace restkv {

class ByteTokenizer final : public Tokenizer {
 public:
  static constexpr int32_t kBos = 256, kEos = 257, kFirstPiece = 258;
  explicit ByteTokenizer(std::vector<std::string> pieces = {},
                         LeadingSpaces leading_spaces = LeadingSpaces::kStay);

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const override;
  std::string_view token_bytes(int32_t id) const override;
  std::string_view token_text(int32_t id) const override { return token_bytes(id); }
  bool is_special(int32_t id) const override { return id == kBos || id == kEos; }
  int32_t vocab_size() const override { return static_cast<int32_t>(tokens_.size()); }
  std::string_view kind() const override { return "bytes"; }
  int32_t bos_id() const override { return kBos; }
  const std::vector<int32_t>& eos_ids() const override { return eos_; }
  bool adds_bos() const override { return true; }
  LeadingSpaces leading_spaces() const override { return leading_spaces_; }

 private:
  std::vector<std::string> tokens_;  // [V]
  std::vector<int32_t> eos_{kEos};
  LeadingSpaces leading_spaces_;
};

}  // namespace restkv

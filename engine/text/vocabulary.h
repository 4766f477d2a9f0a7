// The tokens of a vocabulary: how each is written, the bytes it stands for, and what kind it is.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace restkv {

// GGUF's and SentencePiece's numbers.
enum class TokenType : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

class Vocabulary {
 public:
  void reserve(size_t num_tokens, size_t num_bytes) {
    tokens_.reserve(num_tokens);
    arena_.reserve(num_bytes);
  }
  void add(std::string_view text, std::string_view bytes, TokenType type) {
    Token token;
    token.text_begin = arena_.size();
    token.text_len = static_cast<uint32_t>(text.size());
    arena_.append(text);
    token.bytes_begin = bytes == text ? token.text_begin : arena_.size();
    token.bytes_len = static_cast<uint32_t>(bytes.size());
    if (bytes != text) arena_.append(bytes);
    token.type = type;
    tokens_.push_back(token);
  }

  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }
  bool contains(int64_t id) const { return id >= 0 && id < size(); }
  // Views are valid once all tokens are added.
  std::string_view text(int32_t id) const { return view(tokens_[id].text_begin, tokens_[id].text_len); }
  std::string_view bytes(int32_t id) const { return view(tokens_[id].bytes_begin, tokens_[id].bytes_len); }
  TokenType type(int32_t id) const { return tokens_[id].type; }

 private:
  struct Token {
    uint64_t text_begin = 0, bytes_begin = 0;
    uint32_t text_len = 0, bytes_len = 0;
    TokenType type = TokenType::kNormal;
  };
  std::string_view view(uint64_t begin, uint32_t length) const {
    return std::string_view(arena_).substr(begin, length);
  }
  std::string arena_;
  std::vector<Token> tokens_;  // [vocab]
};

}  // namespace restkv

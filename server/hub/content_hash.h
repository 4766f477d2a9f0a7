// The hash that names a blob: SHA-256 of the bytes, or git's SHA-1, which has "blob SIZE\0" in front of them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace restkv {

class ContentHash {
 public:
  // `digest`: what it will be compared with, 40 or 64 digits; `size`: bytes of the whole file.
  ContentHash(const std::string& digest, int64_t size);
  ~ContentHash();
  ContentHash(const ContentHash&) = delete;
  ContentHash& operator=(const ContentHash&) = delete;

  void append(std::span<const char> bytes);
  std::string finish();  // lower-case digits; once

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

}  // namespace restkv

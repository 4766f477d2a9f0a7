#include "server/hub/content_hash.h"

#include <openssl/evp.h>

#include "kernels/base/check.h"

namespace restkv {

struct ContentHash::Context {
  EVP_MD_CTX* md = EVP_MD_CTX_new();
  ~Context() { EVP_MD_CTX_free(md); }
};

ContentHash::ContentHash(const std::string& digest, int64_t size) : context_(std::make_unique<Context>()) {
  const bool is_git = digest.size() == 40;
  CHECK(EVP_DigestInit_ex(context_->md, is_git ? EVP_sha1() : EVP_sha256(), nullptr) == 1)
      << "no hash in OpenSSL";
  if (!is_git) return;
  const std::string header = "blob " + std::to_string(size);
  append({header.c_str(), header.size() + 1});  // with its NUL
}

ContentHash::~ContentHash() = default;

void ContentHash::append(std::span<const char> bytes) {
  CHECK(EVP_DigestUpdate(context_->md, bytes.data(), bytes.size()) == 1);
}

std::string ContentHash::finish() {
  unsigned char value[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  CHECK(EVP_DigestFinal_ex(context_->md, value, &length) == 1);
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (unsigned int i = 0; i < length; ++i) {
    text += kDigits[value[i] >> 4];
    text += kDigits[value[i] & 15];
  }
  return text;
}

}  // namespace restkv

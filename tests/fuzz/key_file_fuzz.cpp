// Any bytes as a key file: what is taken has a name, errors have a place and never show a key.
#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/base/check.h"
#include "server/access/key_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace restkv;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  std::vector<std::string> errors;
  const std::vector<ApiKey> keys = parse_keys(text, "keys", errors);
  CHECK(!keys.empty() || !errors.empty()) << "a file without a key is an error";
  for (const ApiKey& key : keys) {
    CHECK(!key.name.empty() && key.requests_per_minute >= 0 && key.tokens_per_minute >= 0 &&
          key.max_concurrent >= 0)
        << key.name;
  }
  for (const std::string& error : errors) CHECK(error.starts_with("keys:")) << error;
  return 0;
}

// Any bytes as JSON: what the strict reader takes, the library takes, too, and means the same.
#include <cstdint>

#include "engine/model/json_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace restkv;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const Result<nlohmann::json> value = parse_json(text);
  if (!value.ok()) {
    CHECK(value.status().message().starts_with("invalid JSON: ")) << value.status().message();
    return 0;
  }
  CHECK(nlohmann::json::parse(text) == *value) << "a different value";
  CHECK(parse_json(value->dump()).ok()) << "not its own text";
  return 0;
}

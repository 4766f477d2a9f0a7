// Any bytes as a configuration file: errors have places, and settings that were read without one survive being written
// and read again.
#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/base/check.h"
#include "server/config/settings_loader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace restkv;
  const Environment environment = [](const std::string& name) -> std::optional<std::string> {
    return name.size() == 1 ? std::optional<std::string>("80") : std::nullopt;
  };
  LoadedSettings loaded;
  apply_yaml({reinterpret_cast<const char*>(data), size}, "fuzz.yaml", environment, loaded);
  for (const std::string& error : loaded.errors) CHECK(error.starts_with("fuzz.yaml:")) << error;
  if (!loaded.errors.empty()) return 0;
  LoadedSettings again;
  apply_yaml(settings_yaml(loaded), "again.yaml", environment, again);
  CHECK(again.errors.empty()) << again.errors.front();
  for (const Option& option : option_table()) {
    CHECK(option_text(option, loaded.settings) == option_text(option, again.settings)) << option.flag;
  }
  return 0;
}

// MODEL as users write it -> a path that exists.
#pragma once

#include <string>

#include "kernels/base/status.h"

namespace restkv {

// A folder, a file, or "demo": ${XDG_CACHE_HOME:-~/.cache}/restkv/models/SmolLM2-135M-Instruct.Q4_1.gguf.
// Errors say what MODEL may be and how the demo model is got.
Result<std::string> resolve_model(const std::string& model);

}  // namespace restkv

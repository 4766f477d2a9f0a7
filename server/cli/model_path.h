// MODEL as users write it -> a path that exists. What is neither a path nor "demo" is asked of the hub.
#pragma once

#include <string>

#include "kernels/base/status.h"
#include "server/config/settings.h"

namespace restkv {

// A folder; a file; "demo": ${XDG_CACHE_HOME:-~/.cache}/restkv/models/SmolLM2-135M-Instruct.Q4_1.gguf; ORG/REPO[:QUANT]:
// from the hub's cache, downloaded where it is missing, with progress on stderr. Errors say what MODEL may be and what to do.
Result<std::string> resolve_model(const ModelSettings& model);

// Where `demo` lies, if it is there or not; empty: no HOME.
std::string demo_model_path();

}  // namespace restkv

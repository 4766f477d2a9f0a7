// Chooses the backend. The one place of the engine that knows which backends exist.
#pragma once

#include <memory>

#include "engine/engine.h"
#include "kernels/backend.h"

namespace restkv {

std::unique_ptr<Backend> make_backend(const EngineOptions& options);

}  // namespace restkv

// Chooses the backend. The one place of the engine that knows which backends exist.
#pragma once

#include <memory>

#include "engine/engine.h"
#include "kernels/backend.h"

namespace restkv {

// Error: the processor level asked for by RESTKV_CPU_TARGET is not there.
Result<std::unique_ptr<Backend>> make_backend(const EngineOptions& options);
// What is left of the memory the backend computes in.
int64_t available_memory(Backend& backend);

}  // namespace restkv

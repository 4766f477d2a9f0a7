// Chooses the backend. The one place of the engine that knows which backends exist.
#pragma once

#include <memory>

#include "engine/engine.h"
#include "kernels/backend.h"
#include "kernels/base/device_error.h"

namespace restkv {

// Error: a device that is not there, more than one of them, or a processor level (RESTKV_CPU_TARGET) that is not there. Throws
// DeviceError.
Result<std::unique_ptr<Backend>> make_backend(const EngineOptions& options);
// The options as this backend takes them: a card's cache has the type of its activations; sequences and rows of a step that
// were left open are 256 and 2,048 on a card, 32 and 512 on a CPU.
EngineOptions fit_options(EngineOptions options, const Backend& backend);
// What is left of the memory the backend computes in.
int64_t available_memory(Backend& backend);
// UNAVAILABLE, in words for whoever started the device or waits for an answer.
Status status_of(const DeviceError& error);

}  // namespace restkv

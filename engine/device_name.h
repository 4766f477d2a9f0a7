// What --device may say, and what it leads to; apart from device.h, which names tensors.
#pragma once

#include <string>

#include "engine/engine.h"

namespace restkv {

// Error: `device` is none of auto, cpu, cuda, cuda:N.
Status check_device_name(const std::string& device);
// For the start message: the device `options` lead to, and why it is not a card where it is not.
std::string device_text(const EngineOptions& options);

}  // namespace restkv

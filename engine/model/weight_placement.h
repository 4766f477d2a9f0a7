// The weights as a backend reads them: the mapped files' own where it can, else copies in its memory and its types.
#pragma once

#include "engine/model/weights.h"
#include "kernels/backend.h"
#include "kernels/base/arena.h"

namespace restkv {

// With a counting arena: the views' shapes and types, and how much memory they take.
WeightViews place_weights(const WeightViews& files, Backend& backend, Arena& arena);

}  // namespace restkv

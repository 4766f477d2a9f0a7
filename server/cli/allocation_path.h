// Where a model's calibrated allocation is looked for, in this order: --allocation-file (cache.allocation_file), beside the
// model, configs/allocations/ of the working directory, the same of the source tree that the program was built in.
//   <file>.gguf.restkv.json beside a GGUF | restkv.json in a Hugging Face folder | <name>.restkv.json in configs/allocations/
#pragma once

#include <string>

#include "server/config/settings.h"

namespace restkv {

// Where `calibrate` writes and serving looks first.
std::string allocation_path_beside(const std::string& model_path);

// Finds, reads and checks the file, and resolves the cache settings anew: where there is one, it is the default. Sets
// settings.cache.allocation_in_use to its path. Error: a file that was named is not there; one that does not fit the
// model; allocation: calibrated without one.
Status apply_allocation(const Model& model, Settings& settings);

}  // namespace restkv

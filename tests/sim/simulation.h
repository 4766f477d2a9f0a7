// The real engine core (scheduler, executor, evictor, cache) on one thread, a seeded clock and the fake backend; random
// requests, cancels, deadlines and device faults; after every turn the books are checked, at every end the answer.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace restkv::sim {

// How often something that must happen sometimes did.
using Coverage = std::map<std::string, int64_t>;

// The names every full run must have seen.
const std::map<std::string, std::string>& must_happen();

// Turns `steps` turns of the engine. Throws std::runtime_error with what went wrong.
void simulate(uint64_t seed, int64_t steps, Coverage& coverage);

}  // namespace restkv::sim

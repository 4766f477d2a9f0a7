// "did you mean": the known name with the least edit distance to a misspelt one.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace restkv {

// Edits: insert, delete, replace, swap neighbours. Empty if none is nearer than a third of the word (at least
// one edit).
std::string_view nearest_name(std::string_view name, std::span<const std::string_view> known);

// " (did you mean 'port'?)" or "".
std::string suggestion(std::string_view name, std::span<const std::string_view> known,
                       std::string_view prefix = "");

}  // namespace restkv

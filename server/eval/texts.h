// Texts to measure on: the files of a folder, names in order, one behind the other, as tokens, cut into slices. The first
// third is for `calibrate`, the rest for measuring, so that nothing is ever measured on what it was computed from.
//   tokens  [0, T/3) calibration | [T/3, T) measuring
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/text/tokenizer.h"
#include "kernels/base/status.h"

namespace restkv {

enum class TextPart : uint8_t { kCalibration, kMeasuring, kAll };

// Tokens of the part. Errors: no folder, no files, a file that cannot be read.
Result<std::vector<int32_t>> read_texts(const std::string& folder, const Tokenizer& tokenizer, TextPart part);

// `count` slices of `length` tokens, evenly spread and without overlap. Error: there are not so many.
Result<std::vector<std::vector<int32_t>>> cut_slices(const std::vector<int32_t>& tokens, int64_t count,
                                                     int64_t length);

}  // namespace restkv

// A ModelInferRequest of the open inference protocol as the JSON of /v1/completions: the tensor text_input is the prompt;
// every other tensor of one element and every parameter is the field of its name (max_tokens, temperature, stop, ...);
// sampling_parameters, as Triton's backends name it, is a JSON object with such fields.
#pragma once

#include <inference/open_inference_grpc.pb.h>

#include "server/openai/field_table.h"

namespace restkv {

inline constexpr const char* kTextInput = "text_input";
inline constexpr const char* kTextOutput = "text_output";

// Errors name the tensor or parameter.
Result<RequestJson> completion_body_of(const inference::ModelInferRequest& request);

}  // namespace restkv

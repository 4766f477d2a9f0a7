// A protobuf message as the JSON that the same request has over HTTP, so that one field table reads both: names are equal, an
// absent field is absent, lists and maps are lists and objects.
#pragma once

#include <google/protobuf/message.h>

#include "server/openai/field_table.h"

namespace restkv {

// Of the fields that are set. Bytes fields are not known here (a CHECK).
RequestJson json_of(const google::protobuf::Message& message);

}  // namespace restkv

// Token ids are checked before any of them is looked up, wherever they come from.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/base/status.h"

namespace restkv {

// Error: one of `ids` is not in [0, V); its param is `param`[index].
Status check_token_ids(std::span<const int32_t> ids, int64_t vocab_size, std::string_view param);

}  // namespace restkv

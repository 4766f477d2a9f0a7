// RFC 4648 base64, as vocabulary files use it.
#pragma once

#include <string>
#include <string_view>

namespace restkv {

// False for a character outside of the alphabet or a length that cannot be.
bool decode_base64(std::string_view text, std::string* bytes);

}  // namespace restkv

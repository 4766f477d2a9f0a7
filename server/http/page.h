// The web page at `/`: one conversation with the model, by the same routes as any client. It loads nothing from elsewhere.
#pragma once

#include <string_view>

namespace restkv {

std::string_view page_html();

}  // namespace restkv

// The filters, in two tables: of text and numbers (filters.cpp), of sequences (sequence_filters.cpp).
#pragma once

#include <functional>
#include <map>
#include <string>

#include "server/chat/context.h"

namespace restkv::chat {

using FilterTable = std::map<std::string, Filter, std::less<>>;
const FilterTable& text_filters();
const FilterTable& sequence_filters();

}  // namespace restkv::chat

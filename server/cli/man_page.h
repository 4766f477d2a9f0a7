// restkv(1), from the tables of verbs and options: restkv help man > restkv.1
#pragma once

#include <string>

namespace restkv {

std::string man_page();

}  // namespace restkv

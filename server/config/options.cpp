// The option table: its order is that of the help texts, the YAML sections and the reference pages.
#include "server/config/options.h"

#include <iterator>

#include "server/config/option_rows.h"

namespace restkv {

std::span<const Option> option_table() {
  static const std::vector<Option> table = [] {
    std::vector<Option> rows;
    for (auto* part : {server_option_rows, engine_option_rows, verb_option_rows, cache_option_rows}) {
      std::vector<Option> more = part();
      rows.insert(rows.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
    }
    return rows;
  }();
  return table;
}

}  // namespace restkv

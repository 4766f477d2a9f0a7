// One thread that reads many event streams at once, so that the server's cost is that of clients who listen.
#pragma once

#include <cstdint>
#include <string>

namespace restkv {

// Sends `request` on `num_streams` connections and reads each until the server closes it. Result: how many of them did not
// end with [DONE] and the last chunk.
int read_event_streams(uint16_t port, int num_streams, const std::string& request);

}  // namespace restkv

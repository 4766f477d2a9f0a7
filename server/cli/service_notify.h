// What systemd (and whoever speaks sd_notify) is told: Type=notify services are ready when they say so. One datagram to the
// socket that NOTIFY_SOCKET names; nothing happens without one.
#pragma once

#include <string_view>

namespace restkv {

// `state`: lines such as "READY=1" or "STOPPING=1\nSTATUS=draining". False: NOTIFY_SOCKET is set and cannot be reached.
bool notify_service_manager(std::string_view state);

}  // namespace restkv

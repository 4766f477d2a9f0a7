// A warp's request is what its lanes do at one place of the code the same number of times: the n-th access of each lane there.
// Counted when the block is over. Banks: 32 of 4 bytes; requests of 8 and 16 bytes go by half and quarter warps, lanes that read
// the same word share a turn. The stack of a thread is its registers and not counted.
#include "emulator/access_counters.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <set>
#include <tuple>

#include <link.h>
#include <unistd.h>

#include "emulator/device.h"

namespace restkv::emulator {
namespace {

constexpr uint32_t kWarp = 32, kBanks = 32, kSector = 32;

struct Access {
  uintptr_t address;
  uint32_t bytes;
};
struct Total {
  int64_t used = 0, least = 0;
};

struct Recorder {
  int64_t block = -1;  // counters().blocks of what is held
  // By place and warp, the accesses of each lane in order.
  std::map<std::pair<const void*, uint32_t>, std::array<std::vector<Access>, kWarp>> held;
  std::map<std::pair<const void*, bool>, Total> totals;  // by place and whether it is shared memory
  uintptr_t shared_begin = 0, shared_end = 0;
};
thread_local Recorder recorder;
thread_local bool is_busy = false;  // the recorder's own accesses are nobody's

// Turns of the banks for lanes [begin, end) of a request.
int64_t turns(const std::vector<Access>& lanes, size_t begin, size_t end) {
  std::array<std::set<uintptr_t>, kBanks> words;
  for (size_t i = begin; i < end; ++i) {
    for (uintptr_t w = lanes[i].address / 4; w <= (lanes[i].address + lanes[i].bytes - 1) / 4; ++w)
      words[w % kBanks].insert(w);
  }
  size_t most = 0;
  for (const auto& bank : words) most = std::max(most, bank.size());
  return static_cast<int64_t>(most);
}

Total shared_request(const std::vector<Access>& lanes) {
  Total total;
  std::set<uintptr_t> words;
  const size_t at_once = lanes[0].bytes >= 16 ? 8 : lanes[0].bytes == 8 ? 16 : 32;
  for (size_t begin = 0; begin < lanes.size(); begin += at_once) {
    const size_t end = std::min(lanes.size(), begin + at_once);
    total.used += turns(lanes, begin, end);
    words.clear();
    for (size_t i = begin; i < end; ++i)
      for (uintptr_t w = lanes[i].address / 4; w <= (lanes[i].address + lanes[i].bytes - 1) / 4; ++w)
        words.insert(w);
    total.least += static_cast<int64_t>((words.size() + kBanks - 1) / kBanks);
  }
  return total;
}

Total global_request(const std::vector<Access>& lanes) {
  std::set<uintptr_t> sectors, bytes;
  for (const Access& a : lanes) {
    for (uintptr_t s = a.address / kSector; s <= (a.address + a.bytes - 1) / kSector; ++s) sectors.insert(s);
    for (uintptr_t b = a.address; b < a.address + a.bytes; ++b) bytes.insert(b);
  }
  return {static_cast<int64_t>(sectors.size()), static_cast<int64_t>((bytes.size() + kSector - 1) / kSector)};
}

// threadIdx and its like are special registers of a card.
bool is_register(const void* p) {
  for (const Index3* index : {&threadIdx, &blockIdx, &blockDim, &gridDim})
    if (p >= index && p < index + 1) return true;
  return false;
}

void fold() {
  for (const auto& [key, lanes] : recorder.held) {
    size_t most = 0;
    for (const std::vector<Access>& lane : lanes) most = std::max(most, lane.size());
    std::vector<Access> request;
    for (size_t n = 0; n < most; ++n) {
      request.clear();
      for (const std::vector<Access>& lane : lanes)
        if (n < lane.size()) request.push_back(lane[n]);
      const bool is_shared =
          request[0].address >= recorder.shared_begin && request[0].address < recorder.shared_end;
      const Total one = is_shared ? shared_request(request) : global_request(request);
      Total& total = recorder.totals[{key.first, is_shared}];
      total.used += one.used;
      total.least += one.least;
    }
  }
  recorder.held.clear();
}

// Where the program was loaded: addr2line wants addresses of the file.
uintptr_t load_address() {
  uintptr_t lowest = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        *static_cast<uintptr_t*>(data) = info->dlpi_addr;
        return 1;  // the program comes first
      },
      &lowest);
  return lowest;
}

// The innermost line of a .cu that an address came from, or of a header of the kernels.
std::string line_of(const void* place) {
  char command[160], text[512];
  std::snprintf(command, sizeof command, "addr2line -i -e /proc/%d/exe 0x%llx", static_cast<int>(getpid()),
                static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(place) - 1 - load_address()));
  std::string line;
  if (FILE* out = popen(command, "r")) {
    while (std::fgets(text, sizeof text, out) != nullptr) {
      const std::string_view one(text);
      if (one.find("kernels/cuda/") == std::string_view::npos) continue;
      const bool is_kernel = one.find(".cu:") != std::string_view::npos;
      if (line.empty() || is_kernel) line = one.substr(one.rfind('/') + 1);
      if (is_kernel) break;
    }
    pclose(out);
  }
  line = line.substr(0, line.find_first_of(" \n"));
  return line.empty() ? "?" : line;
}

}  // namespace

void count_access(const void* p, uint32_t bytes, const void* place) {
  if (is_busy || !is_in_kernel() || is_register(p)) return;
  const auto address = reinterpret_cast<uintptr_t>(p);
  const char here = 0;
  const auto stack = reinterpret_cast<uintptr_t>(&here);
  if (address + kFiberStackBytes > stack && address < stack + kFiberStackBytes) return;
  is_busy = true;
  if (recorder.block != counters().blocks) {
    fold();
    recorder.block = counters().blocks;
    recorder.shared_begin = reinterpret_cast<uintptr_t>(shared_base());
    recorder.shared_end = recorder.shared_begin + shared_bytes();
  }
  const uint32_t thread = threadIdx.x;
  recorder.held[{place, thread / kWarp}][thread % kWarp].push_back({address, bytes});
  is_busy = false;
}

AccessCounts take_access_counts() {
  is_busy = true;
  fold();
  recorder.block = -1;
  AccessCounts counts;
  std::map<std::pair<std::string, bool>, Total> lines;
  std::vector<std::pair<int64_t, std::pair<const void*, bool>>> order;
  for (const auto& [key, total] : recorder.totals) {
    (key.second ? counts.shared_passes : counts.global_sectors) += total.used;
    (key.second ? counts.shared_least : counts.global_least) += total.least;
    if (total.used > total.least) order.push_back({total.used - total.least, key});
  }
  std::sort(order.rbegin(), order.rend());
  for (size_t i = 0; i < std::min<size_t>(order.size(), 6); ++i) {
    const auto& key = order[i].second;
    const Total& total = recorder.totals[key];
    counts.worst.push_back({line_of(key.first), key.second, total.used, total.least});
  }
  recorder.totals.clear();
  is_busy = false;
  return counts;
}

}  // namespace restkv::emulator

// What gcc's instrumentation calls.
extern "C" {
#define HOOK(name, bytes) \
  void __tsan_##name(void* p) { restkv::emulator::count_access(p, bytes, __builtin_return_address(0)); }
HOOK(read1, 1)
HOOK(read2, 2)
HOOK(read4, 4)
HOOK(read8, 8)
HOOK(read16, 16)
HOOK(write1, 1)
HOOK(write2, 2)
HOOK(write4, 4)
HOOK(write8, 8)
HOOK(write16, 16)
HOOK(unaligned_read2, 2)
HOOK(unaligned_read4, 4)
HOOK(unaligned_read8, 8)
HOOK(unaligned_read16, 16)
HOOK(unaligned_write2, 2)
HOOK(unaligned_write4, 4)
HOOK(unaligned_write8, 8)
HOOK(unaligned_write16, 16)
void __tsan_read_range(void* p, size_t bytes) {
  restkv::emulator::count_access(p, static_cast<uint32_t>(bytes), __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  restkv::emulator::count_access(p, static_cast<uint32_t>(bytes), __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
}

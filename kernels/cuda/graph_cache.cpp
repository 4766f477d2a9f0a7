#include "kernels/cuda/graph_cache.h"

#include <algorithm>

#include "kernels/base/device_error.h"

namespace restkv::cuda {

void GraphCache::launch(const LaunchList& list) {
  if (list.empty()) return;
  const uint64_t hash = list.hash();
  const auto known = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& e) { return e.hash == hash && e.list == list; });
  const bool is_known = known != entries_.end();
  if (is_known) {
    entries_.splice(entries_.begin(), entries_, known);
  } else if (counters_.is_off || std::find(seen_.begin(), seen_.end(), hash) == seen_.end()) {
    seen_[next_seen_++ % seen_.size()] = hash;
    ++counters_.piecewise;
    return runtime_.launch_all(list);
  } else {
    std::unique_ptr<LaunchGraph> graph;
    try {
      graph = runtime_.make_graph(list);
    } catch (const DeviceError& error) {
      if (error.is_sticky()) throw;
      counters_.is_off = true;
      ++counters_.piecewise;
      return runtime_.launch_all(list);
    }
    if (entries_.size() == kMaxGraphs) entries_.pop_back();
    entries_.push_front({hash, list, std::move(graph)});
    ++counters_.built;
  }
  try {
    runtime_.launch_graph(*entries_.front().graph);
    if (is_known) ++counters_.launched;
    return;
  } catch (const DeviceError& error) {
    if (error.is_sticky()) throw;
  }
  // Nothing of it has been enqueued, and it would fail again for every step of its kind.
  entries_.pop_front();
  counters_.is_off = true;
  ++counters_.piecewise;
  runtime_.launch_all(list);
}

}  // namespace restkv::cuda

#include "kernels/cuda/graph_cache.h"

#include <algorithm>

#include "kernels/base/device_error.h"

namespace restkv::cuda {

void GraphCache::launch(const LaunchList& list) {
  if (list.empty()) return;
  const uint64_t hash = list.hash();
  const auto known = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& e) { return e.hash == hash && e.list == list; });
  if (known != entries_.end()) {
    entries_.splice(entries_.begin(), entries_, known);
    ++counters_.launched;
    return runtime_.launch_graph(*known->graph);
  }
  if (counters_.is_off || std::find(seen_.begin(), seen_.end(), hash) == seen_.end()) {
    seen_[next_seen_++ % seen_.size()] = hash;
    ++counters_.piecewise;
    return runtime_.launch_all(list);
  }
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
  runtime_.launch_graph(*entries_.front().graph);
}

}  // namespace restkv::cuda

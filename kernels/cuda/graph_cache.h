// Which lists of launches have become graphs. A list that is seen for the second time becomes one; a list seen once is
// launched piece by piece, so that a step that never comes again costs no graph. The oldest of kMaxGraphs goes. A device that
// cannot make a graph, or has no memory left to launch it, gets what is no graph yet piece by piece from then on.
// Steps of nearly as many rows share graphs: they are filled up to bucket_rows(), and what a launch looks like follows from that
// number (Context::num_places) and from few other things.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <memory>

#include "kernels/cuda/runtime.h"

namespace restkv::cuda {

// 1, 2, 4, 8, 16, 24, 32, 48, 64, 96 ...: products of few rows read their weights as fast as those of some more.
constexpr int64_t bucket_rows(int64_t rows) {
  int64_t bucket = 1;
  while (bucket < rows) bucket *= 2;
  const int64_t between = bucket / 4 * 3;
  return bucket >= 32 && rows <= between ? between : bucket;
}

class GraphCache {
 public:
  struct Counters {
    int64_t launched = 0, built = 0, piecewise = 0;  // lists
    bool is_off = false;                             // a graph could not be made or launched
  };

  explicit GraphCache(Runtime& runtime) : runtime_(runtime) {}
  // The list's work is enqueued; it may change afterwards.
  void launch(const LaunchList& list);
  const Counters& counters() const { return counters_; }

  static constexpr size_t kMaxGraphs = 64;

 private:
  struct Entry {
    uint64_t hash;
    LaunchList list;
    std::unique_ptr<LaunchGraph> graph;
  };
  Runtime& runtime_;
  std::list<Entry> entries_;                     // the last used in front
  std::array<uint64_t, 4 * kMaxGraphs> seen_{};  // hashes of lists seen once, the oldest overwritten
  size_t next_seen_ = 0;
  Counters counters_;
};

}  // namespace restkv::cuda

// compress_at: the rest of a prompt through the decode path, several rows of a sequence in one step. Within a layer they are
// taken as one token after the other would be: rows are appended until a head is full, attend, the layer is cut, and so on.
//   rows [0, m) appended, attend | cut | rows [m, 2m) ... : bitwise the same for any number of rows in a step
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/evictor.h"
#include "engine/model/transformer.h"

namespace restkv {

class PromptFeed {
 public:
  PromptFeed(Transformer& transformer, Backend& backend, KvCache& cache, Evictor& evictor)
      : transformer_(transformer), backend_(backend), cache_(cache), evictor_(evictor) {}

  void clear() { feeds_.clear(); }
  // Rows [row, row + num_rows) of the step are the sequence's next tokens; k, v [num_rows, K*D] take theirs in each layer.
  void add(Sequence& sequence, int64_t row, int32_t num_rows, const Tensor& k, const Tensor& v);
  bool empty() const { return feeds_.empty(); }

  void append_stores(std::vector<StoreSegment>& stores) const;
  // Inside Transformer::run_layer, when k and v are there: appends the rows to the pages and attends. The last rows' cut is
  // left to Evictor::start_cuts after the step. `positions` of all rows of the step.
  void run_layer(int64_t layer, std::span<const int32_t> positions);

 private:
  struct Feed {
    Sequence* sequence;
    int64_t row;
    int32_t num_rows;
    Tensor k, v;
    int32_t num_done = 0;  // in the layer in work
  };
  Transformer& transformer_;
  Backend& backend_;
  KvCache& cache_;
  Evictor& evictor_;
  std::vector<Feed> feeds_;
  std::vector<DecodeSegment> segments_;
  std::vector<Evictor::Rows> rows_;
  std::vector<Evictor::Due> due_;
};

}  // namespace restkv

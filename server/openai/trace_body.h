// GET /v1/cache/traces/{id}: a page of a cache trace as JSON.
//   ?choice=0 &from=0 (cut) &limit=32 (cuts) &scores=1
#pragma once

#include <string>
#include <string_view>

#include "engine/eviction/trace.h"
#include "kernels/base/status.h"

namespace restkv {

struct TraceQuery {
  int32_t choice = 0;
  int64_t from = 0;
  int64_t limit = 32;
  bool with_scores = true;
};
// Errors name the parameter and what is allowed.
Result<TraceQuery> parse_trace_query(std::string_view query);
Status check_trace_query(const TraceQuery& query);
// The answer where there is none.
Status no_trace();

// `cuts` [from, ..): at most `limit` of them, and no more than fit a few MiB; "next" is where the next page begins, or null.
std::string trace_body(std::string_view id, const CacheTrace& trace, const TraceQuery& query);

}  // namespace restkv

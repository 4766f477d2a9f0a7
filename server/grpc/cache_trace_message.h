// GetCacheTrace: a page of a cache trace, with the parameters and the bounds of GET /v1/cache/traces/{id}.
#pragma once

#include <restkv/v1/inference.pb.h>

#include <string>

#include "engine/trace_store.h"
#include "kernels/base/status.h"

namespace restkv {

// Error: a parameter out of bounds, or no such trace of this owner.
Status fill_cache_trace(const v1::GetCacheTraceRequest& request, TraceStore& traces, const std::string& owner,
                        v1::CacheTrace& out);

}  // namespace restkv

// Cuts one after the other until the page is full.
#include "server/grpc/cache_trace_message.h"

#include "server/openai/trace_body.h"

namespace restkv {
namespace {

// Below the 4 MiB that clients take unless told otherwise; one cut more may go over.
constexpr size_t kMaxPageBytes = size_t{2} << 20;

void fill_cut(const CacheTrace::Cut& cut, bool with_scores, v1::CacheTrace::Cut& out) {
  out.set_layer(cut.layer);
  out.set_tokens(cut.tokens);
  for (const CacheTrace::Head& head : cut.heads) {
    v1::CacheTrace::Head& item = *out.add_heads();
    item.set_kept(head.num_kept);
    item.mutable_evicted()->Add(head.evicted.begin(), head.evicted.end());
    if (with_scores) item.mutable_scores()->Add(head.scores.begin(), head.scores.end());
    item.mutable_bins()->Add(head.bins.begin(), head.bins.end());
  }
}

}  // namespace

Status fill_cache_trace(const v1::GetCacheTraceRequest& request, TraceStore& traces, const std::string& owner,
                        v1::CacheTrace& out) {
  TraceQuery query{.choice = request.choice(), .from = request.from()};
  if (request.limit() != 0) query.limit = request.limit();
  if (request.has_scores()) query.with_scores = request.scores();
  if (Status status = check_trace_query(query); !status.ok()) return status;
  const auto trace = traces.find(request.id(), owner, query.choice, TraceStore::Clock::now());
  if (!trace) return no_trace();
  const auto num_cuts = static_cast<int64_t>(trace->num_cuts());
  out.set_id(request.id());
  out.set_choice(query.choice);
  out.set_policy(std::string(policy_name(trace->policy)));
  out.set_budget(trace->budget);
  out.set_num_layers(trace->num_layers);
  out.set_num_kv_heads(trace->num_kv_heads);
  out.set_prompt_tokens(trace->prompt_len);
  out.set_num_cuts(num_cuts);
  out.set_truncated(trace->is_truncated);
  out.set_from(query.from);
  int64_t next = query.from;
  size_t size = 0;
  for (; next < num_cuts && next < query.from + query.limit && size < kMaxPageBytes; ++next) {
    v1::CacheTrace::Cut& cut = *out.add_cuts();
    fill_cut(trace->cut(static_cast<size_t>(next)), query.with_scores, cut);
    size += cut.ByteSizeLong();
  }
  if (next < num_cuts) out.set_next(next);
  return {};
}

}  // namespace restkv

#include "server/serving/request_log.h"

#include <algorithm>
#include <vector>

namespace restkv {
namespace {

constexpr size_t kMaxMethod = 16, kMaxPath = 128;  // bytes shown

void add_tokens(const RequestLog& request, std::vector<LogField>& fields) {
  if (!request.usage) return;
  fields.emplace_back("prompt_tokens", request.usage->prompt_tokens);
  fields.emplace_back("completion_tokens", request.usage->completion_tokens);
}

// Where the time went; other: parsing, templates, tokenizing, sending.
void log_slow(const RequestLog& request) {
  std::vector<LogField> fields = {{"path", request.path.substr(0, kMaxPath)},
                                  {"status", request.status},
                                  {"ms", request.ms},
                                  {"receive_ms", request.receive_ms}};
  if (request.usage) {
    const OutputUsage& usage = *request.usage;
    fields.emplace_back("queue_ms", usage.queue_ms);
    fields.emplace_back("prefill_ms", usage.prefill_ms);
    fields.emplace_back("decode_ms", usage.decode_ms);
    fields.emplace_back("other_ms",
                        std::max(0.0, request.ms - usage.queue_ms - usage.prefill_ms - usage.decode_ms));
  }
  add_tokens(request, fields);
  fields.emplace_back("id", request.id);
  if (request.trace.is_known()) fields.emplace_back("trace_id", request.trace.trace_id);
  log_event(LogLevel::kWarning, "slow request", fields);
}

}  // namespace

void log_request(LogLevel level, const RequestLog& request, milliseconds slow) {
  if (logs(level)) {
    std::vector<LogField> fields = {{"method", request.method.substr(0, kMaxMethod)},
                                    {"path", request.path.substr(0, kMaxPath)},
                                    {"status", request.status},
                                    {"ms", request.ms},
                                    {"id", request.id},
                                    {"key", request.key}};
    add_tokens(request, fields);
    if (request.trace.is_known()) {
      fields.emplace_back("trace_id", request.trace.trace_id);
      fields.emplace_back("parent_id", request.trace.parent_id);
    }
    log_event(level, "request", fields);
  }
  if (slow.count() > 0 && request.ms >= static_cast<double>(slow.count())) log_slow(request);
}

}  // namespace restkv

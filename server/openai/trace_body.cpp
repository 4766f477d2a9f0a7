// Numbers only: a trace holds no text.
#include "server/openai/trace_body.h"

#include <algorithm>
#include <charconv>

#include "server/openai/json_text.h"

namespace restkv {
namespace {

constexpr size_t kMaxPageBytes = size_t{4} << 20;
constexpr int64_t kMaxCuts = 1024;  // of a page

template <class Items, class Append>
void append_list(std::string& out, const Items& items, Append append) {
  out += '[';
  bool is_first = true;
  for (const auto& item : items) {
    if (!is_first) out += ',';
    is_first = false;
    append(item);
  }
  out += ']';
}

void append_head(std::string& out, const CacheTrace::Head& head, bool with_scores) {
  out += "{\"kept\":";
  append_json_number(out, static_cast<int64_t>(head.num_kept));
  out += ",\"evicted\":";
  append_list(out, head.evicted, [&](int32_t p) { append_json_number(out, static_cast<int64_t>(p)); });
  if (with_scores) {
    out += ",\"scores\":";
    if (head.scores.empty()) {
      out += "null";
    } else {
      append_list(out, head.scores, [&](float s) { append_json_number(out, static_cast<double>(s)); });
    }
  }
  if (!head.bins.empty()) {
    out += ",\"bins\":";
    append_list(out, head.bins, [&](uint8_t bin) { append_json_number(out, static_cast<int64_t>(bin)); });
  }
  out += '}';
}

}  // namespace

Status check_trace_query(const TraceQuery& query) {
  const auto check = [](const char* name, int64_t value, int64_t low, int64_t high) -> Status {
    if (value >= low && value <= high) return {};
    return invalid_argument("'" + std::string(name) + "' must be an integer between " + std::to_string(low) +
                            " and " + std::to_string(high))
        .with_param(name)
        .with_reason("invalid_value");
  };
  Status status = check("choice", query.choice, 0, INT32_MAX);
  if (status.ok()) status = check("from", query.from, 0, INT32_MAX);
  if (status.ok()) status = check("limit", query.limit, 1, kMaxCuts);
  return status;
}

Result<TraceQuery> parse_trace_query(std::string_view query) {
  TraceQuery out;
  while (!query.empty()) {
    const std::string_view part = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), part.size() + 1));
    const std::string_view name = part.substr(0, part.find('='));
    const std::string_view text = part.substr(std::min(part.size(), name.size() + 1));
    int64_t value = -1;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value > INT32_MAX) value = -1;
    if (name == "choice") {
      out.choice = static_cast<int32_t>(value);
    } else if (name == "from") {
      out.from = value;
    } else if (name == "limit") {
      out.limit = value;
    } else if (name != "scores") {
      return invalid_argument("a trace takes the parameters choice, from, limit and scores");
    } else if (value != 0 && value != 1) {
      return invalid_argument("'scores' must be 0 or 1").with_param("scores").with_reason("invalid_value");
    } else {
      out.with_scores = value == 1;
    }
  }
  if (Status status = check_trace_query(out); !status.ok()) return status;
  return out;
}

Status no_trace() {
  return not_found(
             "there is no trace of this request: it was not asked for (cache.trace), is still running or is "
             "too "
             "old")
      .with_reason("not_found");
}

std::string trace_body(std::string_view id, const CacheTrace& trace, const TraceQuery& query) {
  std::string out = "{\"id\":";
  append_json_string(out, id);
  out += ",\"object\":\"cache.trace\",\"choice\":";
  append_json_number(out, static_cast<int64_t>(query.choice));
  out += ",\"policy\":\"";
  out += policy_name(trace.policy);
  out += "\",\"budget\":";
  append_json_number(out, static_cast<int64_t>(trace.budget));
  out += ",\"num_layers\":";
  append_json_number(out, static_cast<int64_t>(trace.num_layers));
  out += ",\"num_kv_heads\":";
  append_json_number(out, static_cast<int64_t>(trace.num_kv_heads));
  out += ",\"prompt_tokens\":";
  append_json_number(out, static_cast<int64_t>(trace.prompt_len));
  out += ",\"num_cuts\":";
  const auto num_cuts = static_cast<int64_t>(trace.num_cuts());
  append_json_number(out, num_cuts);
  out += trace.is_truncated ? ",\"truncated\":true" : ",\"truncated\":false";
  out += ",\"from\":";
  append_json_number(out, query.from);
  out += ",\"cuts\":[";
  int64_t next = query.from;
  for (; next < num_cuts && next < query.from + query.limit && out.size() < kMaxPageBytes; ++next) {
    if (next > query.from) out += ',';
    const CacheTrace::Cut cut = trace.cut(static_cast<size_t>(next));
    out += "{\"layer\":";
    append_json_number(out, static_cast<int64_t>(cut.layer));
    out += ",\"tokens\":";
    append_json_number(out, static_cast<int64_t>(cut.tokens));
    out += ",\"heads\":";
    append_list(out, cut.heads,
                [&](const CacheTrace::Head& head) { append_head(out, head, query.with_scores); });
    out += '}';
  }
  out += "],\"next\":";
  if (next < num_cuts) {
    append_json_number(out, next);
  } else {
    out += "null";
  }
  out += '}';
  return out;
}

}  // namespace restkv

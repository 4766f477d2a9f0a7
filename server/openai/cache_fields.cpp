// The field table of the object `cache`. Types are checked here; names, bounds and what goes with what by
// resolve_cache_settings, once the server's defaults are under it.
#include <limits>

#include "server/openai/completion_request.h"

namespace restkv {
namespace {

using json = RequestJson;
using Field = RequestField<CacheRequest>;
using R = CacheRequest;

constexpr double kMaxNameBytes = 64;

template <auto Member>
Status set_name(json& value, R& r) {
  r.*Member = std::move(value.get_ref<std::string&>());
  return {};
}
template <auto Member>
Status set_count(json& value, R& r) {
  int64_t number = 0;
  if (!read_integer(value, number)) number = INT64_MAX;  // unsigned and beyond it: out of bounds all the same
  r.*Member = number;
  return {};
}
template <auto Member>
Status set_number(json& value, R& r) {
  r.*Member = value.get<double>();
  return {};
}
template <auto Member>
Status set_flag(json& value, R& r) {
  r.*Member = value.get<bool>();
  return {};
}

Status set_trace(json& value, R& r) {
  if (value.is_boolean()) {
    r.trace = value.get<bool>() ? TraceMode::kOn : TraceMode::kOff;
    return {};
  }
  if (value == "bins") {
    r.trace = TraceMode::kBins;
    return {};
  }
  return invalid_argument("'cache.trace' must be true, false or bins").with_param("cache.trace");
}

Status set_probe(json& value, R& r) {
  if (value.is_string()) {
    r.probe = probe_named(value.get_ref<const std::string&>());
    return {};
  }
  if (!value.is_array()) {
    return invalid_argument("'cache.probe' must be facts, summary, none, a text or a list of token ids")
        .with_param("cache.probe");
  }
  r.probe = ProbeSpec{.kind = ProbeSpec::Kind::kTokens, .text = {}, .tokens = {}};
  return read_token_ids(value, "cache.probe", std::numeric_limits<int32_t>::max(), r.probe->tokens);
}

template <auto Member>
Field name_field(std::string_view name, std::string_view help) {
  return {{.name = name, .type = FieldType::kString, .max = kMaxNameBytes, .help = help}, set_name<Member>};
}
template <auto Member>
Field count_field(std::string_view name, std::string_view help) {
  return {{.name = name, .type = FieldType::kInteger, .min = -kUnbounded, .max = kUnbounded, .help = help},
          set_count<Member>};
}
template <auto Member>
Field number_field(std::string_view name, std::string_view help) {
  return {{.name = name, .type = FieldType::kNumber, .min = -kUnbounded, .max = kUnbounded, .help = help},
          set_number<Member>};
}
template <auto Member>
Field flag_field(std::string_view name, std::string_view help) {
  return {{.name = name, .type = FieldType::kBool, .help = help}, set_flag<Member>};
}

const Field kFields[] = {
    name_field<&R::profile>("cache.profile", "named settings of the server, under the other fields"),
    name_field<&R::policy>("cache.policy", "what decides which entries stay; full: nothing is evicted"),
    name_field<&R::preset>("cache.preset", "default or paper"),
    count_field<&R::budget>("cache.budget", "entries that a (layer, KV head) holds at most"),
    number_field<&R::fraction>("cache.fraction", "budget as a part of the prompt, at most `budget`"),
    name_field<&R::allocation>("cache.allocation",
                               "how budgets are spread: uniform, calibrated, pyramid or ada"),
    name_field<&R::decode>("cache.decode",
                           "evict: the budget holds for the answer too; grow: for the prompt alone"),
    count_field<&R::window>("cache.window", "last tokens that stay, and whose queries judge the others"),
    count_field<&R::sinks>("cache.sinks", "first tokens that stay"),
    count_field<&R::stride>("cache.stride", "entries that one cut in decode frees"),
    name_field<&R::group>("cache.group",
                          "how the query heads of a KV head decide together: rss, max or mean"),
    name_field<&R::indicator>("cache.indicator", "query or after"),
    name_field<&R::reduce>("cache.reduce", "over the window's queries: rms, max, ema or mean"),
    name_field<&R::pool>("cache.pool", "over neighbours: none, avg, max, forward, half_forward or adaptive"),
    count_field<&R::kernel>("cache.kernel", "width of the pooling"),
    number_field<&R::tau>("cache.tau", "temperature of the attention that is scored"),
    flag_field<&R::normalize>("cache.normalize", "scores relative to the head's output"),
    count_field<&R::pin>("cache.pin", "rows a head that pooling brought in and that stay"),
    count_field<&R::pin_head>("cache.pin_head", "rows of the prompt's beginning that stay"),
    count_field<&R::pin_tail>("cache.pin_tail", "rows of the prompt's end that stay"),
    count_field<&R::scale>("cache.scale", "of the adaptive pooling"),
    number_field<&R::alpha>("cache.alpha", "weight of a new query in reduce: ema"),
    flag_field<&R::output_projection>("cache.output_projection",
                                      "score what the output projection makes of it"),
    count_field<&R::compress_at>("cache.compress_at",
                                 "prompt tokens that are compressed; the rest sees the compressed cache"),
    {{.name = "cache.probe",
      .type = FieldType::kAny,
      .help = "facts, summary, none, a text or token ids that help to choose what stays",
      .schema = R"("type":["string","array","null"])"},
     set_probe},
    {{.name = "cache.trace",
      .type = FieldType::kAny,
      .help = "true, or bins: ranks of evicted entries too",
      .schema = R"("enum":[true,false,"bins",null])"},
     set_trace},
};

}  // namespace

std::span<const Field> cache_fields() { return kFields; }

}  // namespace restkv

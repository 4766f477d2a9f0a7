// What the engine promises of numbers that are not finite: the request whose they are ends alone with a clear error, where its
// prompt has them and where it draws them, and its neighbours are answered to the bit as if they were alone. On the CPU, and on
// the emulated device in types in which keys overflow.
#include <algorithm>
#include <limits>
#include <optional>
#include <string>

#include "engine/device.h"
#include "tests/emulator/emulated_backend.h"
#include "tests/engine/answer_collector.h"
#include "tests/engine/tiny_model.h"

namespace restkv {
namespace {

using testing::Answer;
using testing::ask;

constexpr int32_t kSick = 40;  // the token
enum class Sickness {
  kValue,  // its embedding is NaN
  kKey,    // its keys in the first layer are too large for the type: with queries they give +inf, -inf or NaN
  kUnseenKey,  // the same with queries that all give -inf
};

// In the first layer x[0] of a row makes the keys' dimension 3 (of 8), and is 0 but for the sick token; x[1], the same for all
// tokens, makes dimensions 3 and 7 of the queries of kUnseenKey, which turn together, slowly.
std::shared_ptr<const Model> sick_model(Sickness sickness, float too_large) {
  testing::TinyShape shape;
  shape.layers = 2;
  const auto hidden = static_cast<size_t>(shape.hidden), dim = static_cast<size_t>(shape.head_dim);
  return testing::make_tiny_model(shape, [&](const std::string& name, std::vector<float>& values) {
    const auto at = [&](size_t row, size_t column) -> float& { return values[row * hidden + column]; };
    if (name == testing::kEmbedding && sickness == Sickness::kValue) {
      std::fill_n(&at(kSick, 0), hidden, std::numeric_limits<float>::quiet_NaN());
    } else if (name == testing::kEmbedding) {
      for (size_t token = 0; token < values.size() / hidden; ++token) {
        at(token, 0) = token == kSick ? 20.0f : 0.0f;
        at(token, 1) = 4.0f;
      }
    } else if (name == "model.layers.0.self_attn.k_proj.weight" && sickness != Sickness::kValue) {
      for (size_t row = 0; row < values.size() / hidden; ++row)
        at(row, 0) = row % dim == 3 ? too_large : 0.0f;
    } else if (name == "model.layers.0.self_attn.q_proj.weight" && sickness == Sickness::kUnseenKey) {
      for (size_t row = 3; row < values.size() / hidden; row += 4) {
        std::fill_n(&at(row, 0), hidden, 0.0f);
        at(row, 1) = -1.0f;
      }
    }
  });
}

struct Case {
  const char* name;
  Sickness sickness;
  float too_large;            // a weight
  std::optional<DType> type;  // of the emulated device; none: the CPU
};
const Case kCases[] = {{"cpu_value", Sickness::kValue, 3e38f, {}},
                       {"cpu_key", Sickness::kKey, 3e38f, {}},
                       {"cpu_unseen_key", Sickness::kUnseenKey, 3e38f, {}},
                       {"bf16_value", Sickness::kValue, 3e38f, DType::kBF16},
                       {"f16_key", Sickness::kKey, 6e4f, DType::kF16}};

class NotFinite : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Cases, NotFinite, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return info.param.name; });

TEST_P(NotFinite, EndTheirRequestAlone) {
  const Case& c = GetParam();
  EngineOptions options;
  options.device = "cpu";
  options.max_model_len = 128;
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 28;
  options.prefix_fraction = 0.5;
  if (c.type) {
    options.backend_maker = [&c]() -> Result<std::unique_ptr<Backend>> {
      return make_emulated_backend({.type = *c.type, .page_slots = 16, .is_deterministic = true});
    };
  }
  const auto engine = testing::start_engine(sick_model(c.sickness, c.too_large), options);
  const auto request_of = [&](int32_t prompt_len, const char* policy,
                              std::optional<int64_t> compress_at = {}) {
    CacheRequest cache;
    cache.compress_at = compress_at;
    cache.probe = ProbeSpec{};
    cache.policy = policy;
    cache.window = 4;
    if (std::string(policy) != "full") cache.budget = 16;
    Request request;
    for (int32_t t = 0; t < prompt_len; ++t) request.prompt.push_back(3 + t * 7 % 31);
    request.max_tokens = 3;
    request.ignore_eos = true;
    request.sampling.temperature = 0;
    request.sampling.logit_bias = {{kSick, -1000.0f}};
    request.cache = *resolve_cache_settings(cache, {});
    return request;
  };
  // In units and then fed; in a step; whole, in units. Cut after prefill and in decode, but for `full`.
  std::vector<Request> healthy = {request_of(38, "restkv", 34)};
  if (!c.type) {
    for (const Request& request : {request_of(18, "restkv"), request_of(9, "full"), request_of(38, "restkv")})
      healthy.push_back(request);
  }
  std::vector<std::vector<Answer>> alone;
  for (const Request& request : healthy) {
    alone.push_back(ask(*engine, {request})[0]);
    ASSERT_EQ(alone.back()[0].finish, FinishReason::kLength) << alone.back()[0].error.message();
  }
  int64_t num_ill = 0;
  const int num_rounds =
      c.type ? 2 : 4;  // at the third sight the beginning of a prompt would be read from the prefix cache
  for (int round = 0; round < num_rounds; ++round) {
    const bool draws_it = round + 1 == num_rounds;  // else it is in the prompt
    std::vector<Request> together;
    for (const Request& request : healthy) {
      together.push_back(request);
      together.back().cache_salt = std::to_string(together.size()) + "." + std::to_string(round);
      Request& ill = together.emplace_back(request);
      ill.cache_salt = draws_it ? "draws it" : "ill";
      if (!draws_it) {
        ill.prompt[5] = kSick;
      } else {
        ill.sampling.logit_bias.clear();
        ill.sampling.allowed_tokens = {kSick};
      }
    }
    const auto answers = ask(*engine, together);
    for (size_t i = 0; i < together.size(); ++i) {
      SCOPED_TRACE("round " + std::to_string(round) + ", request " + std::to_string(i));
      const Answer& answer = answers[i][0];
      EXPECT_EQ(answer.num_finishes, 1);
      if (i % 2 == 0) {
        EXPECT_TRUE(answer == alone[i / 2][0]);
        continue;
      }
      // What no query sees makes nobody ill.
      if (c.sickness == Sickness::kUnseenKey) {
        EXPECT_EQ(answer.finish, FinishReason::kLength) << answer.error.message();
        continue;
      }
      ++num_ill;
      EXPECT_EQ(answer.finish, FinishReason::kError);
      EXPECT_EQ(answer.error.code(), StatusCode::kInternal);
      EXPECT_EQ(answer.error.reason(), "nan_logits") << answer.error.message();
      EXPECT_EQ(answer.tokens.size(), draws_it ? 1u : 0u);
      EXPECT_EQ(answer.counters.cached_tokens, 0) << "what came of such numbers is kept for others";
    }
  }
  testing::expect_idle_and_free(*engine);
  EXPECT_EQ(engine->stats().nan_requests, num_ill);
}

}  // namespace
}  // namespace restkv

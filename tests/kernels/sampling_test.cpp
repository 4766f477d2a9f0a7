// Sampling against a naive f64 reference that sorts: which tokens can be drawn, with which frequencies, and the
// edge cases of every parameter.
#include <limits>
#include <map>
#include <numeric>

#include "kernels/base/philox.h"
#include "tests/kernels/backend_cases.h"

namespace restkv {
namespace {

class Sampling : public testing::TestWithParam<size_t> {
 protected:
  void SetUp() override { backend_ = device_op_cases()[GetParam()].make(2); }

  SampleResult draw(Floats logits, const SamplingParams& params, SampleRow row = {}) {
    row.params = &params;
    SampleResult result;
    backend_->sample({view(logits, 1), std::span(&row, 1), std::span(&result, 1)});
    backend_->wait_step();
    return result;
  }
  // Tokens drawn over `count` positions, with their frequencies; a call of the op takes many rows.
  std::map<int32_t, double> frequencies(const Floats& logits, const SamplingParams& params, uint32_t count) {
    std::map<int32_t, double> drawn;
    std::vector<SampleRow> rows(100);
    std::vector<SampleResult> results(rows.size());
    for (uint32_t position = 0; position < count;) {
      const auto batch = static_cast<int64_t>(std::min<size_t>(rows.size(), count - position));
      Floats copies;
      for (int64_t i = 0; i < batch; ++i) copies.insert(copies.end(), logits.begin(), logits.end());
      const auto size = static_cast<size_t>(batch);
      for (size_t i = 0; i < size; ++i) rows[i] = {.params = &params, .position = position++};
      backend_->sample({view(copies, batch), std::span(rows).first(size), std::span(results).first(size)});
      backend_->wait_step();
      for (size_t i = 0; i < size; ++i) drawn[results[i].token] += 1.0 / count;
    }
    return drawn;
  }
  std::unique_ptr<Backend> backend_;
};

INSTANTIATE_TEST_SUITE_P(Backends, Sampling, testing::Range(size_t{0}, device_op_cases().size()),
                         [](const auto& info) { return device_op_cases()[info.param].name; });

// Probabilities after temperature, min-p, top-k, top-p (temperature_last: after top-k, top-p, min-p, temperature), by
// sorting; zero for tokens that are out.
std::vector<double> reference_probabilities(const Floats& logits, const SamplingParams& params) {
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  const auto max = static_cast<double>(logits[order[0]]);
  std::vector<double> p(logits.size());
  for (size_t i = 0; i < p.size(); ++i) {
    const double temperature = params.temperature_last ? 1.0 : static_cast<double>(params.temperature);
    p[i] = std::exp((static_cast<double>(logits[i]) - max) / temperature);
    if (!params.temperature_last && p[i] < static_cast<double>(params.min_p)) p[i] = 0.0;
  }
  if (params.top_k > 0) {
    for (size_t i = static_cast<size_t>(params.top_k); i < order.size(); ++i) p[order[i]] = 0.0;
  }
  double total = std::accumulate(p.begin(), p.end(), 0.0);
  if (params.top_p < 1.0f) {
    double sum = 0.0;
    bool full = false;
    for (const size_t i : order) {
      if (full) p[i] = 0.0;
      sum += p[i];
      full = full || sum >= static_cast<double>(params.top_p) * total;
    }
    total = std::accumulate(p.begin(), p.end(), 0.0);
  }
  if (params.temperature_last) {
    for (double& x : p) {
      if (x < static_cast<double>(params.min_p)) x = 0.0;
      if (x > 0.0) x = std::pow(x, 1.0 / static_cast<double>(params.temperature));
    }
    total = std::accumulate(p.begin(), p.end(), 0.0);
  }
  for (double& x : p) x /= total;
  return p;
}

TEST_P(Sampling, DistributionMatchesTheReference) {
  const Floats logits = random_floats(300, 1, 2.0f);
  SamplingParams plain, hot, top_k, top_p, min_p, all;
  hot.temperature = 1.7f;
  top_k.top_k = 7;
  top_p.top_p = 0.6f;
  min_p.min_p = 0.1f;
  all.temperature = 0.8f;
  all.min_p = 0.02f;
  all.top_k = 20;
  all.top_p = 0.9f;
  SamplingParams last = all;
  last.temperature_last = true;
  last.min_p = 0.05f;
  for (SamplingParams params : {plain, hot, top_k, top_p, min_p, all, last}) {
    params.seed = 12345;
    const std::vector<double> expected = reference_probabilities(logits, params);
    const uint32_t count = device_op_cases()[GetParam()].is_emulated ? 160 : 20000;
    const std::map<int32_t, double> drawn = frequencies(logits, params, count);
    for (size_t token = 0; token < expected.size(); ++token) {
      const auto found = drawn.find(static_cast<int32_t>(token));
      const double frequency = found == drawn.end() ? 0.0 : found->second;
      if (expected[token] == 0.0) {
        EXPECT_EQ(frequency, 0.0) << "token " << token << " is out";
      } else {
        // of what is drawn hardly ever, a few draws more or less are chance
        EXPECT_NEAR(frequency, expected[token], 5.0 * std::sqrt(expected[token] / count) + 3.0 / count)
            << "token " << token;
      }
    }
  }
}

// Rows at any address, with NaN between them: a pass that reads beside its row finds one.
struct ScatteredRows {
  ScatteredRows(int64_t num_rows, int64_t num_tokens, int64_t offset, int64_t gap)
      : rows(num_rows),
        vocab(num_tokens),
        begin(offset),
        stride(num_tokens + gap),
        memory(static_cast<size_t>(offset + rows * stride), std::numeric_limits<float>::quiet_NaN()) {}

  float* row(int64_t r) { return memory.data() + begin + r * stride; }
  void set(int64_t r, const Floats& logits) { std::copy(logits.begin(), logits.end(), row(r)); }
  Tensor tensor() { return {row(0), DType::kF32, rows, vocab, stride}; }
  bool is_nan_between() const {
    for (int64_t i = 0; i < static_cast<int64_t>(memory.size()); ++i) {
      const bool is_beside = i < begin || (i - begin) % stride >= vocab;
      if (is_beside && !std::isnan(memory[static_cast<size_t>(i)])) return false;
    }
    return true;
  }

  int64_t rows, vocab, begin, stride;
  Floats memory;
};

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// The token is the one at which the running sum of the reference's probabilities passes the generator's number, for every
// kind of cut, of rows shorter than a vector, a warp and a block and no multiple of anything.
TEST_P(Sampling, ADrawFallsWhereTheGeneratorSays) {
  SamplingParams plain, top_k, top_p, wide, all, last, best;
  top_k.top_k = 7;
  top_p.top_p = 0.7f;
  wide.top_p =
      0.99f;  // down to weights that the card does not list in its first pass (kernels/cuda/sample_cut.h)
  all.temperature = 1.3f;
  all.min_p = 0.01f;
  all.top_k = 40;
  all.top_p = 0.9f;
  last = all;
  last.temperature_last = true;
  best.num_logprobs = 20;
  const std::vector<const SamplingParams*> params = {&plain, &top_k, &top_p, &wide, &all, &last, &best};
  uint32_t position = 0;
  for (const int64_t vocab : {1, 2, 3, 5, 31, 33, 100, 1025, 4099, 33001}) {
    for (const int64_t kind : {0, 1, 2, 3}) {
      Floats logits = random_floats(vocab, static_cast<uint32_t>(vocab + kind), 3.0f);
      for (size_t i = 0; i < logits.size(); ++i) {
        if (kind == 1) logits[i] = 0.25f;
        if (kind == 2) logits[i] = std::round(logits[i]);  // many ties
        if (kind == 3 && i != logits.size() * 3 / 4) logits[i] = kMinusInfinity;
      }
      ScatteredRows rows(static_cast<int64_t>(params.size()), vocab, (vocab + kind) % 4, 1 + kind);
      std::vector<SampleRow> sample_rows;
      for (size_t r = 0; r < params.size(); ++r) {
        rows.set(static_cast<int64_t>(r), logits);
        sample_rows.push_back({.params = params[r], .position = position++});
      }
      std::vector<SampleResult> results(params.size());
      backend_->sample({rows.tensor(), sample_rows, results});
      backend_->wait_step();
      EXPECT_TRUE(rows.is_nan_between());
      for (size_t r = 0; r < params.size(); ++r) {
        SCOPED_TRACE("V " + std::to_string(vocab) + " kind " + std::to_string(kind) + " row " +
                     std::to_string(r));
        const std::vector<double> p = reference_probabilities(logits, *params[r]);
        const int32_t token = results[r].token;
        ASSERT_TRUE(token >= 0 && token < vocab) << token;
        EXPECT_GT(p[static_cast<size_t>(token)], 0.0);
        const double before = std::accumulate(p.begin(), p.begin() + token, 0.0);
        const double number = sampling_uniform(params[r]->seed, 0, sample_rows[r].position);
        EXPECT_GE(number, before - 1e-5);
        EXPECT_LT(number, before + p[static_cast<size_t>(token)] + 1e-5);
      }
      std::vector<int32_t> order(logits.size());
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
      });
      const std::vector<TokenLogprob>& top = results.back().top;
      EXPECT_EQ(top.size(), kind == 3 ? 1u : std::min<size_t>(20, logits.size()));
      for (size_t i = 0; i < top.size(); ++i) EXPECT_EQ(top[i].token, order[i]) << "V " << vocab << " " << i;
      EXPECT_EQ(order[static_cast<size_t>(results.back().rank)], results.back().token);
    }
  }
}

// A cut through equal weights keeps the lowest ids, wherever the threads' shares end; the first and the last of them are drawn
// by numbers next to 0 and 1.
TEST_P(Sampling, TheFirstAndTheLastOfEqualsAreDrawn) {
  const auto position_of = [](const SamplingParams& params, double low, double high) {
    SampleRow row;
    for (;; ++row.position) {
      const double number = sampling_uniform(params.seed, row.choice, row.position);
      if (number >= low && number < high) return row.position;
    }
  };
  for (const int64_t vocab : {40, 4099}) {
    const Floats logits(static_cast<size_t>(vocab), -3.0f);
    for (const int32_t kept : {1, 31, 32, 33, 131, 132, 133, 1024, 4096, 4098, 4099}) {
      if (kept > vocab) continue;
      SamplingParams by_count, by_mass;
      by_count.top_k = kept;
      by_mass.top_p = std::min(1.0f, (static_cast<float>(kept) - 0.5f) / static_cast<float>(vocab));
      if (kept == vocab) by_mass.top_p = 1.0f;
      for (const SamplingParams* params : {&by_count, &by_mass}) {
        const double share = 1.0 / kept;
        SampleRow row;
        row.position = position_of(*params, 0.0, 0.9 * share);
        EXPECT_EQ(draw(logits, *params, row).token, 0) << kept << " of " << vocab;
        row.position = position_of(*params, 1.0 - 0.9 * share, 1.0);
        EXPECT_EQ(draw(logits, *params, row).token, kept - 1) << kept << " of " << vocab;
      }
    }
  }
}

// The ends of rows at any address: the largest, equal ones of either sign of zero, and NaN.
TEST_P(Sampling, GreedyAtTheEndsOfRows) {
  SamplingParams params;
  params.temperature = 0.0f;
  const int64_t num_rows = 4;
  const std::vector<SampleRow> sample_rows(num_rows, SampleRow{.params = &params});
  std::vector<SampleResult> results(num_rows);
  for (const int64_t vocab : {1, 2, 3, 4, 5, 8, 37, 4099}) {
    const auto last = static_cast<size_t>(vocab - 1);
    for (const int kind : {0, 1, 2, 3, 4, 5}) {
      Floats logits(static_cast<size_t>(vocab), kind == 3 ? -1.0f : kMinusInfinity);
      int32_t expected = 0;
      if (kind == 0) logits[0] = 2.0f;
      if (kind == 1 || kind == 5) logits[last] = -2.0f;
      if (kind == 1 || kind == 5) expected = static_cast<int32_t>(last);
      if (kind == 2) logits[0] = logits[last] = 7.0f;
      if (kind == 3) logits[last / 2] = -0.0f;
      if (kind == 3) logits[last] = 0.0f;
      if (kind == 3) expected = static_cast<int32_t>(last / 2);
      if (kind == 4) logits[0] = NAN;
      if (kind == 5) logits[0] = NAN;
      ScatteredRows rows(num_rows, vocab, 1, vocab % 2 + 1);
      for (int64_t r = 0; r < num_rows; ++r) rows.set(r, logits);
      if (kind == 5) rows.row(1)[0] = kMinusInfinity;  // no NaN there: the last one is the largest
      if (kind == 5 && vocab == 1) rows.row(1)[0] = -2.0f;
      backend_->sample({rows.tensor(), sample_rows, results});
      backend_->wait_step();
      for (int64_t r = 0; r < num_rows; ++r) {
        const SampleResult& result = results[static_cast<size_t>(r)];
        const bool is_nan = kind == 4 || (kind == 5 && r != 1);
        EXPECT_EQ(result.is_nan, is_nan) << "V " << vocab << " kind " << kind << " row " << r;
        if (is_nan) continue;
        EXPECT_EQ(result.token, expected) << "V " << vocab << " kind " << kind << " row " << r;
      }
    }
  }
}

// Cuts through ties and through large vocabularies: exactly the reference's set can be drawn.
TEST_P(Sampling, LargeVocabularyCuts) {
  for (const int64_t vocab : {int64_t{49152}, int64_t{151936}}) {
    const Floats normal = random_floats(vocab, 3, 3.0f);
    Floats ties(static_cast<size_t>(vocab), 0.5f);
    for (size_t i = 0; i < ties.size(); i += 3) ties[i] = 2.0f;
    for (const Floats& logits : {normal, ties}) {
      for (const int kind : {0, 1, 2}) {
        SamplingParams params;
        if (kind == 0) params.top_k = 50;
        if (kind == 1) params.top_p = 0.001f;
        if (kind == 2) params.top_p = 0.95f;
        const std::vector<double> expected = reference_probabilities(logits, params);
        SampleRow row;
        const uint32_t draws = device_op_cases()[GetParam()].is_emulated ? 8 : 40;
        for (row.position = 0; row.position < draws; ++row.position) {
          const SampleResult result = draw(logits, params, row);
          ASSERT_GE(result.token, 0);
          ASSERT_GT(expected[static_cast<size_t>(result.token)], 0.0) << "kind " << kind << " V " << vocab;
        }
      }
    }
  }
}

TEST_P(Sampling, GreedyTakesTheLowestOfEquals) {
  SamplingParams params;
  params.temperature = 0.0f;
  Floats logits(1000, -1.0f);
  logits[700] = logits[300] = logits[999] = 4.0f;
  EXPECT_EQ(draw(logits, params).token, 300);
}

TEST_P(Sampling, TinyTemperatureIsGreedy) {
  const Floats logits = random_floats(5000, 4);
  SamplingParams greedy, tiny;
  greedy.temperature = 0.0f;
  for (const float temperature : {1e-38f, 1e-45f, 1e-6f}) {
    tiny.temperature = temperature;
    const SampleResult result = draw(logits, tiny);
    EXPECT_FALSE(result.is_nan);
    EXPECT_EQ(result.token, draw(logits, greedy).token) << temperature;
  }
}

TEST_P(Sampling, ExtremeFiltersKeepOneToken) {
  const Floats logits = random_floats(5000, 5);
  const auto best = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  SamplingParams params;
  params.top_p = 1e-30f;
  EXPECT_EQ(draw(logits, params).token, best);
  params = {};
  params.top_k = 1;
  EXPECT_EQ(draw(logits, params).token, best);
  params = {};
  params.min_p = 1.0f;
  EXPECT_EQ(draw(logits, params).token, best);
}

TEST_P(Sampling, NanAndInfinityAreErrors) {
  SamplingParams params;
  params.allowed_tokens = {3};
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Floats logits = random_floats(100, 6);
    logits[3] = bad;
    EXPECT_TRUE(draw(logits, params).is_nan) << bad;
  }
  Floats hidden = random_floats(100, 6);
  hidden[77] = NAN;  // also behind a mask
  EXPECT_TRUE(draw(hidden, params).is_nan);
  const std::vector<int32_t> banned = {3};
  SampleRow row;
  row.banned = banned;
  EXPECT_TRUE(draw(random_floats(100, 6), params, row).is_nan) << "no token is left";
  EXPECT_TRUE(draw(Floats(100, -std::numeric_limits<float>::infinity()), {}).is_nan);
}

TEST_P(Sampling, MasksAndBias) {
  SamplingParams params;
  params.temperature = 0.0f;
  Floats logits(50, 0.0f);
  logits[10] = 5.0f;
  logits[20] = 4.0f;
  logits[30] = 3.0f;
  const std::vector<int32_t> banned = {10};
  SampleRow row;
  row.banned = banned;
  EXPECT_EQ(draw(logits, params, row).token, 20);
  params.logit_bias = {{30, 1.5f}};
  EXPECT_EQ(draw(logits, params, row).token, 30);
  params.allowed_tokens = {10, 20};
  EXPECT_EQ(draw(logits, params, row).token, 20);
}

// vLLM's definitions: repetition on prompt and answer, frequency and presence on the answer.
TEST_P(Sampling, Penalties) {
  Floats logits(130, -9.0f);
  logits[1] = 4.0f;
  logits[2] = 3.5f;
  logits[128] = 3.0f;
  std::vector<uint64_t> prompt(3, 0);
  std::vector<uint16_t> counts(130, 0);
  SampleRow row;
  row.prompt_tokens = prompt;
  row.counts = counts;
  SamplingParams params;
  params.temperature = 0.0f;
  params.repetition_penalty = 1.25f;
  EXPECT_EQ(draw(logits, params, row).token, 1);
  prompt[0] = 1u << 1;  // 4 / 1.25 = 3.2
  EXPECT_EQ(draw(logits, params, row).token, 2);
  counts[2] = 1;  // 3.5 / 1.25 = 2.8
  counts[1] = 2;  // once for prompt and answer together: 3.2
  EXPECT_EQ(draw(logits, params, row).token, 1);
  prompt[2] = 1;  // token 128: 3 / 1.25 = 2.4
  params.repetition_penalty = 1.0f;
  EXPECT_EQ(draw(logits, params, row).token, 1);
  params.presence_penalty = 0.6f;  // 1: 3.4, 2: 2.9, 128: 3.0
  EXPECT_EQ(draw(logits, params, row).token, 1);
  params.frequency_penalty = 0.3f;  // 1: 2.8, 2: 2.6, 128: 3.0
  EXPECT_EQ(draw(logits, params, row).token, 128);
  for (float& x : logits) x = x == -9.0f ? x : -x;  // negative logits are multiplied: -4, -3.5, -3
  params = {};
  params.temperature = 0.0f;
  params.repetition_penalty = 1.25f;
  counts.assign(130, 0);
  prompt.assign(3, 0);
  prompt[2] = 1;  // 128: -3.75
  EXPECT_EQ(draw(logits, params, row).token, 2);
}

TEST_P(Sampling, LogprobsAreThoseBeforePenaltiesAndTemperature) {
  const Floats logits = random_floats(2000, 8, 3.0f);
  std::vector<uint16_t> counts(2000, 1);
  std::vector<uint64_t> prompt(32, ~uint64_t{0});
  prompt[31] >>= 48;
  SampleRow row;
  row.counts = counts;
  row.prompt_tokens = prompt;
  SamplingParams params;
  params.temperature = 0.7f;
  params.presence_penalty = 1.0f;
  params.repetition_penalty = 1.3f;
  params.num_logprobs = 5;
  params.logit_bias = {{11, 30.0f}};
  Floats biased = logits;
  biased[11] += 30.0f;
  double sum = 0.0;
  for (const float x : biased) sum += std::exp(static_cast<double>(x));
  std::vector<int32_t> order(2000);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return biased[static_cast<size_t>(a)] > biased[static_cast<size_t>(b)];
  });
  for (row.position = 0; row.position < 20; ++row.position) {
    const SampleResult result = draw(logits, params, row);
    const double expected = static_cast<double>(biased[static_cast<size_t>(result.token)]) - std::log(sum);
    EXPECT_NEAR(static_cast<double>(result.logprob), expected, 1e-5 * (1.0 + std::abs(expected)));
    EXPECT_EQ(order[static_cast<size_t>(result.rank)], result.token);
    ASSERT_EQ(result.top.size(), 5u);
    for (size_t i = 0; i < 5; ++i) {
      EXPECT_EQ(result.top[i].token, order[i]);
      const double logprob = static_cast<double>(biased[static_cast<size_t>(order[i])]) - std::log(sum);
      EXPECT_NEAR(static_cast<double>(result.top[i].logprob), logprob, 1e-5 * (1.0 + std::abs(logprob)));
    }
  }
}

// What rows give is more than there is room for: each row's place is taken before another one has it.
TEST(SamplingOnTheEmulator, ResultsOfManyRowsTakeTurns) {
  constexpr int64_t kRows = 3, kVocab = 600, kTop = 509;  // of a row 8 bytes each and 20, in 8 KiB
  const auto usual = with_host_memory(make_emulated_backend());
  const auto small = with_host_memory(make_emulated_backend({.staging_bytes = int64_t{64} << 10}));
  SamplingParams params;
  params.temperature = 0;
  params.num_logprobs = kTop;
  std::vector<std::vector<SampleResult>> results;
  for (Backend* backend : {usual.get(), small.get()}) {
    Floats logits = random_floats(kRows * kVocab, 3, 2.0f);
    const std::vector<SampleRow> rows(kRows, {.params = &params});
    backend->sample({view(logits, kRows), rows, results.emplace_back(kRows)});
    backend->wait_step();
  }
  for (size_t i = 0; i < kRows; ++i) {
    const SampleResult &want = results[0][i], &got = results[1][i];
    ASSERT_EQ(want.top.size(), static_cast<size_t>(kTop));
    ASSERT_EQ(got.top.size(), static_cast<size_t>(kTop)) << i;
    EXPECT_EQ(got.token, want.token);
    for (size_t j = 0; j < kTop; ++j) {
      ASSERT_EQ(got.top[j].token, want.top[j].token) << i << ' ' << j;
      ASSERT_EQ(got.top[j].logprob, want.top[j].logprob) << i << ' ' << j;
    }
  }
}

// The same (seed, choice, position) gives the same token whatever stands beside it.
TEST_P(Sampling, NeighboursDoNotMatter) {
  const int64_t vocab = 3000, rows = 9;
  SamplingParams params;
  params.seed = 99;
  params.top_p = 0.9f;
  const Floats logits = random_floats(vocab * rows, 10, 2.0f);
  std::vector<SampleRow> sample_rows(rows);
  std::vector<SampleResult> results(rows);
  for (uint32_t i = 0; i < rows; ++i) {
    sample_rows[i].params = &params;
    sample_rows[i].choice = i % 2;
    sample_rows[i].position = i;
  }
  Floats batch = logits;
  batch[4 * vocab + 7] = std::numeric_limits<float>::quiet_NaN();
  std::vector<int32_t> drawn(rows, -7);
  backend_->sample({view(batch, rows), sample_rows, results, dense(drawn.data(), DType::kI32, 1, rows)});
  backend_->wait_step();
  for (size_t i = 0; i < rows; ++i) {
    const auto at = logits.begin() + static_cast<int64_t>(i) * vocab;
    EXPECT_EQ(drawn[i], i == 4 ? 0 : results[i].token) << "what the next gather reads";
    EXPECT_EQ(results[i].is_nan, i == 4);
    if (i == 4) continue;
    EXPECT_EQ(draw(Floats(at, at + vocab), params, sample_rows[i]).token, results[i].token) << i;
  }
}

// Known answers of the published generator (Random123's kat_vectors).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// Prompt log probabilities: the token is given, and its own log probability comes back whatever would have been drawn.
TEST_P(Sampling, AForcedTokenIsGivenNotDrawn) {
  const Floats logits = random_floats(50, 21, 2.0f);
  double sum = 0.0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x));
  for (const float temperature : {0.0f, 1.0f}) {
    SamplingParams params;
    params.temperature = temperature;
    params.num_logprobs = 2;
    for (const int32_t token : {0, 17, 49}) {
      SampleRow row;
      row.forced = token;
      const SampleResult result = draw(logits, params, row);
      EXPECT_EQ(result.token, token);
      EXPECT_NEAR(static_cast<double>(result.logprob),
                  static_cast<double>(logits[static_cast<size_t>(token)]) - std::log(sum), 1e-5);
      EXPECT_EQ(result.top.size(), 2u);
    }
  }
}

}  // namespace
}  // namespace restkv

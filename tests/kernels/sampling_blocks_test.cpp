// A row of logits is cut into blocks by the number of rows and multiprocessors (kernels/cuda/sample.cu): whatever that is, the bits
// are those of one block. Small shares: of 12,293 tokens three blocks of 4,224 in parts of 132, one for each warp.
#include <limits>

#include "kernels/base/philox.h"
#include "tests/kernels/backend_cases.h"

namespace restkv {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int64_t kVocab = 12293;
constexpr int32_t kEnds[] = {131, 132, 133, 4223, 4224, 4225, 8447, 8448, 8449, 12291, 12292};

std::unique_ptr<Backend> backend_of(int32_t num_multiprocessors) {
  return with_host_memory(make_emulated_backend({.num_multiprocessors = num_multiprocessors}));
}
const auto one_block = [] { return backend_of(1); };
const auto many_blocks = [] { return backend_of(132); };

// Each row of the same logits.
std::vector<SampleResult> sample(Backend& backend, const Floats& logits, const std::vector<SampleRow>& rows) {
  Floats copies;
  for (size_t i = 0; i < rows.size(); ++i) copies.insert(copies.end(), logits.begin(), logits.end());
  std::vector<SampleResult> results(rows.size());
  backend.sample({view(copies, static_cast<int64_t>(rows.size())), rows, results});
  backend.wait_step();
  return results;
}

void expect_equal(const SampleResult& got, const SampleResult& want) {
  EXPECT_EQ(got.token, want.token);
  EXPECT_EQ(got.is_nan, want.is_nan);
  EXPECT_EQ(got.logprob, want.logprob);
  EXPECT_EQ(got.rank, want.rank);
  ASSERT_EQ(got.top.size(), want.top.size());
  for (size_t i = 0; i < got.top.size(); ++i) {
    EXPECT_EQ(got.top[i].token, want.top[i].token);
    EXPECT_EQ(got.top[i].logprob, want.top[i].logprob);
  }
}

TEST(SampledBlocksOnTheEmulator, OneBlockGivesTheSameBits) {
  const auto one = one_block(), many = many_blocks();
  uint32_t position = 0;
  for (const int64_t vocab : {int64_t{8193}, kVocab, int64_t{33001}}) {
    const auto last = static_cast<int32_t>(vocab - 1);
    std::vector<SamplingParams> params(14);
    params[1].top_k = 7;
    params[2].top_p = 0.9f;
    params[3].top_p = 0.3f;
    params[3].min_p = 0.05f;
    params[4].temperature = 0.8f;
    params[4].top_k = 40;
    params[4].top_p = 0.95f;
    params[4].min_p = 0.01f;
    params[5] = params[4];
    params[5].temperature_last = true;
    params[6].top_k = 5000;
    params[6].top_p = 0.9f;
    params[7].temperature = 0.0f;
    params[7].num_logprobs = 3;
    params[8].top_p = 0.9f;
    params[8].presence_penalty = 0.3f;
    params[8].repetition_penalty = 1.2f;
    params[8].num_logprobs = 5;
    params[9].temperature = 1.5f;
    params[9].temperature_last = true;
    params[9].min_p = 0.02f;
    params[9].num_logprobs = 0;
    params[10].logit_bias = {{2, 9.0f}, {last / 2, 9.5f}, {last, 8.0f}};
    params[10].top_p = 0.9f;
    params[11].allowed_tokens = {0, 3, last / 3, last - 1, last};
    params[11].num_logprobs = 9;
    params[12] = params[11];
    params[12].top_p = 0.8f;
    params[13].top_k = last;  // keeps all that min-p leaves
    params[13].top_p = 0.97f;
    params[13].min_p = 0.01f;
    const std::vector<int32_t> banned = {0, last / 3, last};
    std::vector<uint16_t> counts(static_cast<size_t>(vocab));
    std::vector<uint64_t> prompt(static_cast<size_t>(vocab + 63) / 64, 0x9249249249249249u);
    if (vocab % 64 != 0) prompt.back() &= (uint64_t{1} << (vocab % 64)) - 1;
    for (size_t i = 0; i < counts.size(); i += 7) counts[i] = static_cast<uint16_t>(i % 3);
    for (const int kind : {0, 1, 2}) {
      if (vocab != kVocab && kind != (vocab < kVocab ? 0 : 1)) continue;
      Floats logits = random_floats(vocab, static_cast<uint32_t>(vocab + kind), 3.0f);
      for (float& x : logits) {
        if (kind == 1) x = 0.25f;          // of 33,001 more than the list takes
        if (kind == 2) x = std::round(x);  // ties in all blocks
      }
      std::vector<SampleRow> rows;
      for (const SamplingParams& one_of : params) {
        SampleRow& row = rows.emplace_back();
        row.params = &one_of;
        row.position = position++;
        if (one_of.has_penalties()) {
          row.counts = counts;
          row.prompt_tokens = prompt;
        }
      }
      rows[12].banned = banned;
      const std::vector<SampleResult> want = sample(*one, logits, rows), got = sample(*many, logits, rows);
      for (size_t r = 0; r < rows.size(); ++r) {
        SCOPED_TRACE("V " + std::to_string(vocab) + " kind " + std::to_string(kind) + " row " +
                     std::to_string(r));
        EXPECT_FALSE(want[r].is_nan);
        expect_equal(got[r], want[r]);
      }
    }
  }
}

// The first position whose number lies in [low, high).
uint32_t position_of(const SamplingParams& params, double low, double high) {
  for (uint32_t position = 0;; ++position) {
    const double number = sampling_uniform(params.seed, 0, position);
    if (number >= low && number < high) return position;
  }
}

// A cut through equal weights keeps the lowest ids, also where it falls beside the end of a part or a block.
TEST(SampledBlocksOnTheEmulator, ACutThroughEqualsAtTheEndsOfShares) {
  const auto many = many_blocks();
  const auto expect_first_and_last = [&](int64_t vocab, std::span<const int32_t> all_kept) {
    const Floats logits(static_cast<size_t>(vocab), -3.0f);
    std::vector<SamplingParams> params;
    for (const int32_t kept : all_kept) {
      params.emplace_back().top_k = kept;
      params.emplace_back().top_p = (static_cast<float>(kept) - 0.5f) / static_cast<float>(vocab);
    }
    std::vector<SampleRow> rows;
    for (size_t i = 0; i < params.size(); ++i) {
      const double share = 1.0 / all_kept[i / 2];
      rows.push_back({.params = &params[i], .position = position_of(params[i], 0.0, 0.9 * share)});
      rows.push_back({.params = &params[i], .position = position_of(params[i], 1.0 - 0.9 * share, 1.0)});
    }
    const std::vector<SampleResult> results = sample(*many, logits, rows);
    for (size_t r = 0; r < rows.size(); ++r) {
      const int32_t kept = all_kept[r / 4];
      EXPECT_EQ(results[r].token, r % 2 == 0 ? 0 : kept - 1) << kept << " of " << vocab << " row " << r;
    }
  };
  expect_first_and_last(kVocab, kEnds);
  const int32_t more_than_listed[] = {16384, 33000};
  expect_first_and_last(33001, more_than_listed);
}

// All there is lies beside the end of a part or a block: half a number away from each other.
TEST(SampledBlocksOnTheEmulator, AllOfTheMassAtTheEndsOfShares) {
  const auto many = many_blocks();
  std::vector<SamplingParams> params(4);
  params[1].top_p = 0.99f;
  params[2].top_k = 2;
  params[3].temperature = 0.0f;
  std::vector<SampleRow> rows;
  for (const SamplingParams& one_of : params) {
    rows.push_back({.params = &one_of, .position = position_of(one_of, 0.49, 0.5)});
    rows.push_back({.params = &one_of, .position = position_of(one_of, 0.5, 0.51)});
  }
  for (const int32_t token : kEnds) {
    Floats logits(static_cast<size_t>(kVocab), kMinusInfinity);
    const auto at = static_cast<size_t>(token);
    logits[at - 1] = logits[at] = 2.0f;
    const std::vector<SampleResult> results = sample(*many, logits, rows);
    for (size_t r = 0; r < rows.size(); ++r)
      EXPECT_EQ(results[r].token, r % 2 == 0 || r >= 6 ? token - 1 : token) << "row " << r;
  }
}

// What one block finds all others hear of.
TEST(SampledBlocksOnTheEmulator, NanAndInfinityInAnyBlock) {
  const auto many = many_blocks();
  std::vector<SamplingParams> params(3);
  params[0].temperature = 0.0f;
  params[1].top_p = 0.9f;
  params[2].allowed_tokens = {0, 5000};
  std::vector<SampleRow> rows;
  for (const SamplingParams& one_of : params) rows.push_back({.params = &one_of});
  const float infinity = std::numeric_limits<float>::infinity();
  for (const size_t at : {size_t{0}, size_t{5000}, size_t{kVocab - 1}}) {
    Floats logits = random_floats(kVocab, 7);
    logits[at] = NAN;
    for (const SampleResult& result : sample(*many, logits, rows)) EXPECT_TRUE(result.is_nan) << at;
    logits[at] = infinity;
    const std::vector<SampleResult> results = sample(*many, logits, rows);
    EXPECT_TRUE(results[0].is_nan && results[1].is_nan) << at;
    EXPECT_EQ(results[2].is_nan, at < kVocab - 1) << "a mask hides infinity, " << at;
  }
  for (const SampleResult& result : sample(*many, Floats(kVocab, kMinusInfinity), rows))
    EXPECT_TRUE(result.is_nan);
}

}  // namespace
}  // namespace restkv

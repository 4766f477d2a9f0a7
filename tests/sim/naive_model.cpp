// The rules of architecture.md in a few dozen lines: a head that holds C rows is cut to C - stride (the first time the layer's
// stagger more); protected rows stay, the others by score, newer ones first among equals.
#include "tests/sim/naive_model.h"

#include <algorithm>
#include <array>

#include "tests/sim/fake_backend.h"

namespace restkv::sim {

Expected expected_answer(const Request& request, int32_t choice) {
  const CacheSettings& cache = request.cache;
  const auto prompt_len = static_cast<int32_t>(request.prompt.size());
  const int32_t c = cache.budget, stride = cache.stride.value_or(1);
  const bool is_full = cache.policy == PolicyKind::kFull || prompt_len + request.max_tokens <= c;
  const bool is_grow = cache.decode == DecodeMode::kGrow;
  const bool by_age = cache.policy == PolicyKind::kStreamingllm;
  const int32_t sinks = by_age ? 4 : cache.policy == PolicyKind::kRestkv ? cache.sinks : 0;
  const int32_t recent = by_age ? 1 : cache.window;

  std::vector<int32_t> tokens = request.prompt;
  std::vector<std::array<uint32_t, kLayers + 1>> state;  // h of a token before each layer, and after the last
  std::array<std::array<std::vector<int32_t>, kHeads>, kLayers> kept;  // positions
  std::array<std::array<uint32_t, kHeads>, kLayers> digest{};
  std::array<std::array<bool, kHeads>, kLayers> was_cut{};
  Expected expected;

  const auto token_at = [&](int32_t p) { return static_cast<uint32_t>(tokens[static_cast<size_t>(p)]); };
  const auto entry = [&](int32_t l, int32_t head, int32_t p) {
    return entry_hash(static_cast<uint32_t>(p), token_at(p),
                      state[static_cast<size_t>(p)][static_cast<size_t>(l)], static_cast<uint32_t>(l),
                      static_cast<uint32_t>(head));
  };
  const auto append = [&](int32_t p) {
    state.emplace_back();
    for (int32_t l = 0; l < kLayers; ++l) {
      auto& sums = digest[static_cast<size_t>(l)];
      for (int32_t head = 0; head < kHeads; ++head) {
        kept[static_cast<size_t>(l)][static_cast<size_t>(head)].push_back(p);
        sums[static_cast<size_t>(head)] += entry(l, head, p);
      }
      auto& h = state.back();
      h[static_cast<size_t>(l) + 1] =
          attended(h[static_cast<size_t>(l)], sums[0], sums[1], static_cast<uint32_t>(l));
    }
  };
  // Cuts one head to `keep` rows; the queries of the last `window` tokens look on.
  const auto cut = [&](int32_t l, int32_t head, int32_t keep) {
    auto& rows = kept[static_cast<size_t>(l)][static_cast<size_t>(head)];
    const auto end = static_cast<int32_t>(state.size());
    uint32_t queries = 0;
    for (int32_t p = std::max(0, end - cache.window); p < end; ++p)
      queries += query_hash(static_cast<uint32_t>(p), token_at(p),
                            state[static_cast<size_t>(p)][static_cast<size_t>(l)]);
    std::vector<std::pair<uint32_t, int32_t>> best;  // (score, position)
    std::vector<int32_t> stay;
    for (size_t j = 0; j < rows.size(); ++j) {
      if (rows[j] < sinks || j + static_cast<size_t>(recent) >= rows.size()) {
        stay.push_back(rows[j]);
      } else {
        best.emplace_back(
            by_age ? static_cast<uint32_t>(rows[j]) : entry_score(entry(l, head, rows[j]), queries), rows[j]);
      }
    }
    std::sort(best.rbegin(), best.rend());
    best.resize(static_cast<size_t>(keep) - stay.size());
    for (const auto& [score, position] : best) stay.push_back(position);
    std::sort(stay.begin(), stay.end());
    expected.evicted += static_cast<int64_t>(rows.size() - stay.size());
    rows = stay;
    uint32_t& sum = digest[static_cast<size_t>(l)][static_cast<size_t>(head)];
    sum = 0;
    for (const int32_t p : rows) sum += entry(l, head, p);
  };
  const auto cut_due = [&](bool is_prefill) {
    for (int32_t l = 0; l < kLayers && !is_full; ++l) {
      bool is_event = false;
      for (int32_t head = 0; head < kHeads; ++head) {
        const auto len = static_cast<int32_t>(kept[static_cast<size_t>(l)][static_cast<size_t>(head)].size());
        const bool is_due = is_grow ? is_prefill && len > c : is_prefill ? len >= c : len == c;
        if (!is_due) continue;
        bool& later = was_cut[static_cast<size_t>(l)][static_cast<size_t>(head)];
        cut(l, head, is_grow ? c : c - stride + (later ? 0 : l * stride / kLayers));
        later = true;
        is_event = true;
      }
      expected.events += is_event;
    }
  };

  for (int32_t p = 0; p < prompt_len; ++p) append(p);
  cut_due(true);
  // Also where no token is asked for: the log probabilities of the prompt would be no numbers.
  if (request.max_tokens == 0 && draws_nan(request.sampling.seed, static_cast<uint32_t>(prompt_len))) {
    expected.finish = FinishReason::kError;
    expected.is_nan = true;
  }
  while (static_cast<int32_t>(expected.tokens.size()) < request.max_tokens) {
    const auto position = static_cast<uint32_t>(state.size());
    if (draws_nan(request.sampling.seed, position)) {
      expected.finish = FinishReason::kError;
      expected.is_nan = true;
      return expected;
    }
    const int32_t token = drawn_token(state.back()[kLayers], position, request.sampling.seed,
                                      static_cast<uint32_t>(choice), kVocab);
    if (token == kEos && !request.ignore_eos) {
      expected.finish = FinishReason::kStop;
      return expected;
    }
    expected.tokens.push_back(token);
    tokens.push_back(token);
    if (static_cast<int32_t>(expected.tokens.size()) == request.max_tokens) break;
    append(static_cast<int32_t>(position));
    cut_due(false);
  }
  return expected;
}

}  // namespace restkv::sim

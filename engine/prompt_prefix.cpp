// Between the sequences' numbers and the blocks of the prefix cache.
#include "engine/prompt_prefix.h"

#include <algorithm>
#include <random>

namespace restkv {
namespace {

PrefixKey random_secret() {
  std::random_device device;
  const auto word = [&] { return uint64_t{device()} << 32 | device(); };
  return {word(), word()};
}

PrefixOptions options_of(const KvCache& cache, double fraction, int64_t max_tokens) {
  const CacheShape& shape = cache.shape();
  return {.block_tokens = cache.view().slots,
          .pages_per_block = shape.num_layers * shape.num_kv_heads,
          .max_pages = static_cast<int64_t>(fraction * static_cast<double>(cache.pool().total())),
          .max_tokens = max_tokens};
}

}  // namespace

PromptPrefixes::PromptPrefixes(Backend& backend, KvCache& cache, double fraction, int64_t max_tokens)
    : backend_(backend),
      cache_(cache),
      prefixes_(cache.pool(), options_of(cache, fraction, max_tokens), random_secret()) {}

void PromptPrefixes::prepare(const Sequence& sequence, int64_t max_hit, PrefixUse& use) const {
  const Request& request = sequence.request();
  // Neither part of the salt can stand for the other.
  const std::string salt = std::to_string(request.owner.size()) + ":" + request.owner + request.cache_salt;
  const auto tokens = std::span(sequence.tokens).first(static_cast<size_t>(sequence.prefill_len));
  use.keys = prefixes_.keys(salt, tokens);
  use.max_hit = max_hit;
}

bool PromptPrefixes::can_take(const Sequence& sequence, const PrefixUse& use, int64_t pages) const {
  const int64_t free = cache_.pool().free();
  if (pages <= free) return true;
  if (use.keys.empty()) return pages <= free + prefixes_.reclaimable_pages();
  const std::vector<int32_t> chain = prefixes_.find(use.keys, sequence.tokens, sequence.prefill_len);
  return pages <= free + prefixes_.reclaimable_pages(chain) || pages <= free + prefixes_.reclaimable_pages();
}

void PromptPrefixes::make_room(Sequence& sequence, PrefixUse& use, int64_t pages) {
  if (!use.keys.empty()) {
    use.chain = prefixes_.find(use.keys, sequence.tokens, sequence.prefill_len);
    if (pages > cache_.pool().free() + prefixes_.reclaimable_pages(use.chain)) use.chain.clear();
    prefixes_.pin(use.chain);
    const auto num_blocks = static_cast<int64_t>(use.chain.size());
    const int64_t hit = std::min(num_blocks, std::max<int64_t>(0, use.max_hit) / prefixes_.block_tokens());
    sequence.first_row = static_cast<int32_t>(hit * prefixes_.block_tokens());
    if (hit > 0) {
      const CacheShape& shape = cache_.shape();
      const int64_t tables = shape.num_layers * shape.num_kv_heads;
      use.pages.resize(static_cast<size_t>(tables * hit));
      for (int64_t block = 0; block < hit; ++block) {
        const std::span<const int32_t> from = prefixes_.pages(use.chain[static_cast<size_t>(block)]);
        for (int64_t table = 0; table < tables; ++table)
          use.pages[static_cast<size_t>(table * hit + block)] = from[static_cast<size_t>(table)];
      }
      use.len.assign(static_cast<size_t>(shape.num_kv_heads), sequence.first_row);
    }
  }
  prefixes_.make_room(pages);
}

void PromptPrefixes::begin_insert(const Sequence& sequence, PrefixUse& use) {
  if (!use.keys.empty()) use.insertion = prefixes_.begin_insert(use.keys, sequence.tokens);
}

HeadTables PromptPrefixes::tables(const PrefixUse& use, int64_t layer) const {
  if (use.len.empty()) return {};
  const int64_t heads = cache_.shape().num_kv_heads;
  const auto blocks =
      static_cast<int32_t>(static_cast<int64_t>(use.pages.size()) / (cache_.shape().num_layers * heads));
  return {use.pages.data() + layer * heads * blocks, blocks, use.len.data()};
}

void PromptPrefixes::store_layer(const Sequence& sequence, const PrefixUse& use, int64_t layer, ConstTensor k,
                                 ConstTensor v, std::span<const int32_t> positions) const {
  if (!use.insertion || use.insertion->blocks.empty()) return;
  const PrefixCache::Insertion& insertion = *use.insertion;
  const auto heads = static_cast<size_t>(cache_.shape().num_kv_heads);
  const size_t blocks = insertion.blocks.size();
  std::vector<int32_t> pages(heads * blocks);
  for (size_t block = 0; block < blocks; ++block) {
    const std::span<const int32_t> from = prefixes_.pages(insertion.blocks[block]);
    for (size_t head = 0; head < heads; ++head)
      pages[head * blocks + block] = from[static_cast<size_t>(layer) * heads + head];
  }
  const std::vector<int32_t> empty(heads, 0);
  const int64_t begin = insertion.first_token - sequence.first_row;
  const int64_t count = static_cast<int64_t>(blocks) * prefixes_.block_tokens();
  const auto rows = [&](ConstTensor all) {
    all.data = all.row(begin);
    all.rows = count;
    return all;
  };
  backend_.store_pages(
      {.k = rows(k),
       .v = rows(v),
       .positions = positions.subspan(static_cast<size_t>(insertion.first_token), static_cast<size_t>(count)),
       .tables = {pages.data(), static_cast<int32_t>(blocks), empty.data()},
       .num_kv_heads = static_cast<int32_t>(heads),
       .cache = cache_.view()});
}

void PromptPrefixes::finish(PrefixUse& use, bool is_good) {
  if (use.insertion) {
    if (is_good) {
      prefixes_.finish_insert(std::move(use.insertion));
    } else {
      prefixes_.abandon(std::move(use.insertion));
    }
  }
  prefixes_.unpin(use.chain);
  use = PrefixUse{};
}

}  // namespace restkv

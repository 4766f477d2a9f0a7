// A policy as data: what it needs observed, how rows are scored and pooled, which rows it protects, how rows are selected.
// It is pure and owns no memory: the engine runs observe, score, smooth, select, compact (kernels/eviction.h) by its recipe.
//   prefill  [0, sinks) kept | [sinks, n - recent) scored, pooled, selected | [n - recent, n) kept
//   decode   the same without pooling
#pragma once

#include <cstdint>
#include <string_view>

#include "engine/eviction/cache_settings.h"
#include "kernels/eviction.h"

namespace restkv {

// Which queries look at the rows.
enum class QueryNeed : uint8_t {
  kNone,    // positions alone
  kNewest,  // the last one
  kWindow,  // the last W
  kAll,  // every query since the last cut: in prefill one pass for each chunk, in decode the ring's, summed in pages
};

struct PolicyRecipe {
  std::string_view name = {};
  bool evicts = true;
  QueryNeed queries = QueryNeed::kNone;
  ScoreSpec score = {};
  SelectScope scope = SelectScope::kHead;
  int32_t sinks = 0;   // first positions that stay
  int32_t recent = 1;  // last rows that stay
  // After prefill: scores are pooled with `pool`; with `interleave` the unpooled scores select half of the free rows.
  PoolKind pool = PoolKind::kNone;
  bool interleave = false;
  int32_t kernel = 1;
  int32_t scale = 2000;
  bool uses_projection = false;  // R_g of the output projection
  bool needs_drift = false;      // observe's mean_index with C - W rows
  bool takes_probe = false;

  bool needs_queries() const { return queries != QueryNeed::kNone; }
  bool needs_sums() const { return queries == QueryNeed::kAll; }
  bool operator==(const PolicyRecipe&) const = default;
};

// The recipe at budget C of a model with num_layers layers.
PolicyRecipe make_recipe(const CacheSettings& settings, int32_t budget, int32_t num_layers);
// Rows a head never gives up at budget C: sinks, recent rows, pins of every kind.
int32_t protected_rows(const CacheSettings& settings, int32_t budget);

// One file each.
PolicyRecipe full_recipe();
PolicyRecipe restkv_recipe(const CacheSettings& settings, int32_t budget);
PolicyRecipe snapkv_recipe(const CacheSettings& settings, int32_t budget);
PolicyRecipe pyramidkv_recipe(const CacheSettings& settings, int32_t budget);
PolicyRecipe adakv_recipe(const CacheSettings& settings, int32_t budget);
PolicyRecipe streamingllm_recipe();
PolicyRecipe h2o_recipe(int32_t budget);
PolicyRecipe tova_recipe();
PolicyRecipe lacache_recipe(const CacheSettings& settings, int32_t num_layers);
PolicyRecipe random_recipe(const CacheSettings& settings);

}  // namespace restkv

// Measures a model's error curves over texts (eviction/error_curve.h) and makes its allocation of them. One prompt at a time,
// layer by layer, with the order in which the preset `default` keeps rows after prefill; no cache, no engine thread. On the CPU.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "engine/eviction/allocation_file.h"

namespace restkv {

class Calibration {
 public:
  // For texts of `text_len` tokens. Error: no full-attention layer, the text is too short for the window, a device that is
  // neither auto nor cpu.
  static Result<std::unique_ptr<Calibration>> make(std::shared_ptr<const Model> model,
                                                   const EngineOptions& options, int64_t text_len);
  virtual ~Calibration() = default;

  // [text_len] token ids of the vocabulary; `on_layer` is called after each layer. Error: the model's numbers are not finite;
  // then there are no tables.
  virtual Status add_text(std::span<const int32_t> tokens, const std::function<void()>& on_layer) = 0;
  // Of the texts so far (at least one), for a ladder of budgets up to half a text.
  virtual AllocationTables tables() const = 0;
  virtual const CacheSettings& settings() const = 0;
  virtual int64_t num_texts() const = 0;
};

}  // namespace restkv

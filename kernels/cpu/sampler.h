// Draws one token from one row of logits (semantics: kernels/base/sampling.h).
#pragma once

#include "kernels/base/sampling.h"
#include "kernels/cpu/kernel_table.h"

namespace restkv::cpu {

// logits [V] is overwritten; workspace: sampler_bytes(V).
void sample_row(const KernelTable& kernels, float* logits, int64_t vocab, const SampleRow& row,
                SampleResult& result, const Workspace& workspace);

int64_t sampler_bytes(int64_t vocab);

}  // namespace restkv::cpu

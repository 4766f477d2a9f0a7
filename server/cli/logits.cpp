// restkv logits MODEL --tokens 1,2,3 --out F.safetensors: the tensor "logits", f32 [T, V], to compare with others.
#include "engine/logits.h"

#include <cstdio>

#include "engine/model/safetensors.h"
#include "server/cli/model_loading.h"
#include "server/cli/verbs.h"

namespace restkv {

int run_logits(const Invocation& invocation) {
  const Settings& settings = invocation.settings();
  const OutputSettings& output = settings.output;
  if (output.tokens.empty()) return fail("--tokens is missing (example: --tokens 1,2,3)", kExitUsage);
  if (output.out.empty()) return fail("--out is missing (example: --out logits.safetensors)", kExitUsage);
  const Result<std::shared_ptr<const Model>> model = load_model_of(settings);
  if (!model.ok()) return fail(model.status());

  const int64_t rows = static_cast<int64_t>(output.tokens.size());
  const int64_t vocab = (*model)->config.vocab_size;
  std::vector<float> logits(static_cast<size_t>(rows * vocab));  // [T, V]
  const Status computed = compute_logits(
      **model, settings.engine, output.tokens, {}, [&](int64_t first, int64_t count, const float* data) {
        std::copy(data, data + count * vocab, logits.data() + first * vocab);
      });
  if (!computed.ok()) return fail(computed);
  const OutputTensor tensor{
      .name = "logits", .dtype = DType::kF32, .shape = {rows, vocab}, .data = logits.data()};
  if (Status status = write_safetensors(output.out, {tensor}); !status.ok()) return fail(status);
  std::fprintf(stderr, "%s: logits f32 [%lld, %lld]\n", output.out.c_str(), static_cast<long long>(rows),
               static_cast<long long>(vocab));
  return kExitOk;
}

}  // namespace restkv

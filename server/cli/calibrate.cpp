// restkv calibrate MODEL --texts DIR: measures error curves and writes the model's allocation file.
#include <cstdio>
#include <fstream>

#include "engine/calibration.h"
#include "server/cli/allocation_path.h"
#include "server/cli/model_loading.h"
#include "server/cli/terminal.h"
#include "server/cli/verbs.h"
#include "server/eval/texts.h"

namespace restkv {

int run_calibrate(const Invocation& invocation) {
  constexpr int64_t kTexts = 16, kLength = 2048;
  const Settings& settings = invocation.settings();
  if (settings.eval.texts.empty()) return fail("--texts is missing: a folder of text files", kExitUsage);
  if (settings.engine.device != "auto" && settings.engine.device != "cpu")
    return fail("--device " + settings.engine.device + ": calibration runs on the CPU; auto or cpu",
                kExitUsage);
  const int64_t num_texts = settings.eval.num_texts.value_or(kTexts);
  const int64_t length = settings.output.prompt_len.value_or(kLength);
  const Result<LoadedModel> loaded = load_model_and_tokenizer(settings);
  if (!loaded.ok()) return fail(loaded.status());
  const std::string out =
      settings.output.out.empty() ? allocation_path_beside(loaded->model->path) : settings.output.out;
  const Result<std::vector<int32_t>> tokens =
      read_texts(settings.eval.texts, *loaded->tokenizer, TextPart::kCalibration);
  if (!tokens.ok()) return fail("--texts: " + tokens.status().message());
  const std::vector<int32_t> prefix = loaded->tokenizer->encode("", {});
  const auto slices =
      cut_slices(*tokens, num_texts, std::max<int64_t>(1, length - static_cast<int64_t>(prefix.size())));
  if (!slices.ok()) return fail(slices.status());
  const Result<std::unique_ptr<Calibration>> calibration =
      Calibration::make(loaded->model, settings.engine, length);
  if (!calibration.ok()) return fail("--prompt-len: " + calibration.status().message());

  const InterruptGuard guard;
  {
    ProgressBar bar("calibrating", "layers");
    int64_t done = 0;
    const int64_t total = num_texts * loaded->model->config.num_layers;
    for (const std::vector<int32_t>& slice : *slices) {
      std::vector<int32_t> text = prefix;
      text.insert(text.end(), slice.begin(), slice.end());
      const Status added = (*calibration)->add_text(text, [&] { bar.update(++done, total); });
      if (!added.ok()) return fail(added.message() + "; nothing was written");
      if (InterruptGuard::is_interrupted()) return fail("interrupted; nothing was written", kExitInterrupted);
    }
  }
  const std::string json = allocation_json(
      (*calibration)->tables(), loaded->model->config,
      {.num_texts = (*calibration)->num_texts(), .text_len = length, .settings = (*calibration)->settings()});
  std::ofstream file(out, std::ios::binary);
  file << json;
  file.close();
  if (!file) return fail("cannot write " + out);
  std::fprintf(stderr, "%s: rows of %lld layers, %lld KV heads each, from %lld texts of %lld tokens\n",
               out.c_str(), static_cast<long long>(loaded->model->config.num_layers),
               static_cast<long long>(loaded->model->config.num_kv_heads), static_cast<long long>(num_texts),
               static_cast<long long>(length));
  return kExitOk;
}

}  // namespace restkv

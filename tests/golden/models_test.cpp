// Does the engine compute what transformers computes? Every case of RESTKV_GOLDEN_MODELS_DIR: logits of every
// position with the prompt in one piece, in uneven pieces and token by token, in one step and in layer-major
// units; then the greedy tokens through the engine, all prompts at once and alone. Tolerances are the cases'
// own. With RESTKV_EMULATED, and on a card, the same on the CUDA backend: in f32 to the same tolerance and tokens, in bf16 and f16 to
// one of their own; fewer cuts on the emulator, because a fiber for each GPU thread takes its time.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <vector>

#include "engine/engine.h"
#include "engine/logits.h"
#include "engine/model/safetensors.h"
#include "tests/golden/golden_folder.h"
#if RESTKV_EMULATED
#include "tests/emulator/emulated_backend.h"
#else
#include "kernels/cuda/card.h"
#endif

namespace fs = std::filesystem;

namespace restkv {
namespace {

struct Prompt {
  std::vector<int32_t> tokens;  // [T]
  std::vector<float> logits;    // [T, V]
  std::vector<int32_t> greedy;  // [24]
};

struct Case {
  std::string name;
  fs::path model;  // folder or .gguf
  fs::path cases;
  double tolerance = 0;
  std::vector<Prompt> prompts;
};

template <class T>
std::vector<T> values_of(const FileTensor& tensor) {
  std::vector<T> values(static_cast<size_t>(tensor.num_bytes) / sizeof(T));
  std::memcpy(values.data(), tensor.data, values.size() * sizeof(T));
  return values;
}

Status read_prompts(Case& c) {
  Result<std::shared_ptr<const MappedFile>> file = MappedFile::open(c.cases.string());
  if (!file.ok()) return file.status();
  const Result<SafetensorsFile> cases = parse_safetensors(*file);
  if (!cases.ok()) return cases.status();
  c.tolerance = std::stod(cases->metadata.at("tolerance"));
  for (int i = 0;; ++i) {
    const std::string suffix = "_" + std::to_string(i);
    const FileTensor* tokens = cases->index.find("tokens" + suffix);
    if (!tokens) return {};
    const FileTensor* logits = cases->index.find("logits" + suffix);
    const FileTensor* greedy = cases->index.find("greedy" + suffix);
    if (!logits || !greedy)
      return invalid_argument("case " + std::to_string(i) + " has no logits or greedy tokens");
    c.prompts.push_back(
        {values_of<int32_t>(*tokens), values_of<float>(*logits), values_of<int32_t>(*greedy)});
  }
}

// The variants of one folder: config.json, transformers-5 config, GGUF twins.
std::vector<Case> cases_in(const fs::path& folder, const fs::path& scratch) {
  std::vector<Case> cases;
  const std::string name = folder.filename().string();
  cases.push_back({name, folder, folder / "cases.safetensors", 0, {}});
  if (fs::exists(folder / "config.v5.json")) {
    const fs::path twin = scratch / (name + "-v5");
    fs::create_directories(twin);
    for (const auto& entry : fs::directory_iterator(folder)) {
      const std::string file = entry.path().filename().string();
      if (file != "config.json" && file != "config.v5.json") fs::create_symlink(entry.path(), twin / file);
    }
    fs::create_symlink(folder / "config.v5.json", twin / "config.json");
    cases.push_back({name + " (transformers 5 config)", twin, folder / "cases.safetensors", 0, {}});
  }
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".gguf") continue;
    const std::string stem = entry.path().stem().string();  // model, model-q4_0, ...
    fs::path expected = folder / "cases.safetensors";
    if (stem == "model" && fs::exists(folder / "cases_gguf.safetensors"))
      expected = folder / "cases_gguf.safetensors";
    if (stem.starts_with("model-")) expected = folder / ("cases_" + stem.substr(6) + ".safetensors");
    cases.push_back({name + " (" + entry.path().filename().string() + ")", entry.path(), expected, 0, {}});
  }
  return cases;
}

DType type_under_test = DType::kF32;  // of a device; the CPU computes in f32

#if !RESTKV_EMULATED
// RESTKV_TEST_DEVICE=cuda runs the cases on the first card (tools/gpu_check.sh).
bool is_on_card() {
  const char* named = std::getenv("RESTKV_TEST_DEVICE");
  return named != nullptr && std::string_view(named) == "cuda";
}
#endif

EngineOptions test_options(int32_t max_num_batched_tokens) {
  EngineOptions options;
#if RESTKV_EMULATED
  options.cache_dtype = type_under_test;
  options.backend_maker = []() -> Result<std::unique_ptr<Backend>> {
    // each kernel of prefill attention for 16 bits has one of the types
    return make_emulated_backend(
        {.type = type_under_test,
         .card = type_under_test == DType::kBF16 ? emulator::Card::kSm90 : emulator::Card::kSm80});
  };
#else
  options.device = "cpu";
  if (is_on_card()) {
    options.cache_dtype = type_under_test;
    options.backend_maker =
        [] {  // one for each cut of each prompt: small, for page-locked memory takes long to get
          constexpr int64_t kMiB = int64_t{1} << 20;
          return cuda::open_card(
              0, {.type = type_under_test, .workspace_bytes = 16 * kMiB, .staging_bytes = 2 * kMiB});
        };
  }
#endif
  options.threads = 2;
  options.max_model_len = 160;
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = max_num_batched_tokens;
  return options;
}

// What logits may differ by: each of them in f32; with 16-bit activations all of a prompt together, because the rounding of one
// value may tip a softmax over and move single logits of these random-weight models by much.
struct Tolerance {
  double each = 0;      // largest difference; 0: not asked
  double relative = 0;  // |difference| / |expected| in the 2-norm over a prompt; 0: not asked
};

// Empty: equal within the tolerance.
std::string compare_logits(const Model& model, const Prompt& prompt, const Tolerance& tolerance,
                           int32_t batched_tokens, const std::vector<int32_t>& pieces) {
  const auto vocab = static_cast<size_t>(model.config.vocab_size);
  if (prompt.logits.size() != prompt.tokens.size() * vocab) return "the case has another vocabulary";
  std::vector<bool> seen(prompt.tokens.size(), false);
  double worst = 0, squares = 0, expected_squares = 0;
  bool has_nan = false;
  const Status status = compute_logits(
      model, test_options(batched_tokens), prompt.tokens, pieces,
      [&](int64_t first, int64_t rows, const float* logits) {
        for (int64_t r = 0; r < rows; ++r) {
          seen[static_cast<size_t>(first + r)] = true;
          const float* expected = prompt.logits.data() + static_cast<size_t>(first + r) * vocab;
          for (size_t v = 0; v < vocab; ++v) {
            const double difference =
                std::abs(double{logits[static_cast<size_t>(r) * vocab + v]} - expected[v]);
            has_nan |= std::isnan(difference);
            worst = std::max(worst, difference);
            squares += difference * difference;
            expected_squares += double{expected[v]} * expected[v];
          }
        }
      });
  if (!status.ok()) return status.message();
  if (std::count(seen.begin(), seen.end(), false) != 0) return "rows without logits";
  if (has_nan) return "NaN";
  if (tolerance.each > 0 && worst > tolerance.each)
    return "logits differ by " + std::to_string(worst) + ", allowed " + std::to_string(tolerance.each);
  const double relative = std::sqrt(squares / expected_squares);
  if (tolerance.relative > 0 && relative > tolerance.relative)
    return "logits differ by a share of " + std::to_string(relative) + ", allowed " +
           std::to_string(tolerance.relative);
  return {};
}

// Submits the prompts at once and gives the greedy answers.
std::vector<std::vector<int32_t>> greedy_answers(Engine& engine, const std::vector<const Prompt*>& prompts) {
  // Shared with the engine: it may ring once more after the last record was taken.
  struct Bell {
    std::mutex mutex;
    std::condition_variable ready;
    bool is_rung = false;
  };
  const auto bell = std::make_shared<Bell>();
  std::vector<std::shared_ptr<RequestHandle>> handles;
  for (const Prompt* prompt : prompts) {
    Request request;
    request.prompt = prompt->tokens;
    request.max_tokens = static_cast<int32_t>(prompt->greedy.size());
    request.ignore_eos = true;
    request.sampling.temperature = 0;
    handles.push_back(std::make_shared<RequestHandle>(std::move(request), [bell] {
      const std::lock_guard lock(bell->mutex);
      bell->is_rung = true;
      bell->ready.notify_one();
    }));
  }
  std::vector<std::vector<int32_t>> answers(handles.size());
  size_t finished = 0;
  for (size_t i = 0; i < handles.size(); ++i) {
    const Status status = engine.submit(handles[i]);
    if (!status.ok()) {
      std::printf("submit: %s\n", status.message().c_str());
      return answers;
    }
  }
  std::vector<TokenRecord> records;
  while (finished < handles.size()) {
    {
      std::unique_lock lock(bell->mutex);
      bell->ready.wait(lock, [&] { return bell->is_rung; });
      bell->is_rung = false;
    }
    for (size_t i = 0; i < handles.size(); ++i) {
      if (!handles[i]->stream.take(records)) continue;
      for (const TokenRecord& record : records) {
        if (record.kind == TokenRecord::Kind::kToken) answers[i].push_back(record.token);
        if (record.kind == TokenRecord::Kind::kFinish) ++finished;
      }
    }
  }
  return answers;
}

std::string compare_greedy(const std::shared_ptr<const Model>& model, const Case& c, int32_t batched_tokens) {
  Result<std::unique_ptr<Engine>> engine = Engine::start(model, test_options(batched_tokens));
  if (!engine.ok()) return engine.status().message();
  std::vector<const Prompt*> all;
  for (const Prompt& prompt : c.prompts) all.push_back(&prompt);
  const std::vector<std::vector<int32_t>> together = greedy_answers(**engine, all);
  for (size_t i = 0; i < all.size(); ++i) {
    const std::string which = "prompt of " + std::to_string(all[i]->tokens.size()) + " tokens: ";
    if (together[i] != all[i]->greedy) return which + "greedy tokens differ in a batch";
    if (!RESTKV_EMULATED && greedy_answers(**engine, {all[i]}).front() != all[i]->greedy)
      return which + "greedy tokens differ alone";
  }
  return {};
}

struct Cut {
  const char* what;
  int32_t batched_tokens;
  std::vector<int32_t> pieces;
};

// Empty: all of the case is right.
std::string check_case(const std::shared_ptr<const Model>& model, const Case& c, const Tolerance& tolerance,
                       const std::vector<Cut>& cuts, const std::vector<int32_t>& greedy_steps) {
  for (const Prompt& prompt : c.prompts) {
    for (const Cut& cut : cuts) {
      const std::string what = compare_logits(*model, prompt, tolerance, cut.batched_tokens, cut.pieces);
      if (!what.empty()) return std::to_string(prompt.tokens.size()) + " tokens, " + cut.what + ": " + what;
    }
  }
  for (const int32_t batched_tokens : greedy_steps) {
    const std::string what = compare_greedy(model, c, batched_tokens);
    if (!what.empty()) return what;
  }
  return {};
}

// f16 has 11 bits of mantissa, bf16 8; a wrong convention moves logits by their own size. Measured on the cases here: at most
// 0.060 and 0.0053.
Tolerance half_tolerance(DType type) { return {.relative = type == DType::kBF16 ? 0.15 : 0.02}; }

#if RESTKV_EMULATED

void run_case(Case& c, golden::Run& run) {
  if (const Status status = read_prompts(c); !status.ok()) return run.fail(c.name, status.message());
  const Result<std::shared_ptr<const Model>> model = load_model(c.model.string());
  if (!model.ok()) return run.fail(c.name, model.status().message());
  c.prompts.erase(c.prompts.begin());  // of 1 token; the answers have that, too
  const std::vector<Cut> cuts = {{"uneven pieces, the first in units", 16, {40, 3, 11, 5}}};
  for (const DType type : {DType::kF32, DType::kBF16, DType::kF16}) {
    type_under_test = type;
    const bool is_exact = type == DType::kF32;
    if (!is_exact) c.prompts.resize(1);  // a fiber for each GPU thread takes its time
    const std::string what =
        check_case(*model, c, is_exact ? Tolerance{.each = c.tolerance} : half_tolerance(type), cuts,
                   is_exact ? std::vector<int32_t>{128} : std::vector<int32_t>{});
    if (!what.empty()) return run.fail(c.name, std::string(dtype_info(type).name) + ": " + what);
  }
  run.ran(c.name);
}

#else

void run_case(Case& c, golden::Run& run) {
  if (const Status status = read_prompts(c); !status.ok()) return run.fail(c.name, status.message());
  const Result<std::shared_ptr<const Model>> model = load_model(c.model.string());
  if (!model.ok()) {
    if (model.status().code() == StatusCode::kUnimplemented)
      return run.skip(c.name, model.status().message());
    return run.fail(c.name, model.status().message());
  }
  const std::vector<Cut> cuts = {{"one piece, one step", 128, {}},
                                 {"one piece, units of 17 rows", 17, {}},
                                 {"uneven pieces", 128, {5, 3, 11, 2, 1, 7}},
                                 {"uneven pieces, the first in units", 16, {40, 3, 11, 5}},
                                 {"token by token", 128, {1}}};
  type_under_test = DType::kF32;
  std::string what = check_case(*model, c, {.each = c.tolerance}, cuts, {128, 24});
  if (!what.empty()) return run.fail(c.name, what);
  if (is_on_card()) {
    c.prompts.erase(c.prompts.begin(), c.prompts.end() - 1);  // the longest; each cut opens the card anew
    for (const DType type : {DType::kBF16, DType::kF16}) {
      type_under_test = type;
      what = check_case(*model, c, half_tolerance(type), {cuts.front(), cuts.back()}, {});
      if (!what.empty()) return run.fail(c.name, std::string(dtype_info(type).name) + ": " + what);
    }
  }
  run.ran(c.name);
}

#endif

}  // namespace
}  // namespace restkv

int main() {
  restkv::golden::Run run("RESTKV_GOLDEN_MODELS_DIR", RESTKV_SHARED_DIR "/golden/models");
  if (run.has_folder()) {
    const fs::path scratch = fs::temp_directory_path() / ("golden_models." + std::to_string(getpid()));
    std::vector<fs::path> folders;
    for (const auto& entry : fs::directory_iterator(run.folder()))
      if (entry.is_directory()) folders.push_back(entry.path());
    std::sort(folders.begin(), folders.end());
    for (const fs::path& folder : folders)
      for (restkv::Case& c : restkv::cases_in(folder, scratch)) restkv::run_case(c, run);
    fs::remove_all(scratch);
  }
  return run.finish();
}

// --device auto: the first card where there is one, else the CPU. One card a process.
#include "engine/device.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "engine/device_name.h"
#include "engine/host_memory.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/card.h"

namespace restkv {
namespace {

constexpr std::string_view kCuda = "cuda";

// N of cuda or cuda:N.
std::optional<int> card_index(std::string_view device) {
  if (device == kCuda) return 0;
  if (!device.starts_with("cuda:")) return std::nullopt;
  const std::string_view digits = device.substr(kCuda.size() + 1);
  int index = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
  if (error != std::errc() || end != digits.data() + digits.size() || index < 0) return std::nullopt;
  return index;
}

Result<std::unique_ptr<Backend>> make_cpu(const EngineOptions& options) {
  std::unique_ptr<Backend> backend = make_cpu_backend(options.threads);
  if (backend) return backend;
  std::string targets;
  for (const std::string_view target : cpu_targets())
    targets += (targets.empty() ? "" : ", ") + std::string(target);
  return invalid_argument("RESTKV_CPU_TARGET names a processor level that is not to be had here; there are " +
                          targets);
}

}  // namespace

Status check_device_name(const std::string& device) {
  if (device == "auto" || device == "cpu" || card_index(device)) return {};
  if (device.starts_with(kCuda) && device.find(',') != std::string::npos)
    return unimplemented("device '" + device + "' names several cards; one process uses one, cuda:N");
  return invalid_argument("device '" + device + "' is none of auto, cpu, cuda, cuda:N");
}

Result<std::unique_ptr<Backend>> make_backend(const EngineOptions& options) {
  if (options.backend_maker) return options.backend_maker();
  if (Status status = check_device_name(options.device); !status.ok()) return status;
  if (options.device == "cpu") return make_cpu(options);
  if (options.device == "auto" && !cuda::count_cards().ok()) return make_cpu(options);
  return cuda::open_card(card_index(options.device).value_or(0),
                         {.is_deterministic = options.deterministic, .use_graphs = options.cuda_graphs});
}

EngineOptions fit_options(EngineOptions options, const Backend& backend) {
  const bool is_card = !backend.is_host_memory();
  if (is_card) options.cache_dtype = backend.activation_type();
  const int32_t seqs = is_card ? 256 : 32;
  if (options.max_num_batched_tokens == 0) {
    options.max_num_batched_tokens = is_card ? 2048 : 512;
    // Who wants more sequences than that wants room for a prompt beside them.
    if (options.max_num_seqs >= options.max_num_batched_tokens)
      options.max_num_batched_tokens = options.max_num_seqs * 2;
  }
  if (options.max_num_seqs == 0)
    options.max_num_seqs = std::clamp(options.max_num_batched_tokens / 2, 1, seqs);
  return options;
}

int64_t available_memory(Backend& backend) {
  const std::optional<int64_t> free = backend.free_bytes();
  return free ? *free : available_host_memory();
}

Status status_of(const DeviceError& error) {
  const bool is_memory = dynamic_cast<const OutOfMemory*>(&error) != nullptr;
  return {StatusCode::kUnavailable,
          std::string("device failure: ") + error.what() +
              (is_memory ? "; lower --memory-fraction, or raise the limit of this process (ulimit -v)" : "")};
}

std::string device_text(const EngineOptions& options) {
  if (options.device == "cpu") return "CPU";
  const Result<int> cards = cuda::count_cards();
  if (!cards.ok()) return "CPU (no CUDA: " + cards.status().message() + ")";
  return "cuda:" + std::to_string(card_index(options.device).value_or(0));
}

}  // namespace restkv

// Read from /proc, /sys and the C library; the CUDA driver is asked through dlopen, so that the program starts without it.
#include "server/cli/machine_checks.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "engine/host_memory.h"
#include "server/cli/model_path.h"
#include "server/config/build_info.h"
#include "server/config/logging.h"
#include "server/config/quantity.h"
#include "server/hub/hub_cache.h"
#include "server/hub/pull.h"

namespace restkv {
namespace {

namespace fs = std::filesystem;
using enum FindingLevel;

constexpr int64_t kGiB = int64_t{1} << 30;
constexpr int kCudaDriverForCuda13 = 13000;  // as cuDriverGetVersion counts

int num_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return ::sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                       : static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));
}

std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return escape_text(line.substr(0, 200));
}

// The CUDA driver's own library; all null: it is not there.
struct CudaDriver {
  void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  ~CudaDriver() {
    if (library != nullptr) ::dlclose(library);
  }
  template <class Function>
  Function* find(const char* name) const {
    return library ? reinterpret_cast<Function*>(::dlsym(library, name)) : nullptr;
  }
};

std::string device_text(const CudaDriver& driver, int device) {
  char name[128] = "a device";
  size_t bytes = 0;
  if (auto* get = driver.find<int(char*, int, int)>("cuDeviceGetName")) get(name, sizeof name, device);
  if (auto* get = driver.find<int(size_t*, int)>("cuDeviceTotalMem_v2")) get(&bytes, device);
  return escape_text(name) + ", " + rounded_size_text(static_cast<int64_t>(bytes));
}

// 0: the address can be listened on; else errno.
int try_to_listen(const std::string& host, uint16_t port) {
  sockaddr_storage storage{};
  socklen_t length = 0;
  auto* v4 = reinterpret_cast<sockaddr_in*>(&storage);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&storage);
  if (::inet_pton(AF_INET, host.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    length = sizeof(sockaddr_in);
  } else if (::inet_pton(AF_INET6, host.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    length = sizeof(sockaddr_in6);
  } else {
    return EINVAL;
  }
  const int socket = ::socket(storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (socket < 0) return errno;
  const int yes = 1;
  ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  const bool is_free =
      ::bind(socket, reinterpret_cast<sockaddr*>(&storage), length) == 0 && ::listen(socket, 1) == 0;
  const int error = is_free ? 0 : errno;
  ::close(socket);
  return error;
}

// The nearest folder above (or at) `path` that exists.
fs::path existing_part(fs::path path) {
  std::error_code error;
  while (!path.empty() && !fs::exists(path, error) && path.has_parent_path() && path != path.parent_path())
    path = path.parent_path();
  return path;
}

int64_t size_of_model(const fs::path& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) return static_cast<int64_t>(fs::file_size(path, error));
  int64_t size = 0;
  for (auto it = fs::directory_iterator(path, error); !error && it != fs::directory_iterator();
       it.increment(error)) {
    std::error_code ignored;
    if (it->path().extension() == ".safetensors")
      size += static_cast<int64_t>(fs::file_size(it->path(), ignored));
  }
  return size;
}

}  // namespace

Finding check_processor() {
  const std::string found = std::to_string(num_processors()) + " usable processors, " + cpu_features();
  if (found.find("avx2") == std::string::npos)
    return {"processor", kWarning, found, "without AVX2 the plain kernels run, which are many times slower"};
  return {"processor", kOk, found};
}

Finding check_memory() {
  const int64_t available = available_host_memory();
  const std::string found = rounded_size_text(available) + " available";
  if (first_line("/proc/sys/vm/overcommit_memory") == "2") {
    return {"memory", kWarning, found + ", overcommit is off (vm.overcommit_memory = 2)",
            "the cache is reserved as address space at start: lower --memory-fraction, or allow overcommit"};
  }
  rlimit limit{};
  if (::getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    return {"memory", kWarning,
            found + ", address space limited to " + rounded_size_text(static_cast<int64_t>(limit.rlim_cur)),
            "files are mapped and the cache is reserved in it: ulimit -v unlimited"};
  }
  if (available < kGiB)
    return {"memory", kWarning, found, "only small models fit: free memory, or raise the container's limit"};
  return {"memory", kOk, found};
}

std::vector<Finding> check_gpu() {
  const CudaDriver driver;
  const std::string kernel_driver = first_line("/proc/driver/nvidia/version");
  if (driver.library == nullptr) {
    if (kernel_driver.empty()) return {{"gpu", kOk, "none: models run on the processor"}};
    return {{"gpu", kWarning, "an NVIDIA driver is loaded, but libcuda.so.1 is not found",
             "install the driver's user part (libcuda1), in a container: start it with --gpus all"}};
  }
  int version = 0, count = 0, code = -1;
  if (auto* get = driver.find<int(int*)>("cuDriverGetVersion")) get(&version);
  if (auto* init = driver.find<int(unsigned)>("cuInit")) code = init(0);
  if (auto* get = driver.find<int(int*)>("cuDeviceGetCount"); get != nullptr && code == 0) get(&count);
  if (code != 0 || count == 0) {
    return {{"gpu", kWarning, "the CUDA driver finds no device (error " + std::to_string(code) + ")",
             "look at nvidia-smi and CUDA_VISIBLE_DEVICES; until then models run on the processor"}};
  }
  std::vector<Finding> findings;
  for (int device = 0; device < count; ++device)
    findings.push_back({"gpu " + std::to_string(device), kOk, device_text(driver, device)});
  const std::string supports =
      "CUDA up to " + std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  if (version < kCudaDriverForCuda13) {
    findings.push_back(
        {"driver", kWarning, supports, "the CUDA backend needs CUDA 13: install driver 580 or later"});
  } else {
    findings.push_back({"driver", kOk, supports});
  }
  if (has_cuda_backend()) {
    findings.push_back({"cuda", kOk, "this program has the CUDA backend"});
  } else {
    findings.push_back({"cuda", kWarning, "this program has no CUDA backend: models run on the processor",
                        "build with -DRESTKV_CUDA=ON where CUDA 13 is installed"});
  }
  return findings;
}

Finding check_port(const ServerSettings& settings) {
  const std::string address = settings.host + " port " + std::to_string(settings.port);
  const int error = try_to_listen(settings.host, static_cast<uint16_t>(settings.port));
  if (error == 0) return {"port", kOk, address + " is free"};
  if (error == EADDRINUSE)
    return {"port", kFailure, address + " is taken by another program",
            "choose another --port, or end that program"};
  if (error == EACCES)
    return {"port", kFailure, address + " is not allowed to this user", "choose a --port above 1023"};
  return {"port", kFailure, address + ": " + std::strerror(error), "choose another --host"};
}

Finding check_file_limit(const ServerSettings& settings) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const auto needed = static_cast<rlim_t>(settings.max_connections + kSpareFiles);
  // The server raises its own limit as far as it may.
  const std::string found = limit.rlim_max == RLIM_INFINITY ? "no limit of open files"
                                                            : std::to_string(limit.rlim_max) + " open files";
  if (limit.rlim_max >= needed) return {"files", kOk, found};
  return {"files", kWarning,
          found + ", fewer than max_connections = " + std::to_string(settings.max_connections) + " needs",
          "ulimit -n " + std::to_string(needed) + ", or a lower --max-connections"};
}

Finding check_hub_cache(const ModelSettings& settings) {
  const Result<HubSettings> hub = read_hub_settings(process_environment(), settings.download_dir);
  if (!hub.ok())
    return {"model cache", kWarning, hub.status().message(),
            "mend the variable; it is needed for models of the hub only"};
  const std::string folder = escape_text(hub->cache.string());
  const fs::path existing = existing_part(hub->cache);
  if (::access(existing.c_str(), W_OK) != 0)
    return {"model cache", kWarning, folder + " cannot be written",
            "nothing can be downloaded: set HF_HUB_CACHE to a folder of yours"};
  std::error_code error;
  const fs::space_info space = fs::space(existing, error);
  const std::string found =
      folder + ", " +
      (error ? "size unknown" : rounded_size_text(static_cast<int64_t>(space.available)) + " free") +
      (hub->offline ? ", offline" : "") + (hub->token.empty() ? "" : ", logged in");
  if (!error && static_cast<int64_t>(space.available) < kGiB)
    return {"model cache", kWarning, found, "free some space (restkv rm), or set HF_HUB_CACHE"};
  return {"model cache", kOk, found};
}

Finding check_certificates() {
  const Result<HubSettings> hub = read_hub_settings(process_environment());
  const std::string path =
      hub.ok() && !hub->certificates.empty() ? hub->certificates : "/etc/ssl/certs/ca-certificates.crt";
  if (::access(path.c_str(), R_OK) == 0) return {"certificates", kOk, escape_text(path)};
  return {"certificates", kWarning, escape_text(path) + " cannot be read",
          "nothing can be downloaded over https: apt-get install ca-certificates"};
}

Finding check_model(const ModelSettings& settings) {
  std::error_code error;
  std::string path = settings.path;
  if (path.empty()) {
    const Result<HubSettings> hub = read_hub_settings(process_environment(), settings.download_dir);
    const size_t count = hub.ok() ? HubCache(hub->cache).list().size() : 0;
    const bool has_demo = fs::is_regular_file(demo_model_path(), error);
    return {"models", kOk,
            std::to_string(count) + " of the hub in the cache, the demo model is " +
                (has_demo ? "there" : "not there (tools/get_demo_model.sh)")};
  }
  const std::string name = escape_text(path);
  if (path != "demo" && !fs::exists(path, error)) {
    const Result<RepoName> repo = parse_repo_name(path);
    const Result<HubSettings> hub = read_hub_settings(process_environment(), settings.download_dir);
    if (repo.ok() && hub.ok()) {
      const Result<PulledModel> found = find_pulled_model(*hub, *repo, settings.revision);
      if (!found.ok())
        return {"model", kWarning, found.status().message(),
                "it is downloaded at the first start, or now: restkv pull " + name};
      path = found->path;
    }
  }
  ModelSettings local = settings;
  local.path = path;
  const bool is_here = path == "demo" || fs::exists(path, error);
  if (!is_here)
    return {"model", kFailure, "there is no model at " + name,
            "MODEL is a folder, a .gguf file, ORG/REPO[:QUANT] or demo"};
  const Result<std::string> resolved = resolve_model(local);
  if (!resolved.ok()) return {"model", kFailure, name, resolved.status().message()};
  if (::access(resolved->c_str(), R_OK) != 0)
    return {"model", kFailure, escape_text(*resolved) + " cannot be read", "check its permissions"};
  const int64_t size = size_of_model(*resolved);
  const int64_t available = available_host_memory();
  const std::string found = escape_text(*resolved) + ", " + rounded_size_text(size);
  if (size > available)
    return {"model", kWarning,
            found + ", more than the " + rounded_size_text(available) + " of memory available",
            "take a smaller quantization or free memory"};
  return {"model", kOk, found + "; restkv inspect " + name + " reads it"};
}

Finding check_config(const LoadedSettings& loaded) {
  std::string errors;
  for (const std::string& error : loaded.errors) errors += (errors.empty() ? "" : "; ") + error;
  Settings settings = loaded.settings;
  for (const Status& status : {check_settings(settings), resolve_cache_options(settings)}) {
    if (!status.ok()) errors += (errors.empty() ? "" : "; ") + status.message();
  }
  if (!errors.empty())
    return {"settings", kFailure, errors, "mend them; restkv config show tells where each value comes from"};
  return {
      "settings", kOk,
      settings.config_file.empty() ? "defaults, flags and environment" : escape_text(settings.config_file)};
}

}  // namespace restkv

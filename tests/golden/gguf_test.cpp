// Block types of GGUF against recorded values: <TYPE>.raw (bytes) must dequantise to <TYPE>.f32, bit for bit. Reads every
// .safetensors of RESTKV_GOLDEN_GGUF_DIR.
#include <cstring>
#include <vector>

#include "engine/model/safetensors.h"
#include "kernels/base/dequant.h"
#include "tests/golden/golden_folder.h"

namespace fs = std::filesystem;

namespace restkv {
namespace {

constexpr std::string_view kRaw = ".raw";

void run_case(const std::string& type, const FileTensor& raw, const FileTensor* expected, golden::Run* run) {
  if (expected == nullptr || expected->data == nullptr || expected->dtype != DType::kF32) {
    return run->fail(type, "no f32 values beside the bytes");
  }
  const std::optional<DType> dtype = dtype_from_name(type);
  if (!dtype) return run->skip(type, "the engine does not read this type");
  const int64_t num_values = expected->num_bytes / 4;
  const DTypeInfo& info = dtype_info(*dtype);
  if (num_values == 0 || raw.num_bytes * info.block_elems != num_values * info.block_bytes) {
    return run->fail(
        type, std::to_string(raw.num_bytes) + " bytes are not " + std::to_string(num_values) + " values");
  }
  std::vector<float> values(static_cast<size_t>(num_values));
  dequantize_row(*dtype, raw.data, values.data(), num_values);
  for (size_t i = 0; i < values.size(); ++i) {
    float recorded;
    std::memcpy(&recorded, expected->data + i * sizeof(float), sizeof(float));
    if (std::memcmp(&recorded, &values[i], sizeof(float)) == 0) continue;
    return run->fail(type, "value " + std::to_string(i) + " is " + std::to_string(values[i]) +
                               ", recorded is " + std::to_string(recorded));
  }
  run->ran(type);
}

void run_file(const std::string& path, golden::Run* run) {
  Result<std::shared_ptr<const MappedFile>> mapped = MappedFile::open(path);
  if (!mapped.ok()) return run->fail(path, mapped.status().message());
  Result<SafetensorsFile> file = parse_safetensors(*mapped);
  if (!file.ok()) return run->fail(path, file.status().message());
  for (const FileTensor& tensor : file->index.tensors) {
    if (!tensor.name.ends_with(kRaw)) continue;
    const std::string type = tensor.name.substr(0, tensor.name.size() - kRaw.size());
    run_case(type, tensor, file->index.find(type + ".f32"), run);
  }
}

int run_all() {
  golden::Run run("RESTKV_GOLDEN_GGUF_DIR", RESTKV_SHARED_DIR "/golden/gguf");
  if (run.has_folder()) {
    for (const fs::directory_entry& entry : fs::directory_iterator(run.folder())) {
      if (entry.path().extension() == ".safetensors") run_file(entry.path().string(), &run);
    }
  }
  return run.finish();
}

}  // namespace
}  // namespace restkv

int main() { return restkv::run_all(); }

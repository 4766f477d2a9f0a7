// cuBLASLt computes column-major: the rows [T, N] of out are the columns of an [N, T] matrix, so weight [N, C] is A transposed
// and x [T, C] is B. f32 sums; what the heuristic answers for a shape is kept.
#include "kernels/cuda/blas.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "kernels/base/device_error.h"
#include "kernels/cuda/device_check.h"

namespace restkv::cuda {
namespace {

// What of the library is used, by name.
struct Library {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;

  // The handle stays open for the life of the process.
  bool load() {
    void* handle = nullptr;
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so"}) {
      handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (handle != nullptr) break;
    }
    if (handle == nullptr) return false;
    bool has_all = true;
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
      has_all &= function != nullptr;
    };
    find(create, "cublasLtCreate");
    find(destroy, "cublasLtDestroy");
    find(matmul, "cublasLtMatmul");
    find(desc_create, "cublasLtMatmulDescCreate");
    find(desc_destroy, "cublasLtMatmulDescDestroy");
    find(desc_set, "cublasLtMatmulDescSetAttribute");
    find(layout_create, "cublasLtMatrixLayoutCreate");
    find(layout_destroy, "cublasLtMatrixLayoutDestroy");
    find(preference_create, "cublasLtMatmulPreferenceCreate");
    find(preference_destroy, "cublasLtMatmulPreferenceDestroy");
    find(preference_set, "cublasLtMatmulPreferenceSetAttribute");
    find(heuristic, "cublasLtMatmulAlgoGetHeuristic");
    return has_all;
  }
};

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::kBF16: return CUDA_R_16BF;
    case DType::kF16: return CUDA_R_16F;
    default: return CUDA_R_32F;
  }
}

void check(cublasStatus_t status, const char* call, const Product& product) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw DeviceError("cuBLASLt status " + std::to_string(status) + ": " + call + " for [" +
                        std::to_string(product.rows) + ", " + std::to_string(product.cols) + "] x [" +
                        std::to_string(product.num) + ", " + std::to_string(product.cols) + "]",
                    status == CUBLAS_STATUS_EXECUTION_FAILED || status == CUBLAS_STATUS_INTERNAL_ERROR);
}

// How a product of one shape is computed. Empty: it is not.
struct Plan {
  const Library* library = nullptr;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t weight = nullptr, x = nullptr, out = nullptr;
  cublasLtMatmulAlgo_t algo{};
  bool is_there = false;

  explicit Plan(const Library& functions) : library(&functions) {}
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    if (weight != nullptr) library->layout_destroy(weight);
    if (x != nullptr) library->layout_destroy(x);
    if (out != nullptr) library->layout_destroy(out);
    if (desc != nullptr) library->desc_destroy(desc);
  }
};

class CublasLt final : public Blas {
 public:
  CublasLt(const Library& library, cublasLtHandle_t handle, void* workspace, int64_t workspace_bytes)
      : library_(library), handle_(handle), workspace_(workspace), workspace_bytes_(workspace_bytes) {}
  ~CublasLt() override {
    plans_.clear();
    library_.destroy(handle_);
  }

  bool can_multiply(const Product& product) override {
    // 16 bytes are what the fast kernels ask of addresses and rows; others are left to ours.
    const auto is_aligned = [](const void* data, int64_t stride, DType type) {
      return reinterpret_cast<uintptr_t>(data) % 16 == 0 && bytes_of(type, stride) % 16 == 0;
    };
    if (!is_aligned(product.x, product.x_stride, product.type) ||
        !is_aligned(product.weight, product.weight_stride, product.type) ||
        !is_aligned(product.out, product.out_stride, product.out_type) ||
        (product.bias != nullptr && product.out_type != product.type))
      return false;
    return plan_of(product).is_there;
  }

  void multiply(const Product& product, void* stream) override {
    const Plan& plan = plan_of(product);
    if (product.bias != nullptr) set(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, product.bias, product);
    const float one = 1.0f, zero = 0.0f;
    check(library_.matmul(handle_, plan.desc, &one, product.weight, plan.weight, product.x, plan.x, &zero,
                          product.out, plan.out, product.out, plan.out, &plan.algo, workspace_,
                          static_cast<size_t>(workspace_bytes_), static_cast<cudaStream_t>(stream)),
          "cublasLtMatmul", product);
  }

 private:
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, DType, DType, bool, uint32_t,
                         uint32_t, uint32_t>;
  static constexpr size_t kMaxPlans = 4096;

  template <class T>
  void set(const Plan& plan, cublasLtMatmulDescAttributes_t attribute, const T& value,
           const Product& product) {
    check(library_.desc_set(plan.desc, attribute, &value, sizeof value), "cublasLtMatmulDescSetAttribute",
          product);
  }

  // Of an address, as far as an algorithm may care.
  static uint32_t alignment(const void* data) {
    const auto address = reinterpret_cast<uintptr_t>(data);
    return static_cast<uint32_t>(std::min<uintptr_t>(address & (~address + 1), 256));
  }

  const Plan& plan_of(const Product& product) {
    const Key key{product.rows,
                  product.cols,
                  product.num,
                  product.x_stride,
                  product.weight_stride,
                  product.out_stride,
                  product.type,
                  product.out_type,
                  product.bias != nullptr,
                  alignment(product.weight),
                  alignment(product.x),
                  alignment(product.out)};
    const auto known = plans_.find(key);
    if (known != plans_.end()) return *known->second;
    if (plans_.size() == kMaxPlans) plans_.clear();
    auto plan = std::make_unique<Plan>(library_);
    make_plan(product, *plan);
    return *plans_.emplace(key, std::move(plan)).first->second;
  }

  void make_plan(const Product& product, Plan& plan) {
    check(library_.desc_create(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate",
          product);
    set(plan, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T, product);
    if (product.bias != nullptr) {
      set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS, product);
      set(plan, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(product.type), product);
      set(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, product.bias, product);
    }
    const auto layout = [&](cublasLtMatrixLayout_t& made, DType type, int64_t rows, int64_t cols,
                            int64_t stride) {
      check(library_.layout_create(&made, data_type(type), static_cast<uint64_t>(rows),
                                   static_cast<uint64_t>(cols), stride),
            "cublasLtMatrixLayoutCreate", product);
    };
    layout(plan.weight, product.type, product.cols, product.num, product.weight_stride);
    layout(plan.x, product.type, product.cols, product.rows, product.x_stride);
    layout(plan.out, product.out_type, product.num, product.rows, product.out_stride);
    cublasLtMatmulPreference_t preference = nullptr;
    check(library_.preference_create(&preference), "cublasLtMatmulPreferenceCreate", product);
    const auto bytes = static_cast<uint64_t>(workspace_bytes_);
    cublasStatus_t status =
        library_.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes);
    const auto align = [&](cublasLtMatmulPreferenceAttributes_t attribute, const void* data) {
      const uint32_t least = alignment(data);
      if (status == CUBLAS_STATUS_SUCCESS)
        status = library_.preference_set(preference, attribute, &least, sizeof least);
    };
    align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, product.weight);
    align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, product.x);
    align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, product.out);
    align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, product.out);
    cublasLtMatmulHeuristicResult_t result{};
    int count = 0;
    if (status == CUBLAS_STATUS_SUCCESS) {
      status = library_.heuristic(handle_, plan.desc, plan.weight, plan.x, plan.out, plan.out, preference, 1,
                                  &result, &count);
    }
    library_.preference_destroy(preference);
    // No algorithm is no failure: our kernels take the shape.
    plan.is_there = status == CUBLAS_STATUS_SUCCESS && count > 0 && result.state == CUBLAS_STATUS_SUCCESS;
    if (plan.is_there) plan.algo = result.algo;
  }

  const Library library_;
  cublasLtHandle_t handle_;
  void* workspace_;
  int64_t workspace_bytes_;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace

std::unique_ptr<Blas> Blas::open(void* workspace, int64_t workspace_bytes) {
  Library library;
  cublasLtHandle_t handle = nullptr;
  if (!library.load() || library.create(&handle) != CUBLAS_STATUS_SUCCESS) return nullptr;
  return std::make_unique<CublasLt>(library, handle, workspace, workspace_bytes);
}

}  // namespace restkv::cuda

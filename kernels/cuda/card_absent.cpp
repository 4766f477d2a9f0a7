// A build without CUDA: there is no card.
#include "kernels/cuda/card.h"

namespace restkv::cuda {
namespace {

Status absent() { return {StatusCode::kUnavailable, "this program was built without CUDA"}; }

}  // namespace

Result<int> count_cards() { return absent(); }

Result<std::unique_ptr<Backend>> open_card(int, const BackendOptions&) { return absent(); }

}  // namespace restkv::cuda

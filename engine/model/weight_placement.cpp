// Each weight once, in the order of the layers: what one product reads lies together.
#include "engine/model/weight_placement.h"

namespace restkv {

WeightViews place_weights(const WeightViews& files, Backend& backend, Arena& arena) {
  const auto place = [&](const ConstTensor& weight, bool is_matrix) {
    return weight ? backend.place_weight(weight, is_matrix, arena) : ConstTensor{};
  };
  WeightViews placed;
  placed.embedding = place(files.embedding, true);
  placed.final_norm = place(files.final_norm, false);
  placed.head = files.head.data == files.embedding.data ? placed.embedding : place(files.head, true);
  constexpr ConstTensor LayerWeights::*kMatrices[] = {
      &LayerWeights::q,    &LayerWeights::k,  &LayerWeights::v,   &LayerWeights::o,
      &LayerWeights::gate, &LayerWeights::up, &LayerWeights::down};
  constexpr ConstTensor LayerWeights::*kVectors[] = {
      &LayerWeights::attn_norm,    &LayerWeights::q_bias,         &LayerWeights::k_bias,
      &LayerWeights::v_bias,       &LayerWeights::q_norm,         &LayerWeights::k_norm,
      &LayerWeights::o_bias,       &LayerWeights::attn_post_norm, &LayerWeights::ffn_norm,
      &LayerWeights::gate_bias,    &LayerWeights::up_bias,        &LayerWeights::down_bias,
      &LayerWeights::ffn_post_norm};
  for (const LayerWeights& layer : files.layers) {
    LayerWeights& out = placed.layers.emplace_back();
    for (const auto member : kMatrices) out.*member = place(layer.*member, true);
    for (const auto member : kVectors) out.*member = place(layer.*member, false);
  }
  return placed;
}

}  // namespace restkv

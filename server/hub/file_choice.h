// Which files of a repository make the model that a user named.
//   ORG/REPO:Q4_K_M   the .gguf file of that type | ORG/REPO:x/y.gguf   that file
//   ORG/REPO          *.safetensors with config and tokenizer, if it has them; else the GGUF file of the first of
//                     kPreferredQuants that is there, or its only GGUF file
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace restkv {

inline constexpr std::string_view kPreferredQuants[] = {
    "Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "Q5_K_M", "Q5_K_S", "Q6_K", "Q8_0", "BF16", "F16", "F32"};
inline constexpr std::string_view kShardIndex = "model.safetensors.index.json";

struct FileChoice {
  std::vector<std::string> names = {};  // without the shards that kShardIndex names
  std::string gguf = {};                // the model is this file; empty: it is the folder
  bool has_shard_index = false;         // read it, then add shards_of_index
};

// `names`: every file of the repository (or of a snapshot in the cache). Errors say what there is to choose from.
Result<FileChoice> choose_files(std::span<const std::string> names, std::string_view quant);

// The files that an index names; each must be among `names`.
Result<std::vector<std::string>> shards_of_index(std::string_view index, std::span<const std::string> names);

// "Q4_K_M" of "sub/Model-7B.q4_k_m.gguf", in capitals; empty: the name tells no type.
std::string quant_of_file(std::string_view name);

}  // namespace restkv

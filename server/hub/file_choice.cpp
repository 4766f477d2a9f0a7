// Names alone decide: the choice is made before anything is downloaded.
#include "server/hub/file_choice.h"

#include <algorithm>
#include <cctype>
#include <set>

#include "engine/model/json_reader.h"
#include "server/config/logging.h"
#include "server/hub/repo_name.h"

namespace restkv {
namespace {

// Beside the weights, where the repository has them: what the loaders of configuration, tokenizer and template read.
constexpr std::string_view kSideFiles[] = {
    "config.json",        "generation_config.json", "tokenizer.json",    "tokenizer.model",
    "tekken.json",        "tokenizer_config.json",  "added_tokens.json", "special_tokens_map.json",
    "chat_template.json", "chat_template.jinja",    "vocab.json",        "merges.txt",
    "restkv.json"};
constexpr std::string_view kWeights = "model.safetensors";
constexpr JsonLimits kIndexLimits{.max_depth = 8, .max_keys = 2'000'000};
constexpr size_t kMaxListed = 40;  // names in one error message

std::string upper(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return result;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// "MODEL" and 3 of "MODEL-00001-OF-00003"; 0 and as it is of other names.
int strip_part_number(std::string& stem) {
  constexpr std::string_view kShape = "-00000-OF-00000";
  if (stem.size() < kShape.size()) return 0;
  const std::string_view tail = std::string_view(stem).substr(stem.size() - kShape.size());
  for (size_t i = 0; i < kShape.size(); ++i) {
    if (kShape[i] == '0' ? !is_digit(tail[i]) : tail[i] != kShape[i]) return 0;
  }
  const int count = std::stoi(stem.substr(stem.size() - 5));
  stem.resize(stem.size() - kShape.size());
  return count;
}

struct GgufName {
  std::string stem;   // capitals, without folder, .GGUF and part number
  int num_parts = 0;  // 0: a file of its own
};

GgufName gguf_name(std::string_view name) {
  GgufName result;
  result.stem = upper(name.substr(name.rfind('/') + 1));  // npos + 1 is 0
  result.stem.resize(result.stem.size() -
                     std::min<size_t>(result.stem.size(), std::string_view(".GGUF").size()));
  result.num_parts = strip_part_number(result.stem);
  return result;
}

// Q4_0, Q4_K_M, IQ4_XS, TQ1_0, F16, BF16, MXFP4_MOE...
bool is_quant(std::string_view text) {
  for (const std::string_view whole : {"F16", "BF16", "F32", "FP16", "FP32", "MXFP4", "MXFP4_MOE"}) {
    if (text == whole) return true;
  }
  size_t at = text.starts_with("IQ") || text.starts_with("TQ") ? 2 : text.starts_with("Q") ? 1 : 0;
  if (at == 0 || at >= text.size() || !is_digit(text[at])) return false;
  for (++at; at < text.size(); ++at) {
    if (!is_digit(text[at]) && text[at] != '_' && !std::isupper(static_cast<unsigned char>(text[at])))
      return false;
  }
  return text.back() != '_';
}

// A model's own weights: not the vision part or the calibration data that lie beside them.
bool is_model_gguf(std::string_view name) {
  const std::string capitals = upper(name);
  return capitals.ends_with(".GGUF") && capitals.find("MMPROJ") == std::string::npos &&
         capitals.find("IMATRIX") == std::string::npos;
}

std::string list_of(std::span<const std::string> names) {
  std::string list;
  for (size_t i = 0; i < std::min(names.size(), kMaxListed); ++i)
    list += (i ? ", " : "") + escape_text(names[i]);
  return list + (names.size() > kMaxListed ? ", ..." : "");
}

// The types to choose from, or, where names tell none, the files.
std::string gguf_choices(std::span<const std::string> files) {
  std::set<std::string> quants;
  for (const std::string& file : files) quants.insert(quant_of_file(file));
  if (quants.contains("")) return list_of(files);
  return list_of(std::vector<std::string>(quants.begin(), quants.end()));
}

// The name of part `number` of the model that the part `file` belongs to.
std::string part_name(const std::string& file, int number) {
  constexpr size_t kFromEnd = std::string_view("00001-of-00003.gguf").size();
  const std::string digits = std::to_string(number);
  std::string name = file;
  return name.replace(name.size() - kFromEnd, 5, std::string(5 - digits.size(), '0') + digits);
}

// The file, or all parts of the model that it is one of; what is loaded is the first.
Result<FileChoice> take_gguf(std::span<const std::string> names, const std::string& file) {
  const int num_parts = gguf_name(file).num_parts;
  FileChoice choice{.names = {}, .gguf = num_parts == 0 ? file : part_name(file, 1)};
  if (num_parts == 0) choice.names.push_back(file);
  const std::set<std::string_view> all(names.begin(), names.end());
  for (int number = 1; number <= num_parts; ++number) {
    choice.names.push_back(part_name(file, number));
    if (!all.contains(choice.names.back())) {
      return not_found("'" + escape_text(file) + "' is one of " + std::to_string(num_parts) +
                       " parts, and part '" + escape_text(choice.names.back()) + "' is not there");
    }
  }
  const std::string allocation = choice.gguf + ".restkv.json";
  if (all.contains(allocation)) choice.names.push_back(allocation);
  return choice;
}

// Whether all are parts of one model.
bool is_one_model(std::span<const std::string> files) {
  return std::all_of(files.begin(), files.end(), [&](const std::string& file) {
    return gguf_name(file).num_parts > 0 && part_name(file, 1) == part_name(files[0], 1);
  });
}

std::vector<std::string> with_quant(std::span<const std::string> files, std::string_view quant) {
  std::vector<std::string> found;
  for (const std::string& file : files) {
    if (quant_of_file(file) == quant) found.push_back(file);
  }
  return found;
}

Result<FileChoice> choose_gguf(std::span<const std::string> names, std::span<const std::string> files,
                               std::string_view quant) {
  if (files.empty())
    return not_found("the repository has no .gguf file: leave out ':" + escape_text(quant) + "'");
  const auto named = std::find(files.begin(), files.end(), quant);
  if (named != files.end()) return take_gguf(names, *named);
  std::vector<std::string> found;
  if (!quant.empty()) {
    found = with_quant(files, upper(quant));
  } else if (files.size() == 1 || is_one_model(files)) {
    found.assign(files.begin(), files.end());
  } else {
    for (const std::string_view preferred : kPreferredQuants) {
      found = with_quant(files, preferred);
      if (!found.empty()) break;
    }
  }
  if (found.empty()) {
    return not_found(
        (quant.empty() ? std::string("which GGUF file? Name one")
                       : "the repository has no GGUF file of type '" + escape_text(quant) + "'; there are") +
        " (ORG/REPO:NAME): " + gguf_choices(files));
  }
  if (found.size() > 1 && !is_one_model(found)) {
    return invalid_argument("several GGUF files are of that type; name one (ORG/REPO:FILE): " +
                            list_of(found));
  }
  return take_gguf(names, found[0]);
}

}  // namespace

std::string quant_of_file(std::string_view name) {
  const std::string stem = gguf_name(name).stem;
  std::string_view best;
  for (size_t at = 0; at < stem.size(); ++at) {
    const bool begins = at == 0 || stem[at - 1] == '-' || stem[at - 1] == '.' || stem[at - 1] == '_';
    if (begins && is_quant(std::string_view(stem).substr(at))) {
      best = std::string_view(stem).substr(at);
      break;  // the first is the longest
    }
  }
  return std::string(best);
}

Result<FileChoice> choose_files(std::span<const std::string> names, std::string_view quant) {
  const std::set<std::string_view> all(names.begin(), names.end());
  std::vector<std::string> ggufs;
  for (const std::string& name : names) {
    if (is_model_gguf(name)) ggufs.push_back(name);
  }
  const bool has_weights = all.contains(kWeights) || all.contains(kShardIndex);
  if (!quant.empty() || (!has_weights && !ggufs.empty())) return choose_gguf(names, ggufs, quant);
  if (!has_weights) {
    std::string message = "the repository has neither model.safetensors nor a .gguf file";
    for (const std::string_view other :
         {"pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.safetensors"}) {
      if (all.contains(other)) message += "; " + std::string(other) + " is not read";
    }
    return not_found(message);
  }
  if (!all.contains("config.json")) return not_found("the repository has no config.json");
  FileChoice choice;
  for (const std::string_view side : kSideFiles) {
    if (all.contains(side)) choice.names.emplace_back(side);
  }
  for (const std::string& name : names) {
    if (name.ends_with(".tiktoken") && name.find('/') == std::string::npos) choice.names.push_back(name);
  }
  // The loader's own order: the single file first.
  choice.has_shard_index = !all.contains(kWeights);
  choice.names.emplace_back(choice.has_shard_index ? kShardIndex : kWeights);
  return choice;
}

Result<std::vector<std::string>> shards_of_index(std::string_view index, std::span<const std::string> names) {
  const std::string where(kShardIndex);
  const Result<nlohmann::json> root = parse_json(index, kIndexLimits);
  if (!root.ok()) return invalid_argument(where + ": " + root.status().message());
  const bool has_map = root->is_object() && root->contains("weight_map") && (*root)["weight_map"].is_object();
  if (!has_map || (*root)["weight_map"].empty()) return invalid_argument(where + ": no object 'weight_map'");
  const std::set<std::string_view> all(names.begin(), names.end());
  std::set<std::string> shards;
  for (const nlohmann::json& shard : (*root)["weight_map"]) {
    if (!shard.is_string()) return invalid_argument(where + ": a shard's name is not a string");
    const std::string& name = shard.get_ref<const std::string&>();
    if (Status status = check_file_name(name); !status.ok())
      return invalid_argument(where + ": " + status.message());
    if (!all.contains(name))
      return not_found("the shard '" + escape_text(name) + "' is missing, but " + where + " names it");
    shards.insert(name);
  }
  return std::vector<std::string>(shards.begin(), shards.end());
}

}  // namespace restkv

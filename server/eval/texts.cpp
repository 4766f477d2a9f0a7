#include "server/eval/texts.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

namespace restkv {

Result<std::vector<int32_t>> read_texts(const std::string& folder, const Tokenizer& tokenizer,
                                        TextPart part) {
  std::error_code error;
  std::vector<std::filesystem::path> files;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (it->is_regular_file(error)) files.push_back(it->path());
  }
  if (error) return not_found("cannot read the folder of texts: " + error.message());
  if (files.empty()) return not_found("the folder of texts has no files");
  std::sort(files.begin(), files.end(),
            [](const auto& a, const auto& b) { return a.filename() < b.filename(); });
  std::string text;
  for (const std::filesystem::path& path : files) {
    std::ifstream file(path, std::ios::binary);
    if (!file) return not_found("cannot read the text file " + path.filename().string());
    text.append(std::istreambuf_iterator<char>(file), {});
  }
  std::vector<int32_t> tokens = tokenizer.encode(text, {.add_special = false});
  const auto third = static_cast<std::ptrdiff_t>(tokens.size() / 3);
  if (part == TextPart::kCalibration) tokens.erase(tokens.begin() + third, tokens.end());
  if (part == TextPart::kMeasuring) tokens.erase(tokens.begin(), tokens.begin() + third);
  return tokens;
}

Result<std::vector<std::vector<int32_t>>> cut_slices(const std::vector<int32_t>& tokens, int64_t count,
                                                     int64_t length) {
  const auto size = static_cast<int64_t>(tokens.size());
  if (count < 1 || length < 1 || count > size / length) {
    return invalid_argument(
        "the texts have " + std::to_string(size) + " tokens for this purpose, enough for " +
        std::to_string(length > 0 ? size / length : 0) + " slices of " + std::to_string(length) + "; " +
        std::to_string(count) + " are asked for (--num-texts)");
  }
  std::vector<std::vector<int32_t>> slices;
  const int64_t spare = size - count * length;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = i * length + (count > 1 ? spare * i / (count - 1) : 0);
    slices.emplace_back(tokens.begin() + begin, tokens.begin() + begin + length);
  }
  return slices;
}

}  // namespace restkv

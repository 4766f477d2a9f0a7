// Picks a loader by what lies at a path. In a folder: tokenizer.json, tokenizer.model, tekken.json, *.tiktoken.
#include "engine/text/vocabulary_files.h"

#include <cctype>
#include <filesystem>
#include <fstream>

#include "engine/model/gguf.h"
#include "engine/model/mapped_file.h"

namespace restkv {
namespace {

namespace fs = std::filesystem;

std::string read_if_there(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return {};
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

TokenizerSettings settings_beside(const fs::path& vocabulary) {
  const fs::path folder = vocabulary.parent_path();
  TokenizerSettings settings;
  settings.tokenizer_config = read_if_there(folder / "tokenizer_config.json");
  settings.generation_config = read_if_there(folder / "generation_config.json");
  settings.model_config = read_if_there(folder / "config.json");
  settings.added_tokens = read_if_there(folder / "added_tokens.json");
  settings.special_tokens_map = read_if_there(folder / "special_tokens_map.json");
  return settings;
}

// "base64 number" on the first line.
bool looks_like_ranks(std::string_view bytes) {
  const std::string_view line = bytes.substr(0, bytes.find('\n'));
  const size_t space = line.find(' ');
  if (space == line.npos || space == 0 || space + 1 >= line.size() || line.size() > 1000) return false;
  for (const char c : line.substr(0, space)) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '+' && c != '/' && c != '=') return false;
  }
  for (const char c : line.substr(space + 1)) {
    if (!std::isdigit(static_cast<unsigned char>(c)) && c != '\r') return false;
  }
  return true;
}

Result<std::shared_ptr<const Tokenizer>> load_file(const fs::path& path) {
  const auto named = [&](Result<std::shared_ptr<const Tokenizer>> loaded) {
    if (loaded.ok()) return loaded;
    return Result<std::shared_ptr<const Tokenizer>>(
        Status(loaded.status().code(), path.string() + ": " + loaded.status().message()));
  };
  Result<std::shared_ptr<const MappedFile>> file = MappedFile::open(path.string());
  if (!file.ok()) return file.status();
  const std::span<const std::byte> content = (*file)->bytes();
  const std::string_view bytes(reinterpret_cast<const char*>(content.data()), content.size());
  if (bytes.starts_with("GGUF")) {
    const Result<GgufFile> gguf = GgufFile::parse(*file);
    if (!gguf.ok()) return gguf.status();
    return named(load_gguf_tokenizer(*gguf));
  }
  const TokenizerSettings settings = settings_beside(path);
  if (path.filename() == "tekken.json") return named(load_tekken_tokenizer(bytes, settings));
  if (path.extension() == ".json") return named(load_json_tokenizer(bytes, settings));
  if (looks_like_ranks(bytes)) return named(load_tiktoken_tokenizer(bytes, settings));
  return named(load_sentencepiece_tokenizer(bytes, settings));
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> load_tokenizer(const std::string& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) return load_file(path);
  for (const char* name : {"tokenizer.json", "tekken.json", "tokenizer.model"}) {
    const fs::path file = fs::path(path) / name;
    if (fs::exists(file, error)) return load_file(file);
  }
  for (const auto& entry : fs::directory_iterator(path, error)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(".tiktoken") || name.starts_with("tokenizer.model.v")) return load_file(entry.path());
  }
  return not_found(
      "no tokenizer in " + path +
      ": looked for tokenizer.json, tekken.json, tokenizer.model, tokenizer.model.v*, *.tiktoken");
}

}  // namespace restkv

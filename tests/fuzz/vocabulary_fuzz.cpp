// Any bytes as a vocabulary file (the first byte picks the format): a Status, or a tokenizer that works. Behind a tokenizer.model,
// after an empty line: a file with added tokens.
#include <algorithm>
#include <cstring>

#include "engine/model/gguf.h"
#include "engine/text/vocabulary_files.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using restkv::Result;
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  Result<std::shared_ptr<const restkv::Tokenizer>> loaded = restkv::invalid_argument("nothing loaded");
  if (data[0] % 5 == 0) {
    const auto file =
        restkv::GgufFile::parse(std::as_bytes(std::span(bytes.data(), bytes.size())), "fuzz.gguf");
    if (file.ok()) loaded = restkv::load_gguf_tokenizer(*file);
  } else if (data[0] % 5 == 1) {
    const size_t cut = data[0] < 5 ? bytes.size() : std::min(bytes.rfind("\n\n"), bytes.size());
    restkv::TokenizerSettings settings;
    (data[0] % 2 == 0 ? settings.added_tokens : settings.tokenizer_config) = bytes.substr(cut);
    loaded = restkv::load_sentencepiece_tokenizer(bytes.substr(0, cut), settings);
  } else if (data[0] % 5 == 2) {
    loaded = restkv::load_json_tokenizer(bytes, {});
  } else if (data[0] % 5 == 3) {
    loaded = restkv::load_tekken_tokenizer(bytes, {});
  } else {
    loaded = restkv::load_tiktoken_tokenizer(bytes, {});
  }
  if (!loaded.ok()) return 0;
  const auto ids = (*loaded)->encode("Hello <s>  w\xC3\xB6rld\xFF <|a|> 123</s>", {});
  for (const int32_t id : ids) {
    if (id < 0 || id >= (*loaded)->vocab_size()) __builtin_trap();
  }
  (*loaded)->decode(ids);
  return 0;
}

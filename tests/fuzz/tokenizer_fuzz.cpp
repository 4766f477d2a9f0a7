// Any bytes as text, through a byte-level and a SentencePiece vocabulary: decode(encode(x)) == x, and streaming gives
// valid UTF-8.
#include <cstdlib>

#include "tests/text/small_vocabularies.h"

namespace {

std::shared_ptr<const restkv::Tokenizer> must_load(const restkv::GgufBuilder& builder) {
  auto loaded = restkv::load_built(builder);
  if (!loaded.ok()) std::abort();
  return loaded.value();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using restkv::SpecialTokens;
  static const auto tokenizers = [] {
    std::vector<std::shared_ptr<const restkv::Tokenizer>> made;
    for (const char* pre : {"gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"}) {
      made.push_back(must_load(restkv::SmallBpe().builder(pre)));
    }
    made.push_back(must_load(restkv::SmallSentencePiece().builder()));
    return made;
  }();
  if (size == 0) return 0;
  const restkv::Tokenizer& tokenizer = *tokenizers[data[0] % tokenizers.size()];
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const bool has_mark = text.find("\xE2\x96\x81") != text.npos;  // decodes to a space
  const restkv::EncodeOptions plain{.add_special = false, .special_tokens = SpecialTokens::kAsText};
  const auto ids = tokenizer.encode(text, plain);
  for (const int32_t id : ids) {
    if (tokenizer.is_special(id)) std::abort();
  }
  // SentencePiece takes a user-defined piece at the start without its dummy prefix.
  const bool lossy = tokenizer.leading_spaces() != restkv::LeadingSpaces::kStay &&
                     (has_mark || text.find("[u]") != text.npos);
  if (!lossy && tokenizer.decode(ids) != text) std::abort();
  tokenizer.encode(text, {.add_special = true, .special_tokens = SpecialTokens::kParse});
  restkv::StreamingDetokenizer stream(tokenizer);
  std::string all;
  for (const int32_t id : ids) all += stream.append(id);
  all += stream.finish();
  if (restkv::valid_utf8_length(all, 0) != all.size()) std::abort();
  return 0;
}

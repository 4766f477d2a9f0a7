// For comparisons with other tokenizers: reads a text per line in hexadecimal, writes its ids and, behind a tab, what
// they decode to, in hexadecimal.   encode_lines VOCABULARY [text|parse] [bos]
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string>

#include "engine/text/tokenizer.h"

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const auto loaded = restkv::load_tokenizer(argv[1]);
  if (!loaded.ok()) {
    std::fprintf(stderr, "%s\n", loaded.status().message().c_str());
    return 1;
  }
  restkv::EncodeOptions options{.add_special = false, .special_tokens = restkv::SpecialTokens::kAsText};
  for (int i = 2; i < argc; ++i) {
    if (std::strcmp(argv[i], "parse") == 0) options.special_tokens = restkv::SpecialTokens::kParse;
    if (std::strcmp(argv[i], "bos") == 0) options.add_special = true;
  }
  for (std::string line; std::getline(std::cin, line);) {
    std::string text, out;
    for (size_t i = 0; i + 1 < line.size(); i += 2) {
      text += static_cast<char>(std::stoi(line.substr(i, 2), nullptr, 16));
    }
    const auto ids = (*loaded)->encode(text, options);
    for (const int32_t id : ids) out += std::to_string(id) + " ";
    out += '\t';
    for (const char c : (*loaded)->decode(ids)) {
      constexpr const char* kDigits = "0123456789abcdef";
      out += {kDigits[static_cast<unsigned char>(c) >> 4], kDigits[static_cast<unsigned char>(c) & 15]};
    }
    std::cout << out << '\n';
  }
  return 0;
}

// How fast text becomes ids and back: MB/s of one thread, the best of several rounds.
//   tokenizer_bench VOCABULARY TEXT...
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <limits>

#include "engine/text/tokenizer.h"

namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: tokenizer_bench VOCABULARY TEXT...\n");
    return 2;
  }
  const auto load_start = std::chrono::steady_clock::now();
  const auto loaded = restkv::load_tokenizer(argv[1]);
  const double load_seconds = seconds_since(load_start);
  if (!loaded.ok()) {
    std::fprintf(stderr, "%s\n", loaded.status().message().c_str());
    return 1;
  }
  const restkv::Tokenizer& tokenizer = **loaded;
  std::string text;
  for (int i = 2; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    text.append(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  constexpr int kRounds = 9;
  double encode_seconds = std::numeric_limits<double>::infinity(), decode_seconds = encode_seconds;
  const restkv::EncodeOptions options{.add_special = false, .special_tokens = restkv::SpecialTokens::kAsText};
  std::vector<int32_t> ids;
  std::string decoded;
  for (int round = 0; round < kRounds; ++round) {
    auto start = std::chrono::steady_clock::now();
    ids = tokenizer.encode(text, options);
    encode_seconds = std::min(encode_seconds, seconds_since(start));
    start = std::chrono::steady_clock::now();
    decoded = tokenizer.decode(ids);
    decode_seconds = std::min(decode_seconds, seconds_since(start));
  }
  const double megabytes = static_cast<double>(text.size()) / 1e6;
  std::printf("{\"kind\":\"%s\",\"bytes\":%zu,\"tokens\":%zu,\"load_ms\":%.1f,\"encode_mb_s\":%.1f,",
              std::string(tokenizer.kind()).c_str(), text.size(), ids.size(), load_seconds * 1e3,
              megabytes / encode_seconds);
  std::printf("\"decode_mb_s\":%.1f,\"round_trip\":%s}\n", megabytes / decode_seconds,
              decoded == text ? "true" : "false");
  return 0;
}

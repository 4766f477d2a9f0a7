// Every vocabulary of the folder against its recorded ids: NAME.inp (texts, split by a line) and NAME.out (ids, a line
// per text), encoded without BOS and with special tokens as text. Also for each: decode(encode(x)) == x.
#include <fstream>
#include <map>
#include <random>
#include <sstream>
#include <vector>

#include "engine/model/gguf.h"
#include "engine/text/tokenizer.h"
#include "tests/golden/golden_folder.h"

namespace fs = std::filesystem;

namespace restkv {
namespace {

constexpr EncodeOptions kPlain{.add_special = false, .special_tokens = SpecialTokens::kAsText};

std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<std::string> read_inputs(const fs::path& path) {
  const std::string all = read_text(path), separator = "\n__ggml_vocab_test__\n";
  std::vector<std::string> texts;
  size_t begin = 0;
  for (size_t at = all.find(separator); at != all.npos; at = all.find(separator, begin)) {
    texts.push_back(all.substr(begin, at - begin));
    begin = at + separator.size();
  }
  if (begin < all.size()) texts.push_back(all.substr(begin));
  return texts;
}

std::vector<std::vector<int32_t>> read_ids(const fs::path& path) {
  std::vector<std::vector<int32_t>> lists;
  std::stringstream lines(read_text(path));
  for (std::string line; std::getline(lines, line);) {
    std::stringstream numbers(line);
    std::vector<int32_t>& ids = lists.emplace_back();
    for (int32_t id = 0; numbers >> id;) ids.push_back(id);
  }
  return lists;
}

std::string joined(const std::vector<int32_t>& ids) {
  std::string out;
  for (const int32_t id : ids) out += " " + std::to_string(id);
  return out;
}

std::string random_text(std::mt19937* random) {
  constexpr char32_t kTops[] = {0x80, 0x250, 0x3000, 0xD800, 0x20000};
  std::string text;
  for (size_t length = (*random)() % 60; length > 0; --length) {
    char32_t code = (*random)() % kTops[(*random)() % 5];
    if (code == 0) code = ' ';
    if (code < 0x80) {
      text += static_cast<char>(code);
    } else if (code < 0x800) {
      text += {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 63))};
    } else if (code < 0x10000) {
      text += {static_cast<char>(0xE0 | code >> 12), static_cast<char>(0x80 | (code >> 6 & 63)),
               static_cast<char>(0x80 | (code & 63))};
    } else {
      text += {static_cast<char>(0xF0 | code >> 18), static_cast<char>(0x80 | (code >> 12 & 63)),
               static_cast<char>(0x80 | (code >> 6 & 63)), static_cast<char>(0x80 | (code & 63))};
    }
  }
  // Literal "▁" decodes to a space in SentencePiece vocabularies.
  for (size_t at; (at = text.find("\xE2\x96\x81")) != text.npos;) text.erase(at, 3);
  return text;
}

// The first difference found, or empty.
std::string check_round_trips(const Tokenizer& tokenizer, const std::vector<std::string>& inputs) {
  std::vector<std::string> texts = inputs;
  std::mt19937 random(7);
  for (int i = 0; i < 500; ++i) texts.push_back(random_text(&random));
  for (const std::string& text : texts) {
    if (tokenizer.decode(tokenizer.encode(text, kPlain)) != text)
      return "decode(encode(x)) != x for '" + text + "'";
  }
  return {};
}

std::string check_ids(const Tokenizer& tokenizer, const fs::path& stem) {
  const auto texts = read_inputs(stem.string() + ".inp");
  const auto expected = read_ids(stem.string() + ".out");
  if (texts.size() != expected.size()) {
    return std::to_string(texts.size()) + " texts for " + std::to_string(expected.size()) + " lists of ids";
  }
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::vector<int32_t> ids = tokenizer.encode(texts[i], kPlain);
    if (ids != expected[i]) {
      return "text " + std::to_string(i) + " '" + texts[i] + "':" + joined(ids) + " instead of" +
             joined(expected[i]);
    }
  }
  return check_round_trips(tokenizer, texts);
}

// Where the vocabulary of recorded texts lies, if not beside them: "llama-bpe.gguf" -> the rank file of Llama 3.
const std::map<std::string, std::string> kElsewhere = {{"llama-bpe.gguf", "llama3.tiktoken.model"}};
// SentencePiece files and the recorded texts that hold for them: the vocabulary is the same.
const std::map<std::string, std::string> kTwins = {{"llama2.spm.model", "llama-spm.gguf"}};

int check_all() {
  golden::Run run("RESTKV_TOKENIZERS_DIR", std::string(RESTKV_SHARED_DIR) + "/data/tokenizers");
  if (!run.has_folder()) return run.finish();
  std::map<std::string, fs::path> files;
  for (const auto& entry : fs::directory_iterator(run.folder()))
    files[entry.path().filename()] = entry.path();
  for (const auto& [name, path] : files) {
    fs::path vocabulary = path, stem = path;
    std::string shown = name;
    if (name.ends_with(".out")) {
      stem = fs::path(path).replace_extension();
      if (files.contains(stem.filename())) continue;  // runs with its vocabulary
      const auto elsewhere = kElsewhere.find(stem.filename());
      if (elsewhere == kElsewhere.end() || !files.contains(elsewhere->second)) {
        run.skip(name, "its vocabulary is not in the folder");
        continue;
      }
      vocabulary = files[elsewhere->second];
      shown = elsewhere->second + " with " + stem.filename().string();
    } else if (name.ends_with(".gguf")) {
      if (!files.contains(name + ".inp") || !files.contains(name + ".out")) {
        run.skip(name, "no recorded ids beside it");
        continue;
      }
    } else if (name.ends_with(".inp") || name.find("tiktoken") != name.npos ||
               name.find(".model") == name.npos) {
      continue;
    } else if (const auto twin = kTwins.find(name); twin != kTwins.end() && files.contains(twin->second)) {
      stem = files[twin->second];
    }
    const auto tokenizer = load_tokenizer(vocabulary.string());
    if (!tokenizer.ok()) {
      run.fail(shown, tokenizer.status().message());
      continue;
    }
    const bool has_ids = fs::exists(stem.string() + ".out");
    const std::string problem = has_ids ? check_ids(**tokenizer, stem) : check_round_trips(**tokenizer, {});
    if (!problem.empty()) {
      run.fail(shown, problem);
      continue;
    }
    std::printf("%s: %s, %s\n", shown.c_str(), std::string((*tokenizer)->kind()).c_str(),
                has_ids ? "ids equal, round trips" : "round trips");
    run.ran(shown);
  }
  return run.finish();
}

}  // namespace
}  // namespace restkv

int main() { return restkv::check_all(); }

// A cutting step sees a word as alternating stretches, matched and not, and `SplitBehavior` says which stretches
// become words of their own. Rewriting steps (metaspace, prefix) put the new bytes into WordList::rewritten.
#include "engine/text/pre_tokenizer.h"

#include <array>
#include <utility>

#include "engine/text/utf8.h"

namespace restkv {
namespace {

// Takes the stretches of one word in order and gives out the pieces that `behavior` makes of them.
class StretchSink {
 public:
  StretchSink(std::string_view word, SplitBehavior behavior, bool invert, std::vector<std::string_view>* out)
      : word_(word), behavior_(behavior), invert_(invert), out_(out) {}

  // [begin, end) is a match, maybe an empty one, which still cuts; what lies between it and the one before is not.
  void match(size_t begin, size_t end) {
    if (begin > pos_) stretch(pos_, begin, invert_);
    stretch(begin, end, !invert_);
    pos_ = end;
  }
  void finish() {
    if (pos_ < word_.size()) stretch(pos_, word_.size(), invert_);
    flush();
  }

 private:
  void stretch(size_t begin, size_t end, bool is_match) {
    bool joins = false;  // goes on the open piece
    switch (behavior_) {
      case SplitBehavior::kRemoved:
        flush();
        if (is_match) return;
        break;
      case SplitBehavior::kIsolated: break;
      case SplitBehavior::kContiguous: joins = open_ && last_is_match_ == is_match; break;
      case SplitBehavior::kMergedWithPrevious: joins = open_ && is_match && !last_is_match_; break;
      case SplitBehavior::kMergedWithNext: joins = open_ && !is_match && last_is_match_; break;
    }
    if (!joins) {
      flush();
      begin_ = begin;
    }
    end_ = end;
    open_ = true;
    last_is_match_ = is_match;
  }
  void flush() {
    if (open_ && end_ > begin_) out_->push_back(word_.substr(begin_, end_ - begin_));
    open_ = false;
  }

  std::string_view word_;
  SplitBehavior behavior_;
  bool invert_;
  std::vector<std::string_view>* out_;
  size_t pos_ = 0;  // end of the last match
  size_t begin_ = 0, end_ = 0;
  bool open_ = false, last_is_match_ = false;
};

// Calls on_run(begin, end) for each longest stretch of valid UTF-8.
template <class OnRun>
void for_each_valid_run(std::string_view text, OnRun on_run) {
  for (size_t pos = 0; pos < text.size();) {
    const size_t length = valid_utf8_length(text, pos);
    if (length > 0) on_run(pos, pos + length);
    pos += length;
    if (pos < text.size()) pos += decode_utf8(text, pos).length;
  }
}

// Matches single characters; `joined`: a run of them is one match.
template <class Predicate>
void split_by_class(std::string_view word, bool joined, Predicate predicate, StretchSink* sink) {
  size_t run_begin = 0;
  bool in_run = false;
  for (size_t pos = 0; pos < word.size();) {
    const Utf8Char c = decode_utf8(word, pos);
    const bool hit = c.state == Utf8State::kValid && predicate(c.code);
    if (in_run && (!hit || !joined)) {
      sink->match(run_begin, pos);
      in_run = false;
    }
    if (hit && !in_run) {
      run_begin = pos;
      in_run = true;
    }
    pos += c.length;
  }
  if (in_run) sink->match(run_begin, word.size());
}

}  // namespace

void PreTokenizer::add_pattern(Regex pattern, SplitBehavior behavior, bool invert) {
  Step& step = steps_.emplace_back();
  step.kind = Kind::kPattern;
  step.pattern = std::move(pattern);
  step.behavior = behavior;
  step.flag = invert;
}

void PreTokenizer::add_literal(std::string literal, SplitBehavior behavior, bool invert) {
  Step& step = steps_.emplace_back();
  step.kind = Kind::kLiteral;
  step.literal = std::move(literal);
  step.behavior = behavior;
  step.flag = invert;
}

void PreTokenizer::add_digits(bool individual) {
  Step& step = steps_.emplace_back();
  step.kind = Kind::kDigits;
  step.flag = individual;
}

void PreTokenizer::add_punctuation(SplitBehavior behavior) {
  Step& step = steps_.emplace_back();
  step.kind = Kind::kPunctuation;
  step.behavior = behavior;
}

void PreTokenizer::add_white_space(SplitBehavior behavior) {
  Step& step = steps_.emplace_back();
  step.kind = Kind::kWhiteSpace;
  step.behavior = behavior;
}

void PreTokenizer::add_space_prefix() { steps_.emplace_back().kind = Kind::kSpacePrefix; }

void PreTokenizer::add_metaspace(std::string replacement, Prepend prepend, bool split) {
  Step& step = steps_.emplace_back();
  step.kind = Kind::kMetaspace;
  step.literal = std::move(replacement);
  step.prepend = prepend;
  step.flag = split;
}

void PreTokenizer::add_cut_before(std::string mark) {
  Step& step = steps_.emplace_back();
  step.kind = Kind::kCutBefore;
  step.literal = std::move(mark);
}

void PreTokenizer::apply(const Step& step, std::string_view word, bool first, WordList* list,
                         std::vector<std::string_view>* out) {
  StretchSink sink(word, step.behavior, step.flag, out);
  const auto split_at_literal = [&](std::string_view in, StretchSink* into) {
    for (size_t at = in.find(step.literal); at != in.npos;
         at = in.find(step.literal, at + step.literal.size())) {
      into->match(at, at + step.literal.size());
    }
    into->finish();
  };
  switch (step.kind) {
    case Kind::kPattern:
      for_each_valid_run(word, [&](size_t begin, size_t end) {
        Regex::Matches matches(*step.pattern, word.substr(begin, end - begin));
        size_t match_begin = 0, match_end = 0;
        while (matches.next(&match_begin, &match_end)) sink.match(begin + match_begin, begin + match_end);
      });
      sink.finish();
      return;
    case Kind::kLiteral: split_at_literal(word, &sink); return;
    case Kind::kDigits: {
      StretchSink digits(word, SplitBehavior::kIsolated, false, out);
      split_by_class(word, !step.flag, is_number, &digits);
      digits.finish();
      return;
    }
    case Kind::kPunctuation:
      split_by_class(word, false, is_punctuation, &sink);
      sink.finish();
      return;
    case Kind::kWhiteSpace:
      split_by_class(word, false, is_white_space, &sink);
      sink.finish();
      return;
    case Kind::kSpacePrefix:
      if (word.front() == ' ') {
        out->push_back(word);
      } else {
        out->push_back(list->rewritten.emplace_back(' ' + std::string(word)));
      }
      return;
    case Kind::kMetaspace: {
      std::string& text = list->rewritten.emplace_back();
      const bool prepends = step.prepend == Prepend::kAlways || (step.prepend == Prepend::kFirst && first);
      if (prepends && word.front() != ' ' && !word.starts_with(step.literal)) text = step.literal;
      for (const char c : word) {
        if (c == ' ') {
          text += step.literal;
        } else {
          text += c;
        }
      }
      if (!step.flag) {
        out->push_back(text);
        return;
      }
      StretchSink pieces(text, SplitBehavior::kMergedWithNext, false, out);
      split_at_literal(text, &pieces);
      return;
    }
    case Kind::kCutBefore: {
      size_t begin = 0;
      for (size_t at = word.find(step.literal); at != word.npos;) {
        if (at > begin) out->push_back(word.substr(begin, at - begin));
        begin = at;
        do {
          at += step.literal.size();
        } while (word.substr(at).starts_with(step.literal));
        at = word.find(step.literal, at);
      }
      if (begin < word.size()) out->push_back(word.substr(begin));
      return;
    }
  }
}

void PreTokenizer::split(std::string_view text, bool first, WordList* list) const {
  list->words.clear();
  list->rewritten.clear();
  if (text.empty()) return;
  list->words.push_back(text);
  std::vector<std::string_view> next;
  for (const Step& step : steps_) {
    next.clear();
    for (size_t i = 0; i < list->words.size(); ++i) apply(step, list->words[i], first && i == 0, list, &next);
    list->words.swap(next);
  }
}

namespace {

// The patterns as published with the models (GPT-2's encoder.py, Llama 3's tokenizer.py, Qwen's, tekken.json).
constexpr const char* kGpt2 =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
constexpr const char* kLlama3 =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
constexpr const char* kQwen2 =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
constexpr const char* kTekken =
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|"
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|"
    "\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
constexpr const char* kDigit = "\\p{N}";
constexpr const char* kThreeDigits = "\\p{N}{1,3}";
constexpr const char* kDeepSeek3 =
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
    " ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

struct NamedPattern {
  const char* name;
  std::array<const char*, 5> patterns;  // one after the other; null behind the last
  bool ignore_merges;
  bool adds_bos;
};

constexpr NamedPattern kNamedPatterns[] = {
    {"default", {kGpt2}, false, false},
    {"gpt-2", {kGpt2}, false, false},
    {"mpt", {kGpt2}, false, false},
    {"olmo", {kGpt2}, false, false},
    {"smollm", {kDigit, kGpt2}, false, false},
    {"starcoder", {kDigit, kGpt2}, false, false},
    {"refact", {kDigit, kGpt2}, false, false},
    {"command-r", {kDigit, kGpt2}, false, false},
    {"falcon", {"[\\p{P}\\$\\+<=>\\^~\\|`]+", kGpt2, "[0-9][0-9][0-9]"}, false, false},
    {"llama-bpe", {kLlama3}, true, true},
    {"llama3", {kLlama3}, true, true},
    {"llama-v3", {kLlama3}, true, true},
    {"falcon3", {kLlama3}, true, true},  // LlamaForCausalLM
    {"pixtral", {kLlama3}, true, true},  // Mistral's, as llama.cpp's converter names some of them
    {"smaug-bpe", {kLlama3}, false, false},
    {"dbrx", {kLlama3}, false, false},
    {"qwen2", {kQwen2}, false, false},
    {"deepseek-r1-qwen", {kQwen2}, false, false},
    {"stablelm2", {kQwen2}, false, false},
    {"megrez", {kQwen2}, false, false},
    {"deepseek-coder",
     {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[一-龥ࠀ-一가-퟿]+", kDigit},
     false,
     false},
    {"deepseek-v3", {kThreeDigits, "[一-龥぀-ゟ゠-ヿ]+", kDeepSeek3}, false, false},
    {"tekken", {kTekken}, true, true},
};

}  // namespace

Result<Regex> gpt2_pattern() { return Regex::compile(kGpt2, RegexDialect::kRust); }

Result<NamedPreTokenizer> named_pre_tokenizer(std::string_view name) {
  std::string known;
  for (const NamedPattern& entry : kNamedPatterns) {
    if (name != entry.name) {
      known += (known.empty() ? "" : ", ") + std::string(entry.name);
      continue;
    }
    NamedPreTokenizer named;
    for (const char* pattern : entry.patterns) {
      if (pattern == nullptr) continue;
      Result<Regex> regex = Regex::compile(pattern, RegexDialect::kRust);
      if (!regex.ok()) return regex.status();
      named.pre_tokenizer.add_pattern(std::move(regex).value(), SplitBehavior::kIsolated, false);
    }
    named.ignore_merges = entry.ignore_merges;
    named.adds_bos = entry.adds_bos;
    return named;
  }
  return unimplemented("the pre-tokenizer '" + std::string(name) + "' is not supported; these are: " + known);
}

}  // namespace restkv

// One function per section; sequences call themselves, no deeper than the JSON reader allows.
#include "engine/text/json_steps.h"

#include <algorithm>
#include <array>

#include "engine/text/base64.h"
#include "engine/text/charsmap.h"
#include "engine/text/text_tokenizer.h"
#include "engine/text/utf8.h"

namespace restkv {
namespace {

using nlohmann::json;

Status unknown_type(const char* what, const std::string& type) {
  return unimplemented(std::string("tokenizer.json: the ") + what + " '" + type + "' is not supported");
}

// Beyond these a file means harm: 40 steps that double a text make a terabyte of one letter.
constexpr double kMaxGrowth = 256;
constexpr size_t kMaxSteps = 256;

Status check_growth(const char* what, size_t num_steps, double growth) {
  if (num_steps <= kMaxSteps && growth <= kMaxGrowth) return {};
  return malformed_tokenizer(std::string("the ") + what + " has more than " + std::to_string(kMaxSteps) +
                             " steps, or makes a text more than " +
                             std::to_string(static_cast<int>(kMaxGrowth)) + " times as long");
}

double growth_of(const std::string& from, const std::string& to) {
  return std::max(1.0, static_cast<double>(to.size()) / static_cast<double>(from.size()));
}

void add_replacement(const std::string& from, const std::string& to, DecoderSteps* decoder) {
  decoder->replacements.emplace_back(from, to);
  decoder->growth *= growth_of(from, to);
}

// {"String": "x"} or {"Regex": "x"}.
struct Pattern {
  std::string literal;
  std::optional<Regex> regex;
};

Result<Pattern> read_pattern(const json& spec, const std::string& owner) {
  Pattern pattern;
  pattern.literal = json_text(spec, "String");
  if (!pattern.literal.empty()) return pattern;
  const std::string source = json_text(spec, "Regex");
  if (source.empty()) return malformed_tokenizer(owner + " has no pattern");
  Result<Regex> regex = Regex::compile(source, RegexDialect::kOniguruma);
  if (!regex.ok()) return regex.status();
  pattern.regex = std::move(regex).value();
  return pattern;
}

std::string replace_matches(const Regex& regex, std::string_view text, std::string_view content) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) {
    const std::string_view run = text.substr(pos, valid_utf8_length(text, pos));
    Regex::Matches matches(regex, run);
    size_t done = 0, begin = 0, end = 0;
    while (matches.next(&begin, &end)) {
      out += run.substr(done, begin - done);
      out += content;
      done = end;
    }
    out += run.substr(done);
    pos += run.size();
    if (pos < text.size()) {
      const size_t bad = decode_utf8(text, pos).length;
      out += text.substr(pos, bad);
      pos += bad;
    }
  }
  return out;
}

Result<SplitBehavior> read_behavior(const std::string& name) {
  constexpr std::array<std::pair<const char*, SplitBehavior>, 5> kNames = {
      {{"Removed", SplitBehavior::kRemoved},
       {"Isolated", SplitBehavior::kIsolated},
       {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
       {"MergedWithNext", SplitBehavior::kMergedWithNext},
       {"Contiguous", SplitBehavior::kContiguous}}};
  for (const auto& [known, behavior] : kNames) {
    if (name == known) return behavior;
  }
  return unknown_type("split behaviour", name);
}

}  // namespace

Status malformed_tokenizer(const std::string& what) { return invalid_argument("tokenizer.json: " + what); }

const json& json_member(const json& object, const char* key) {
  static const json null;
  if (!object.is_object()) return null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

std::string json_text(const json& object, const char* key) {
  const json& value = json_member(object, key);
  return value.is_string() ? value.get<std::string>() : std::string();
}

bool json_flag(const json& object, const char* key, bool otherwise) {
  const json& value = json_member(object, key);
  return value.is_boolean() ? value.get<bool>() : otherwise;
}

Status add_normalizer(const json& spec, Normalizer* normalizer) {
  if (spec.is_null()) return {};
  const std::string type = json_text(spec, "type");
  constexpr std::array<std::pair<const char*, UnicodeForm>, 4> kForms = {{{"NFC", UnicodeForm::kNfc},
                                                                          {"NFD", UnicodeForm::kNfd},
                                                                          {"NFKC", UnicodeForm::kNfkc},
                                                                          {"NFKD", UnicodeForm::kNfkd}}};
  for (const auto& [name, form] : kForms) {
    if (type != name) continue;
    normalizer->add(unicode_form_step(form));
    return check_growth("normalizer", normalizer->num_steps(), normalizer->growth());
  }
  if (type == "Sequence") {
    const json& list = json_member(spec, "normalizers");
    if (!list.is_array()) return malformed_tokenizer("a normalizer sequence without its list");
    for (const json& entry : list) {
      if (Status status = add_normalizer(entry, normalizer); !status.ok()) return status;
    }
  } else if (type == "Lowercase") {
    normalizer->add(lowercase_step());
  } else if (type == "StripAccents") {
    normalizer->add(strip_accents_step());
  } else if (type == "Strip") {
    normalizer->add(strip_step(json_flag(spec, "strip_left", true), json_flag(spec, "strip_right", true)));
  } else if (type == "Prepend") {
    const std::string prefix = json_text(spec, "prepend");
    normalizer->add(prepend_step(prefix), 1.0 + static_cast<double>(prefix.size()));
  } else if (type == "Replace") {
    Result<Pattern> pattern = read_pattern(json_member(spec, "pattern"), "a Replace normalizer");
    if (!pattern.ok()) return pattern.status();
    const std::string content = json_text(spec, "content");
    if (pattern->regex) {
      const double growth = 1.0 + static_cast<double>(content.size());  // a match may be empty
      normalizer->add([regex = *pattern->regex,
                       content](std::string text) { return replace_matches(regex, text, content); },
                      growth);
    } else {
      normalizer->add(replace_step(pattern->literal, content), growth_of(pattern->literal, content));
    }
  } else if (type == "Precompiled") {
    std::string blob;
    if (!decode_base64(json_text(spec, "precompiled_charsmap"), &blob)) {
      return malformed_tokenizer("precompiled_charsmap is not base64");
    }
    if (blob.empty()) return {};
    Result<CharsMap> map = CharsMap::parse(blob);
    if (!map.ok()) return map.status();
    // Of texts that a map makes for one byte the usual ones are short, and its longest are for one character of three.
    const double growth = std::max(1.0, static_cast<double>(map->longest_replacement()) / 3);
    normalizer->add([map = std::move(map).value()](std::string text) { return map.apply(text); }, growth);
  } else {
    return unknown_type("normalizer", type);
  }
  return check_growth("normalizer", normalizer->num_steps(), normalizer->growth());
}

Status add_pre_tokenizer(const json& spec, PreTokenizer* pre_tokenizer, bool* byte_level) {
  if (spec.is_null()) return {};
  const std::string type = json_text(spec, "type");
  if (*byte_level) return unimplemented("tokenizer.json: the pre-tokenizer '" + type + "' behind ByteLevel");
  if (type == "Sequence") {
    const json& list = json_member(spec, "pretokenizers");
    if (!list.is_array()) return malformed_tokenizer("a pre-tokenizer sequence without its list");
    for (const json& entry : list) {
      if (Status status = add_pre_tokenizer(entry, pre_tokenizer, byte_level); !status.ok()) return status;
    }
  } else if (type == "ByteLevel") {
    *byte_level = true;
    if (json_flag(spec, "add_prefix_space", true)) pre_tokenizer->add_space_prefix();
    if (json_flag(spec, "use_regex", true)) {
      Result<Regex> regex = gpt2_pattern();
      if (!regex.ok()) return regex.status();
      pre_tokenizer->add_pattern(std::move(regex).value(), SplitBehavior::kIsolated, false);
    }
  } else if (type == "Split") {
    Result<Pattern> pattern = read_pattern(json_member(spec, "pattern"), "a Split pre-tokenizer");
    if (!pattern.ok()) return pattern.status();
    const Result<SplitBehavior> behavior = read_behavior(json_text(spec, "behavior"));
    if (!behavior.ok()) return behavior.status();
    const bool invert = json_flag(spec, "invert", false);
    if (pattern->regex) {
      pre_tokenizer->add_pattern(std::move(*pattern->regex), *behavior, invert);
    } else {
      pre_tokenizer->add_literal(std::move(pattern->literal), *behavior, invert);
    }
  } else if (type == "Digits") {
    pre_tokenizer->add_digits(json_flag(spec, "individual_digits", false));
  } else if (type == "Punctuation") {
    const std::string name = json_text(spec, "behavior");
    const Result<SplitBehavior> behavior = read_behavior(name.empty() ? "Isolated" : name);
    if (!behavior.ok()) return behavior.status();
    pre_tokenizer->add_punctuation(*behavior);
  } else if (type == "WhitespaceSplit") {
    pre_tokenizer->add_white_space(SplitBehavior::kRemoved);
  } else if (type == "Whitespace") {
    Result<Regex> regex = Regex::compile("\\w+|[^\\w\\s]+", RegexDialect::kRust);
    if (!regex.ok()) return regex.status();
    pre_tokenizer->add_pattern(std::move(regex).value(), SplitBehavior::kRemoved, true);
  } else if (type == "Metaspace") {
    const std::string replacement = json_text(spec, "replacement");
    const std::string scheme = json_text(spec, "prepend_scheme");
    PreTokenizer::Prepend prepend = PreTokenizer::Prepend::kAlways;
    if (scheme == "first") prepend = PreTokenizer::Prepend::kFirst;
    if (scheme == "never" || !json_flag(spec, "add_prefix_space", true))
      prepend = PreTokenizer::Prepend::kNever;
    pre_tokenizer->add_metaspace(replacement.empty() ? kSpaceMark : replacement, prepend,
                                 json_flag(spec, "split", true));
  } else {
    return unknown_type("pre-tokenizer", type);
  }
  return {};
}

std::string DecoderSteps::bytes_of(std::string_view text) const {
  if (byte_level) {
    if (auto bytes = bytes_of_alphabet_text(text)) return std::move(*bytes);
  }
  if (byte_fallback) {
    if (const int byte = byte_of_token(text); byte >= 0) return std::string(1, static_cast<char>(byte));
  }
  return replaced(text);
}

std::string DecoderSteps::replaced(std::string_view text) const {
  std::string out(text);
  for (const auto& [from, to] : replacements) out = replace_all(out, from, to);
  return out;
}

Status add_decoder(const json& spec, DecoderSteps* decoder) {
  if (spec.is_null()) return {};
  const std::string type = json_text(spec, "type");
  if (type == "Sequence") {
    const json& list = json_member(spec, "decoders");
    if (!list.is_array()) return malformed_tokenizer("a decoder sequence without its list");
    for (const json& entry : list) {
      if (Status status = add_decoder(entry, decoder); !status.ok()) return status;
    }
  } else if (type == "ByteLevel") {
    decoder->byte_level = true;
  } else if (type == "ByteFallback") {
    decoder->byte_fallback = true;
  } else if (type == "Replace") {
    const std::string literal = json_text(json_member(spec, "pattern"), "String");
    if (literal.empty()) return unimplemented("tokenizer.json: a Replace decoder with a regular expression");
    add_replacement(literal, json_text(spec, "content"), decoder);
  } else if (type == "Metaspace") {
    const std::string replacement = json_text(spec, "replacement");
    add_replacement(replacement.empty() ? kSpaceMark : replacement, " ", decoder);
    const bool prepends =
        json_text(spec, "prepend_scheme") != "never" && json_flag(spec, "add_prefix_space", true);
    decoder->leading_spaces = prepends ? LeadingSpaces::kAllOfFirstTokenGo : LeadingSpaces::kStay;
  } else if (type == "Strip") {
    const json& start = json_member(spec, "start");
    if (json_text(spec, "content") != " " || !start.is_number_unsigned() || start.get<uint64_t>() > 1 ||
        json_member(spec, "stop") != 0) {
      return unimplemented("tokenizer.json: a Strip decoder other than one leading space");
    }
    decoder->leading_spaces = start.get<uint64_t>() == 1 ? LeadingSpaces::kOneGoes : LeadingSpaces::kStay;
  } else if (type != "Fuse") {
    return unknown_type("decoder", type);
  }
  return check_growth("decoder", decoder->replacements.size(), decoder->growth);
}

}  // namespace restkv

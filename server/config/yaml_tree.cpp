// yaml-cpp's event parser with a handler that keeps the limits. Its parser recurses once for each level and
// its scanner reads to the end of the line to find a simple key, so the handler stops it at kMaxYamlDepth by
// an exception, and lines are bounded before it sees them. Aliases come as events and are refused before
// anything is expanded.
#include "server/config/yaml_tree.h"

#include <algorithm>
#include <sstream>
#include <string>
#include <unordered_set>

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include "server/config/logging.h"

namespace restkv {
namespace {

YamlPlace place_of(const YAML::Mark& mark) { return {mark.line + 1, mark.column + 1}; }

// Thrown through yaml-cpp to stop it; the error is in the list already.
struct StopParsing {};

class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(YamlNode& root, std::vector<YamlError>& errors) : root_(root), errors_(errors) {}

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ > 1) stop(mark, "a second document; one file is one document");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    refuse_anchor(mark, anchor);
    add(mark, YamlNode::Kind::kNull, "");
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    stop(mark, "aliases (*name) are not allowed; write the value out");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    refuse_anchor(mark, anchor);
    refuse_tag(mark, tag);
    const bool is_null = tag == "?" && (value == "~" || value == "null" || value.empty());
    add(mark, is_null ? YamlNode::Kind::kNull : YamlNode::Kind::kScalar, value);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, YamlNode::Kind::kList);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, YamlNode::Kind::kMap);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapEnd() override { close(); }

  // After an error: what was read so far becomes the tree. A key without its value goes.
  void close_all() {
    while (!levels_.empty()) {
      Level& level = levels_.back();
      if (level.has_key && !level.is_duplicate) level.node.keys.pop_back();
      close();
    }
  }

 private:
  // A map or list that is still open. Children are moved in when they are complete, so no pointer into a
  // growing vector.
  struct Level {
    YamlNode node;
    std::unordered_set<std::string> seen;  // kMap: keys so far
    bool has_key = false;                  // kMap: a key waits for its value
    bool is_duplicate = false;             // its value is read and dropped
  };

  [[noreturn]] void stop(const YAML::Mark& mark, std::string message) {
    errors_.push_back({place_of(mark), std::move(message)});
    throw StopParsing{};
  }
  void refuse_anchor(const YAML::Mark& mark, YAML::anchor_t anchor) {
    if (anchor != 0) stop(mark, "anchors (&name) are not allowed; write the value out where it is needed");
  }
  void refuse_tag(const YAML::Mark& mark, const std::string& tag) {
    if (tag != "?" && tag != "!" && !tag.empty()) stop(mark, "tags (!name) are not allowed");
  }
  void count_node(const YAML::Mark& mark) {
    if (++nodes_ > kMaxYamlNodes) stop(mark, "more than " + std::to_string(kMaxYamlNodes) + " values");
  }

  void add(const YAML::Mark& mark, YamlNode::Kind kind, const std::string& text) {
    count_node(mark);
    YamlNode node;
    node.kind = kind;
    node.place = place_of(mark);
    node.text = text;
    if (!levels_.empty() && levels_.back().node.kind == YamlNode::Kind::kMap && !levels_.back().has_key) {
      add_key(mark, kind, text);
    } else {
      add_value(std::move(node));
    }
  }
  void add_key(const YAML::Mark& mark, YamlNode::Kind kind, const std::string& text) {
    if (kind != YamlNode::Kind::kScalar) stop(mark, "a key is missing");
    if (text == "<<") stop(mark, "merge keys (<<) are not allowed");
    Level& level = levels_.back();
    level.has_key = true;
    level.is_duplicate = !level.seen.insert(text).second;
    if (level.is_duplicate) {
      const auto first = std::find_if(level.node.keys.begin(), level.node.keys.end(),
                                      [&](const auto& key) { return key.first == text; });
      errors_.push_back({place_of(mark), "duplicate key " + quote_text(text) + " (first in line " +
                                             std::to_string(first->second.line) + ")"});
    } else {
      level.node.keys.emplace_back(text, place_of(mark));
    }
  }
  void add_value(YamlNode node) {
    if (levels_.empty()) {
      root_ = std::move(node);
      return;
    }
    Level& level = levels_.back();
    level.has_key = false;
    if (!level.is_duplicate) level.node.items.push_back(std::move(node));
    level.is_duplicate = false;
  }
  void open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, YamlNode::Kind kind) {
    refuse_anchor(mark, anchor);
    refuse_tag(mark, tag);
    count_node(mark);
    if (!levels_.empty() && levels_.back().node.kind == YamlNode::Kind::kMap && !levels_.back().has_key) {
      stop(mark, "a key must be a plain word");
    }
    if (levels_.size() >= kMaxYamlDepth) {
      stop(mark, "more than " + std::to_string(kMaxYamlDepth) + " levels of nesting");
    }
    levels_.emplace_back();
    levels_.back().node.kind = kind;
    levels_.back().node.place = place_of(mark);
  }
  void close() {
    YamlNode node = std::move(levels_.back().node);
    levels_.pop_back();
    add_value(std::move(node));
  }

  YamlNode& root_;
  std::vector<YamlError>& errors_;
  std::vector<Level> levels_;
  size_t nodes_ = 0;
  int documents_ = 0;
};

// Bytes that no configuration needs and yaml-cpp would guess an encoding from. False: an error was added.
bool check_bytes(std::string_view text, std::vector<YamlError>& errors) {
  if (text.size() > kMaxYamlBytes) {
    errors.push_back({{}, "the file is larger than 1 MiB"});
    return false;
  }
  YamlPlace place;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n') {
      ++place.line;
      place.column = 1;
      continue;
    }
    if ((byte < 0x20 && c != '\t' && c != '\r') || byte == 0x7f || byte >= 0xfe) {
      errors.push_back({place, "a byte that is not text (0x" + std::string(1, "0123456789abcdef"[byte >> 4]) +
                                   "0123456789abcdef"[byte & 15] + "); the file must be UTF-8"});
      return false;
    }
    if (static_cast<size_t>(place.column++) > kMaxYamlLine) {
      errors.push_back({place, "the line is longer than " + std::to_string(kMaxYamlLine) + " bytes"});
      return false;
    }
  }
  return true;
}

}  // namespace

YamlNode parse_yaml(std::string_view text, std::vector<YamlError>& errors) {
  YamlNode root;
  if (!check_bytes(text, errors)) return root;
  // yaml-cpp 0.7 takes the end of the file for the end of a quoted text if a line break stands before it.
  const size_t end = text.find_last_not_of(" \t\r\n");
  std::istringstream stream{std::string(text.substr(0, end == std::string_view::npos ? 0 : end + 1))};
  TreeBuilder builder(root, errors);
  try {
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const StopParsing&) {
    builder.close_all();
  } catch (const YAML::Exception& error) {
    errors.push_back({place_of(error.mark), error.msg});
    builder.close_all();
  }
  return root;
}

}  // namespace restkv

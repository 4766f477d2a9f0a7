// tojson as transformers has it: Python's json.dumps with ensure_ascii=False by default and no HTML escapes; arguments
// ensure_ascii, indent, separators, sort_keys. Each string keeps its origin, so that a control token inside a user's
// tool description stays text.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "server/chat/argument_reader.h"
#include "server/chat/unicode_classes.h"

namespace restkv::chat {
namespace {

class JsonWriter {
 public:
  JsonWriter(Context& context, CallArguments& arguments) : context_(context) {
    ArgumentReader reader(context, "tojson", arguments);
    ensure_ascii_ = reader.take_bool("ensure_ascii", false);
    Value indent = reader.take("indent", Value());
    Value separators = reader.take("separators", Value());
    sort_keys_ = reader.take_bool("sort_keys", false);
    reader.finish();
    if (indent.is_integral()) {
      int64_t width = std::max<int64_t>(indent.as_int(), 0);
      context.check_size(static_cast<size_t>(width));
      indent_ = Text(std::string(width, ' '));
    } else if (indent.is_string()) {
      indent_ = indent.text();
    } else if (!indent.is_none()) {
      context.fail("tojson(): 'indent' must be an integer or a string");
    }
    is_indented_ = !indent.is_none();
    item_separator_ = Text(is_indented_ ? "," : ", ");
    key_separator_ = Text(": ");
    if (separators.is_none()) return;
    if (!separators.is_sequence() || separators.items().size() != 2 || !separators.items()[0].is_string() ||
        !separators.items()[1].is_string()) {
      context.fail("tojson(): 'separators' must be a pair of strings");
    }
    item_separator_ = separators.items()[0].text();
    key_separator_ = separators.items()[1].text();
  }

  Text run(const Value& value) {
    write(value, 0);
    return std::move(out_);
  }

 private:
  void write(const Value& value, int depth) {
    context_.charge(1);
    context_.check_size(out_.size());
    if (value.is_string()) return write_string(value.text());
    if (value.is_none()) return out_.append("null");
    if (value.is_bool()) return out_.append(value.as_bool() ? "true" : "false");
    if (value.is_int()) return out_.append(std::to_string(value.as_int()));
    if (value.is_float()) return out_.append(float_text(value.as_float()));
    if (value.is_sequence()) {
      if (value.items().empty()) return out_.append("[]");
      out_.append("[");
      for (size_t i = 0; i < value.items().size(); ++i) {
        start_item(i, depth + 1);
        write(value.items()[i], depth + 1);
      }
      return close("]", depth);
    }
    if (value.is_dict()) return write_dict(*value.as_dict(), depth);
    context_.fail("Object of type " + value.type_name() + " is not JSON serializable");
  }

  void write_dict(const Dict& dict, int depth) {
    if (dict.size() == 0) return out_.append("{}");
    std::vector<std::pair<Value, Value>> entries = dict.entries();
    if (sort_keys_) {
      std::stable_sort(entries.begin(), entries.end(),
                       [&](const auto& a, const auto& b) { return context_.less(a.first, b.first); });
    }
    out_.append("{");
    for (size_t i = 0; i < entries.size(); ++i) {
      start_item(i, depth + 1);
      write_key(entries[i].first);
      out_.append(key_separator_);
      write(entries[i].second, depth + 1);
    }
    close("}", depth);
  }

  void write_key(const Value& key) {
    if (key.is_string()) return write_string(key.text());
    if (key.is_none()) return out_.append("\"null\"");
    if (key.is_bool()) return out_.append(key.as_bool() ? "\"true\"" : "\"false\"");
    if (key.is_int()) return out_.append("\"" + std::to_string(key.as_int()) + "\"");
    if (key.is_float()) return out_.append("\"" + float_text(key.as_float()) + "\"");
    context_.fail("keys must be str, int, float, bool or None, not " + key.type_name());
  }

  static std::string float_text(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
    return float_repr(value);
  }

  void start_item(size_t index, int depth) {
    if (index > 0) out_.append(item_separator_);
    new_line(depth);
  }
  void close(std::string_view bracket, int depth) {
    new_line(depth);
    out_.append(bracket);
  }
  void new_line(int depth) {
    if (!is_indented_) return;
    out_.append("\n");
    for (int i = 0; i < depth; ++i) {
      out_.append(indent_);
      context_.check_size(out_.size());
    }
    context_.charge_bytes(indent_.size() * depth);
  }

  void write_string(const Text& text) {
    const std::string& bytes = text.bytes();
    context_.charge_bytes(bytes.size());
    context_.check_size(out_.size() + bytes.size());
    out_.append("\"");
    size_t copied = 0;  // bytes [0, copied) are written
    for (size_t at = 0; at < bytes.size();) {
      uint8_t c = static_cast<uint8_t>(bytes[at]);
      CodePoint point = {c, 1};
      if (c >= 0x80 && ensure_ascii_) point = decode_utf8(bytes, at);
      bool is_plain = c >= 0x80 ? !ensure_ascii_ : c >= 0x20 && c != '"' && c != '\\';
      if (!is_plain) {
        out_.append(text, copied, at);
        out_.append(escape(point.code), text.is_user_at(at));
        copied = at + point.num_bytes;
      }
      at += point.num_bytes;
    }
    out_.append(text, copied, bytes.size());
    out_.append("\"");
  }

  static std::string escape(uint32_t code) {
    switch (code) {
      case '"': return "\\\"";
      case '\\': return "\\\\";
      case '\n': return "\\n";
      case '\r': return "\\r";
      case '\t': return "\\t";
      case '\f': return "\\f";
      case '\b': return "\\b";
      default: break;
    }
    char text[16];
    if (code < 0x10000) {
      std::snprintf(text, sizeof(text), "\\u%04x", code);
    } else {
      std::snprintf(text, sizeof(text), "\\u%04x\\u%04x", 0xd800 + ((code - 0x10000) >> 10),
                    0xdc00 + (code & 0x3ff));
    }
    return text;
  }

  Context& context_;
  Text out_;
  Text indent_, item_separator_, key_separator_;
  bool ensure_ascii_ = false, is_indented_ = false, sort_keys_ = false;
};

}  // namespace

Text dump_json(Context& context, const Value& value, CallArguments& arguments) {
  return JsonWriter(context, arguments).run(value);
}

}  // namespace restkv::chat

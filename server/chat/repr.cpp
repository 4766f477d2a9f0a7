// str() and repr() as Python writes values.
#include <cstdio>

#include "server/chat/context.h"
#include "server/chat/unicode_classes.h"

namespace restkv::chat {

Text Context::str(const Value& value) {
  if (value.is_string()) return value.text();
  if (value.is_undefined()) return Text();
  return repr(value);
}

Text Context::repr(const Value& value) {
  Text out;
  write_repr(value, out);
  return out;
}

void Context::write_repr(const Value& value, Text& out, int depth) {
  charge(1);
  check_size(out.size());
  if (depth > kMaxNesting) fail("values nested more than " + std::to_string(kMaxNesting) + " deep");
  if (value.is_undefined()) return out.append("Undefined");
  if (value.is_none()) return out.append("None");
  if (value.is_bool()) return out.append(value.as_bool() ? "True" : "False");
  if (value.is_int()) return out.append(std::to_string(value.as_int()));
  if (value.is_float()) return out.append(float_repr(value.as_float()));
  auto write_items = [&](const std::vector<Value>& items) {
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out.append(", ");
      write_repr(items[i], out, depth + 1);
    }
  };
  if (value.is_string()) {
    if (value.as_string()->is_markup) out.append("Markup(");
    write_string_repr(value.text(), out);
    if (value.as_string()->is_markup) out.append(")");
    return;
  }
  if (value.is_sequence()) {
    out.append(value.is_tuple() ? "(" : "[");
    write_items(value.items());
    out.append(value.is_tuple() ? (value.items().size() == 1 ? ",)" : ")") : "]");
    return;
  }
  auto write_dict = [&](const Dict& dict) {
    out.append("{");
    for (size_t i = 0; i < dict.entries().size(); ++i) {
      if (i > 0) out.append(", ");
      write_repr(dict.entries()[i].first, out, depth + 1);
      out.append(": ");
      write_repr(dict.entries()[i].second, out, depth + 1);
    }
    out.append("}");
  };
  if (value.is_dict()) return write_dict(*value.as_dict());
  if (auto* range = object_as<RangeObject>(value, ObjectKind::kRange)) {
    out.append("range(" + std::to_string(range->start) + ", " + std::to_string(range->stop));
    return out.append(range->step == 1 ? ")" : ", " + std::to_string(range->step) + ")");
  }
  if (object_as<ViewObject>(value, ObjectKind::kView)) {
    out.append(value.type_name() + "([");
    write_items(iterate(value)->items);
    return out.append("])");
  }
  if (auto* space = object_as<NamespaceObject>(value, ObjectKind::kNamespace)) {
    out.append("<Namespace ");
    write_dict(space->attributes);
    return out.append(">");
  }
  if (auto* macro = object_as<MacroObject>(value, ObjectKind::kMacro)) {
    return out.append("<Macro '" + macro->definition->name + "'>");
  }
  if (auto* loop = object_as<LoopObject>(value, ObjectKind::kLoop)) {
    return out.append("<LoopContext " + std::to_string(loop->index0 + 1) + "/" +
                      std::to_string(loop->sequence->items.size()) + ">");
  }
  out.append("<" + value.type_name() + ">");
}

void Context::write_string_repr(const Text& text, Text& out) {
  const std::string& bytes = text.bytes();
  charge_bytes(bytes.size());
  char quote = bytes.find('\'') != std::string::npos && bytes.find('"') == std::string::npos ? '"' : '\'';
  out.append(std::string_view(&quote, 1));
  for (size_t at = 0; at < bytes.size();) {
    CodePoint point = decode_utf8(bytes, at);
    bool is_user = text.has_user() && text.is_user_at(at);
    char hex[16];
    if (point.code == static_cast<uint32_t>(quote) || point.code == '\\') {
      const char escaped[] = {'\\', static_cast<char>(point.code)};
      out.append(std::string_view(escaped, 2), is_user);
    } else if (point.code == '\n' || point.code == '\r' || point.code == '\t') {
      out.append(point.code == '\n' ? "\\n" : point.code == '\r' ? "\\r" : "\\t", is_user);
    } else if (is_printable(point.code)) {
      out.append(std::string_view(bytes).substr(at, point.num_bytes), is_user);
    } else {
      const char* format = point.code < 0x100 ? "\\x%02x" : point.code < 0x10000 ? "\\u%04x" : "\\U%08x";
      int length = std::snprintf(hex, sizeof(hex), format, point.code);
      out.append(std::string_view(hex, length), is_user);
    }
    at += point.num_bytes;
  }
  out.append(std::string_view(&quote, 1));
}

}  // namespace restkv::chat

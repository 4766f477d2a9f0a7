#include "server/chat/context.h"

#include <algorithm>

#include "server/chat/template_error.h"
#include "server/chat/unicode_classes.h"

namespace restkv::chat {
namespace {

constexpr int64_t kStepsPerClockCheck = 512;

// As Jinja2 names an object in its messages.
std::string describe_object(const Value& value) {
  if (value.is_none()) return "None";
  std::string type = value.type_name();
  if (type == "Namespace" || type == "Cycler" || type == "Joiner") return "jinja2.utils." + type + " object";
  if (type == "Macro" || type == "LoopContext") return "jinja2.runtime." + type + " object";
  return type + " object";
}

bool changes_container(const Value& object, const std::string& name) {
  constexpr std::string_view kOfList[] = {"append", "clear", "pop",    "reverse",
                                          "insert", "sort",  "extend", "remove"};
  constexpr std::string_view kOfDict[] = {"clear", "pop", "popitem", "setdefault", "update"};
  if (object.is_list()) return std::find(std::begin(kOfList), std::end(kOfList), name) != std::end(kOfList);
  if (object.is_dict()) return std::find(std::begin(kOfDict), std::end(kOfDict), name) != std::end(kOfDict);
  return false;
}

}  // namespace

Context::Context(const RenderLimits& limits, std::chrono::system_clock::time_point now)
    : limits_(limits), now_(now), fuel_(limits.fuel), next_clock_check_(limits.fuel - kStepsPerClockCheck) {
  deadline_ = (limits.clock ? limits.clock() : std::chrono::steady_clock::now()) + limits.time;
}

Context::~Context() {
  for (auto& space : namespaces_) space->attributes = Dict();
}

void Context::charge(int64_t steps) {
  fuel_ -= steps;
  if (fuel_ < 0) {
    throw TemplateError(TemplateErrorKind::kLimit, "more than " + std::to_string(limits_.fuel) + " steps",
                        offset);
  }
  if (fuel_ > next_clock_check_) return;
  next_clock_check_ = fuel_ - kStepsPerClockCheck;
  if ((limits_.clock ? limits_.clock() : std::chrono::steady_clock::now()) > deadline_) {
    throw TemplateError(TemplateErrorKind::kLimit,
                        "more than " + std::to_string(limits_.time.count()) + " ms", offset);
  }
}

void Context::check_size(size_t num_bytes) const {
  if (num_bytes > limits_.output_bytes) {
    throw TemplateError(TemplateErrorKind::kLimit,
                        "a text of more than " + std::to_string(limits_.output_bytes) + " bytes", offset);
  }
}

Value Context::make_string(Text text, bool is_markup) {
  check_size(text.size());
  charge_bytes(text.size());
  return Value(std::move(text), is_markup);
}

namespace {
void check_nesting(const Context& context, const Value& value) {
  if (value.nesting() > kMaxNesting) {
    context.fail("values nested more than " + std::to_string(kMaxNesting) + " deep");
  }
}
}  // namespace

Value Context::make_list(std::vector<Value> items) {
  charge(1 + static_cast<int64_t>(items.size()));
  Value value = Value::list(std::move(items));
  check_nesting(*this, value);
  return value;
}
Value Context::make_tuple(std::vector<Value> items) {
  charge(1 + static_cast<int64_t>(items.size()));
  Value value = Value::tuple(std::move(items));
  check_nesting(*this, value);
  return value;
}
Value Context::make_iterator(std::vector<Value> items, std::string error) {
  charge(1 + static_cast<int64_t>(items.size()));
  Value value = ObjectRef(std::make_shared<IteratorObject>(std::move(items), std::move(error)));
  check_nesting(*this, value);
  return value;
}
Value Context::make_dict(Dict dict) {
  Value value = Value::dict(std::move(dict));
  check_nesting(*this, value);
  return value;
}

void Context::set_entry(Dict& dict, const Value& key, Value value) {
  if (key.is_list() || key.is_dict()) fail("unhashable type: '" + key.type_name() + "'");
  // Keys that are no strings are found by a scan.
  charge(1 + (key.is_string() ? 0 : static_cast<int64_t>(dict.size() / 16)));
  dict.set(key, std::move(value));
}

Value Context::make_namespace(Dict attributes) {
  auto space = std::make_shared<NamespaceObject>();
  space->attributes = std::move(attributes);
  namespaces_.push_back(space);
  return ObjectRef(space);
}

void Context::fail(const std::string& message) const {
  throw TemplateError(TemplateErrorKind::kRuntime, message, offset);
}
void Context::refuse(const std::string& message) const {
  throw TemplateError(TemplateErrorKind::kRaised, message, offset);
}

bool Context::truth(const Value& value) const {
  if (value.is_undefined() || value.is_none()) return false;
  if (value.is_bool()) return value.as_bool();
  if (value.is_int()) return value.as_int() != 0;
  if (value.is_float()) return value.as_float() != 0;
  if (value.is_string()) return !value.bytes().empty();
  if (value.is_sequence()) return !value.items().empty();
  if (value.is_dict()) return value.as_dict()->size() != 0;
  if (auto* range = object_as<RangeObject>(value, ObjectKind::kRange)) return range->size != 0;
  if (auto* view = object_as<ViewObject>(value, ObjectKind::kView)) return view->dict->size() != 0;
  return true;
}

void Context::require_defined(const Value& value) const {
  if (value.is_undefined()) fail(value.as_undefined()->message);
}

bool Context::has_length(const Value& value) const {
  if (value.is_undefined() || value.is_string() || value.is_sequence() || value.is_dict()) return true;
  if (!value.is_object()) return false;
  ObjectKind kind = value.as_object()->kind;
  return kind == ObjectKind::kRange || kind == ObjectKind::kView || kind == ObjectKind::kLoop;
}

int64_t Context::length(const Value& value) {
  if (value.is_undefined()) return 0;
  if (value.is_string()) return static_cast<int64_t>(value.as_string()->length);
  if (value.is_sequence()) return static_cast<int64_t>(value.items().size());
  if (value.is_dict()) return static_cast<int64_t>(value.as_dict()->size());
  if (auto* range = object_as<RangeObject>(value, ObjectKind::kRange)) return range->size;
  if (auto* view = object_as<ViewObject>(value, ObjectKind::kView))
    return static_cast<int64_t>(view->dict->size());
  if (auto* loop = object_as<LoopObject>(value, ObjectKind::kLoop)) {
    return static_cast<int64_t>(loop->sequence->items.size());
  }
  fail("object of type '" + value.type_name() + "' has no len()");
}

bool Context::is_iterable(const Value& value) const {
  if (value.is_undefined() || value.is_string() || value.is_sequence() || value.is_dict()) return true;
  if (!value.is_object()) return false;
  ObjectKind kind = value.as_object()->kind;
  return kind == ObjectKind::kRange || kind == ObjectKind::kView || kind == ObjectKind::kIterator ||
         kind == ObjectKind::kLoop;
}

SequenceRef Context::iterate(const Value& value) {
  if (value.is_sequence()) {
    charge(1);
    return value.as_sequence();
  }
  std::vector<Value> items;
  if (value.is_string()) {
    const Text& text = value.text();
    charge(static_cast<int64_t>(value.as_string()->length));
    for (size_t at = 0; at < text.size();) {
      size_t end = at + decode_utf8(text.bytes(), at).num_bytes;
      items.push_back(Value(text.slice(at, end)));
      at = end;
    }
  } else if (value.is_dict()) {
    for (const auto& [key, entry] : value.as_dict()->entries()) items.push_back(key);
  } else if (auto* range = object_as<RangeObject>(value, ObjectKind::kRange)) {
    charge(range->size);
    for (int64_t i = 0; i < range->size; ++i) items.push_back(Value(range->start + i * range->step));
  } else if (auto* view = object_as<ViewObject>(value, ObjectKind::kView)) {
    for (const auto& [key, entry] : view->dict->entries()) {
      if (view->what == ViewObject::What::kKeys) items.push_back(key);
      if (view->what == ViewObject::What::kValues) items.push_back(entry);
      if (view->what == ViewObject::What::kItems) items.push_back(make_tuple({key, entry}));
    }
  } else if (auto* iterator = mutable_object_as<IteratorObject>(value, ObjectKind::kIterator)) {
    if (!iterator->error.empty()) fail(iterator->error);
    items.assign(iterator->items.begin() + static_cast<std::ptrdiff_t>(iterator->next),
                 iterator->items.end());
    iterator->next = iterator->items.size();
  } else if (!value.is_undefined()) {
    fail("'" + value.type_name() + "' object is not iterable");
  }
  return make_list(std::move(items)).as_sequence();
}

Value Context::get_attribute(const Value& object, const std::string& name) {
  require_defined(object);
  Value found;
  if (changes_container(object, name) || name.starts_with("__")) {
    return Value::undefined("access to attribute '" + name + "' of '" + object.type_name() +
                            "' object is unsafe.");
  }
  if (find_attribute(object, name, found)) return found;
  charge(1);
  if (find_item(object, Value(name), found)) return found;
  return Value::undefined("'" + describe_object(object) + "' has no attribute '" + name + "'");
}

Value Context::get_item(const Value& object, const Value& key) {
  require_defined(object);
  Value found;
  if (find_item(object, key, found)) return found;
  if (key.is_string()) {
    const std::string& name = key.bytes();
    if (changes_container(object, name) || name.starts_with("__")) return get_attribute(object, name);
    if (find_attribute(object, name, found)) return found;
    return Value::undefined("'" + describe_object(object) + "' has no attribute '" + name + "'");
  }
  return Value::undefined(describe_object(object) + " has no element " + repr(key).bytes());
}

bool Context::find_item(const Value& object, const Value& key, Value& found) {
  if (object.is_dict()) {
    const Value* entry = object.as_dict()->find(key);
    if (entry) found = *entry;
    return entry != nullptr;
  }
  if (!key.is_integral()) return false;
  int64_t index = key.as_int();
  if (!has_length(object) || object.is_undefined()) return false;
  int64_t size = length(object);
  if (index < 0) index += size;
  if (index < 0 || index >= size) return false;
  if (object.is_string()) {
    found = get_slice(object, Value(index), Value(index + 1), Value());
  } else if (object.is_sequence()) {
    found = object.items()[index];
  } else if (auto* range = object_as<RangeObject>(object, ObjectKind::kRange)) {
    found = Value(range->start + index * range->step);
  } else {
    return false;
  }
  return true;
}

bool Context::find_attribute(const Value& object, const std::string& name, Value& found) {
  if (auto* space = object_as<NamespaceObject>(object, ObjectKind::kNamespace)) {
    const Value* value = space->attributes.find(std::string_view(name));
    if (value) found = *value;
    return value != nullptr;
  }
  if (auto* loop = object_as<LoopObject>(object, ObjectKind::kLoop)) {
    const std::vector<Value>& items = loop->sequence->items;
    int64_t size = static_cast<int64_t>(items.size());
    int64_t at = loop->index0;
    if (name == "index") return found = Value(at + 1), true;
    if (name == "index0") return found = Value(at), true;
    if (name == "revindex") return found = Value(size - at), true;
    if (name == "revindex0") return found = Value(size - at - 1), true;
    if (name == "first") return found = Value(at == 0), true;
    if (name == "last") return found = Value(at + 1 >= size), true;
    if (name == "length") return found = Value(size), true;
    if (name == "depth") return found = Value(loop->depth0 + 1), true;
    if (name == "depth0") return found = Value(loop->depth0), true;
    if (name == "previtem")
      return found = at > 0 ? items[at - 1] : Value::undefined("there is no previous item"), true;
    if (name == "nextitem") {
      return found = at + 1 < size ? items[at + 1] : Value::undefined("there is no next item"), true;
    }
  }
  if (auto* macro = object_as<MacroObject>(object, ObjectKind::kMacro)) {
    if (name == "name") return found = Value(macro->definition->name), true;
    if (name == "arguments") {
      std::vector<Value> names;
      for (const auto& parameter : macro->definition->parameters) names.push_back(Value(parameter.second));
      return found = make_tuple(std::move(names)), true;
    }
  }
  if (auto* cycler = object_as<CyclerObject>(object, ObjectKind::kCycler)) {
    if (name == "current") return found = cycler->choices->items[cycler->position], true;
  }
  if (auto* range = object_as<RangeObject>(object, ObjectKind::kRange)) {
    if (name == "start") return found = Value(range->start), true;
    if (name == "stop") return found = Value(range->stop), true;
    if (name == "step") return found = Value(range->step), true;
  }
  if (!find_method(object, name, found)) return false;
  charge(1);
  if (found.nesting() > kMaxNesting) fail("values nested more than " + std::to_string(kMaxNesting) + " deep");
  return true;
}

Value Context::get_slice(const Value& object, const Value& start, const Value& stop, const Value& step) {
  require_defined(object);
  bool is_range = object_as<RangeObject>(object, ObjectKind::kRange) != nullptr;
  if (!object.is_string() && !object.is_sequence() && !is_range) {
    if (object.is_dict()) fail("unhashable type: 'slice'");
    fail("'" + object.type_name() + "' object is not subscriptable");
  }
  for (const Value* bound : {&start, &stop, &step}) {
    if (!bound->is_none() && !bound->is_integral()) fail("slice indices must be integers or None");
  }
  int64_t size = length(object);
  int64_t stride = step.is_none() ? 1 : step.as_int();
  if (stride == 0) fail("slice step cannot be zero");
  // Python's rule: bounds count from the end if negative, and are cut to what there is.
  auto bound = [&](const Value& value, int64_t otherwise) {
    if (value.is_none()) return otherwise;
    int64_t at = value.as_int();
    if (at < 0) at = at < -size ? -1 : at + size;
    if (stride > 0) return std::clamp<int64_t>(at, 0, size);
    return std::clamp<int64_t>(at, -1, size - 1);
  };
  int64_t first = bound(start, stride > 0 ? 0 : size - 1);
  int64_t last = bound(stop, stride > 0 ? size : -1);
  stride = std::clamp<int64_t>(stride, -size - 1, size + 1);
  auto each = [&](auto&& visit) {
    for (int64_t i = first; stride > 0 ? i < last : i > last; i += stride) visit(i);
  };
  if (object.is_string()) {
    const String& string = *object.as_string();
    const std::string& bytes = string.text.bytes();
    Text result;
    if (string.is_ascii() && stride == 1) {
      if (first < last) result = string.text.slice(first, last);
    } else if (string.is_ascii()) {
      charge(size / 16);
      each([&](int64_t i) { result.append(string.text, i, i + 1); });
    } else {
      charge(1 + size / 16);
      std::vector<size_t> starts;  // [size + 1]
      for (size_t at = 0; at < bytes.size(); at += decode_utf8(bytes, at).num_bytes) starts.push_back(at);
      starts.push_back(bytes.size());
      if (stride == 1) {
        if (first < last) result = string.text.slice(starts[first], starts[last]);
      } else {
        each([&](int64_t i) { result.append(string.text, starts[i], starts[i + 1]); });
      }
    }
    return make_string(std::move(result), string.is_markup);
  }
  if (auto* range = object_as<RangeObject>(object, ObjectKind::kRange)) {
    auto part = std::make_shared<RangeObject>(range->start + first * range->step,
                                              range->start + last * range->step, range->step * stride);
    each([&](int64_t) { ++part->size; });
    return ObjectRef(part);
  }
  SequenceRef items = iterate(object);
  std::vector<Value> result;
  each([&](int64_t i) { result.push_back(items->items[i]); });
  if (object.is_tuple()) return make_tuple(std::move(result));
  return make_list(std::move(result));
}

}  // namespace restkv::chat

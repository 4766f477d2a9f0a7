// The functions that every template has: Jinja2's range, dict, namespace, cycler, joiner, and raise_exception and
// strftime_now of transformers.
#include <ctime>
#include <map>

#include "server/chat/argument_reader.h"

namespace restkv::chat {
namespace {

Value make_range(Context& context, CallArguments& arguments) {
  if (!arguments.keyword.empty()) context.fail("range() takes no keyword arguments");
  size_t count = arguments.positional.size();
  if (count < 1 || count > 3) context.fail("range expected 1 to 3 arguments, got " + std::to_string(count));
  int64_t bounds[3] = {0, 0, 1};
  for (size_t i = 0; i < count; ++i) {
    const Value& value = arguments.positional[i];
    context.require_defined(value);
    if (!value.is_integral()) {
      context.fail("'" + value.type_name() + "' object cannot be interpreted as an integer");
    }
    bounds[count == 1 ? 1 : i] = value.as_int();
  }
  auto [start, stop, step] = bounds;
  if (step == 0) context.fail("range() arg 3 must not be zero");
  auto range = std::make_shared<RangeObject>(start, stop, step);
  if (step > 0 ? start < stop : start > stop) {
    uint64_t low = static_cast<uint64_t>(step > 0 ? start : stop),
             high = static_cast<uint64_t>(step > 0 ? stop : start);
    uint64_t stride = step > 0 ? static_cast<uint64_t>(step) : 0 - static_cast<uint64_t>(step);
    uint64_t size = (high - low - 1) / stride + 1;
    if (size > static_cast<uint64_t>(context.limits().range)) {
      context.fail("range of more than " + std::to_string(context.limits().range) + " elements");
    }
    range->size = static_cast<int64_t>(size);
  }
  return ObjectRef(range);
}

Dict read_dict(Context& context, const char* function, CallArguments& arguments) {
  Dict dict;
  if (arguments.positional.size() > 1)
    context.fail(std::string(function) + "() takes at most 1 positional argument");
  if (!arguments.positional.empty()) {
    const Value& source = arguments.positional[0];
    context.require_defined(source);
    if (source.is_dict()) {
      context.charge(static_cast<int64_t>(source.as_dict()->size()));
      dict = *source.as_dict();
    } else {
      for (const Value& item : context.each(source)) {
        SequenceRef pair = context.iterate(item);
        if (pair->items.size() != 2) context.fail(std::string(function) + "() needs pairs of key and value");
        context.set_entry(dict, pair->items[0], pair->items[1]);
      }
    }
  }
  for (auto& [name, value] : arguments.keyword) context.set_entry(dict, Value(name), std::move(value));
  return dict;
}

Value make_dict(Context& context, CallArguments& arguments) {
  return context.make_dict(read_dict(context, "dict", arguments));
}

Value make_namespace(Context& context, CallArguments& arguments) {
  return context.make_namespace(read_dict(context, "namespace", arguments));
}

Value make_cycler(Context& context, CallArguments& arguments) {
  if (!arguments.keyword.empty()) context.fail("cycler() takes no keyword arguments");
  if (arguments.positional.empty()) context.fail("at least one item has to be provided");
  return ObjectRef(
      std::make_shared<CyclerObject>(context.make_tuple(std::move(arguments.positional)).as_sequence()));
}

Value make_joiner(Context& context, CallArguments& arguments) {
  ArgumentReader reader(context, "joiner", arguments);
  Value separator = reader.take("sep", Value(", "));
  reader.finish();
  return ObjectRef(std::make_shared<JoinerObject>(context.make_string(context.str(separator))));
}

Value raise_exception(Context& context, CallArguments& arguments) {
  ArgumentReader reader(context, "raise_exception", arguments);
  Value message = reader.require("message");
  reader.finish();
  context.refuse(context.str(message).bytes());
}

// Local time, one directive at a time through the C library (glibc's flags included, widths not).
Value strftime_now(Context& context, CallArguments& arguments) {
  ArgumentReader reader(context, "strftime_now", arguments);
  Value format = reader.require("format");
  reader.finish();
  if (!format.is_string()) context.fail("strftime_now() needs a string");
  using std::chrono::system_clock;
  std::time_t seconds = system_clock::to_time_t(context.now());
  auto micros =
      std::chrono::duration_cast<std::chrono::microseconds>(context.now().time_since_epoch()).count();
  std::tm local = {};
  localtime_r(&seconds, &local);
  const std::string& bytes = format.bytes();
  Text out;
  for (size_t at = 0; at < bytes.size();) {
    context.charge(1);
    size_t end = at + 1;
    if (bytes[at] != '%' || end == bytes.size()) {
      out.append(format.text(), at, end);
      at = end;
      continue;
    }
    while (end < bytes.size() && std::string_view("-_0^#").find(bytes[end]) != std::string_view::npos) ++end;
    std::string directive = bytes.substr(at, end + 1 - at);
    char type = directive.back();
    if (type == 'f') {
      std::string digits = std::to_string((micros % 1'000'000 + 1'000'000) % 1'000'000);
      out.append(std::string(6 - digits.size(), '0') + digits);
    } else if (type != 'z' && type != 'Z') {  // a naive datetime has no zone
      if (directive.size() > 6 || static_cast<unsigned char>(type) >= 0x80) {
        context.fail("strftime_now(): unknown directive");
      }
      char text[128];
      // The leading mark tells an empty result from one that does not fit.
      size_t length = std::strftime(text, sizeof(text), ("." + directive).c_str(), &local);
      out.append(std::string_view(text, length).substr(length > 0 ? 1 : 0));
    }
    at += directive.size();
  }
  return context.make_string(std::move(out));
}

}  // namespace

const ObjectRef* find_global(std::string_view name) {
  static const std::map<std::string, ObjectRef, std::less<>> kGlobals = [] {
    std::map<std::string, ObjectRef, std::less<>> globals;
    auto add = [&](const char* function, NativeFunction native) {
      globals.emplace(function, std::make_shared<FunctionObject>(function, native));
    };
    add("range", make_range);
    add("dict", make_dict);
    add("namespace", make_namespace);
    add("cycler", make_cycler);
    add("joiner", make_joiner);
    add("raise_exception", raise_exception);
    add("strftime_now", strftime_now);
    return globals;
  }();
  auto found = kGlobals.find(name);
  return found == kGlobals.end() ? nullptr : &found->second;
}

}  // namespace restkv::chat

// What every operation of a running template needs: its limits, its place in the source for errors, and Python's view of
// a value (truth, length, iteration, comparison, attributes, str, repr).
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "server/chat/ast.h"
#include "server/chat/chat_template.h"
#include "server/chat/value.h"
#include "server/chat/value_objects.h"

namespace restkv::chat {

// What a for loop goes over; it keeps the elements alive, which a loop over iterate(x)->items would not.
struct Elements {
  SequenceRef sequence;
  auto begin() const { return sequence->items.begin(); }
  auto end() const { return sequence->items.end(); }
};

class Context {
 public:
  Context(const RenderLimits& limits, std::chrono::system_clock::time_point now);
  virtual ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // Calls anything callable. Macros are the interpreter's business.
  virtual Value call(const Value& callee, CallArguments& arguments) = 0;

  // Limits ----------------------------------------------------------------------------------------------------------
  void charge(int64_t steps);  // throws at the end of fuel or time
  void charge_bytes(size_t num_bytes) { charge(1 + static_cast<int64_t>(num_bytes / 256)); }
  void check_size(size_t num_bytes) const;  // of a string about to be made
  Value make_string(Text text, bool is_markup = false);
  Value make_list(std::vector<Value> items);
  Value make_tuple(std::vector<Value> items);
  Value make_iterator(std::vector<Value> items, std::string error = {});
  Value make_dict(Dict dict);
  void set_entry(Dict& dict, const Value& key, Value value);  // checks that the key can be hashed
  Value make_namespace(Dict attributes);
  const RenderLimits& limits() const { return limits_; }
  std::chrono::system_clock::time_point now() const { return now_; }

  // Errors ----------------------------------------------------------------------------------------------------------
  [[noreturn]] void fail(const std::string& message) const;
  [[noreturn]] void refuse(const std::string& message) const;  // raise_exception
  size_t offset = 0;                                           // in the source, of the running operation

  // Python's view of values -----------------------------------------------------------------------------------------
  bool truth(const Value& value) const;
  void require_defined(const Value& value) const;  // an operation on undefined is an error
  int64_t length(const Value& value);
  bool has_length(const Value& value) const;
  bool is_iterable(const Value& value) const;
  SequenceRef iterate(const Value& value);  // a list or tuple gives itself; an iterator is used up
  Elements each(const Value& value) { return {iterate(value)}; }
  bool equal(const Value& a, const Value& b);
  bool less(const Value& a, const Value& b);  // TypeError for kinds without an order
  bool contains(const Value& container, const Value& item);
  // (a op b), for arithmetic and comparison.
  Value apply(Operator op, const Value& a, const Value& b);
  Value negate(const Value& value);
  Value positive(const Value& value);

  Value get_attribute(const Value& object, const std::string& name);  // x.name
  Value get_item(const Value& object, const Value& key);              // x[key]
  Value get_slice(const Value& object, const Value& start, const Value& stop, const Value& step);

  Text str(const Value& value);
  Text repr(const Value& value);
  void write_repr(const Value& value, Text& out, int depth = 0);

 private:
  bool find_attribute(const Value& object, const std::string& name, Value& found);
  bool find_item(const Value& object, const Value& key, Value& found);
  Value apply_to_numbers(Operator op, const Value& a, const Value& b);
  Value add(const Value& a, const Value& b);
  Value repeat(const Value& value, int64_t times);
  void write_string_repr(const Text& text, Text& out);

  const RenderLimits& limits_;
  std::chrono::system_clock::time_point now_;
  std::chrono::steady_clock::time_point deadline_;
  int64_t fuel_;
  int64_t next_clock_check_;
  std::vector<std::shared_ptr<NamespaceObject>> namespaces_;  // emptied at the end: they may hold one another
};

// Other files of this folder -----------------------------------------------------------------------------------------
using Filter = Value (*)(Context&, const Value& subject, CallArguments&);
Filter find_filter(std::string_view name);  // filters.cpp; null: none
Value apply_filter(Context& context, const std::string& name, const Value& subject, CallArguments& arguments);
bool has_test(std::string_view name);  // tests.cpp
bool apply_test(Context& context, const std::string& name, const Value& subject, CallArguments& arguments);
const ObjectRef* find_global(std::string_view name);                             // globals.cpp; null: none
bool find_method(const Value& self, std::string_view name, Value& method);       // methods.cpp
Text dump_json(Context& context, const Value& value, CallArguments& arguments);  // json_dump.cpp
Value format_percent(Context& context, const Value& format, const Value& arguments);   // formatting.cpp
Value format_braces(Context& context, const Value& format, CallArguments& arguments);  // formatting.cpp
Text escape_html(Context& context, const Value& value);                                // operators.cpp

}  // namespace restkv::chat

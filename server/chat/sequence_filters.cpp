// Filters of sequences and mappings, with Jinja2's names, arguments and quirks: map, select, items... give iterators that
// can be read once; sort, list, dictsort give lists.
#include <algorithm>

#include "server/chat/argument_reader.h"
#include "server/chat/filters.h"
#include "server/chat/string_ops.h"

namespace restkv::chat {
namespace {

// "a.b.0" as the keys a, b and 0.
std::vector<Value> attribute_path(Context& context, const Value& attribute) {
  std::vector<Value> path;
  if (attribute.is_none()) return path;
  if (!attribute.is_string()) return {attribute};
  Text dot(".");
  for (Text& part : split_text(context, attribute.text(), &dot, -1)) {
    const std::string& name = part.bytes();
    bool is_index = !name.empty() && name.size() < 10 &&
                    std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; });
    path.push_back(is_index ? Value(int64_t{std::stoi(name)}) : Value(name));
  }
  return path;
}

Value walk(Context& context, Value item, const std::vector<Value>& path, const Value& otherwise = Value()) {
  for (const Value& key : path) {
    item = context.get_item(item, key);
    if (item.is_undefined() && !otherwise.is_none()) item = otherwise;
  }
  return item;
}

Value ignore_case(Context& context, const Value& value) {
  return value.is_string() ? Value(map_case(context, value.text(), Case::kLower)) : value;
}

// Sorts by keys; errors of comparison come out as they are.
void sort_by(Context& context, std::vector<std::pair<Value, Value>>& keyed, bool reverse) {
  context.charge(static_cast<int64_t>(keyed.size()));
  // An exception out of a comparison leaves the vector valid; equal keys keep their order, in reverse too.
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? context.less(b.first, a.first) : context.less(a.first, b.first);
  });
}

Value sort(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "sort", arguments);
  bool reverse = reader.take_bool("reverse", false);
  bool case_sensitive = reader.take_bool("case_sensitive", false);
  Value attribute = reader.take("attribute", Value());
  reader.finish();
  std::vector<std::vector<Value>> paths;
  if (attribute.is_string()) {
    Text comma(",");
    for (Text& part : split_text(context, attribute.text(), &comma, -1))
      paths.push_back(attribute_path(context, Value(part)));
  } else {
    paths.push_back(attribute_path(context, attribute));
  }
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : context.each(subject)) {
    std::vector<Value> key;
    for (const auto& path : paths) {
      Value part = walk(context, item, path);
      key.push_back(case_sensitive ? part : ignore_case(context, part));
    }
    keyed.emplace_back(context.make_list(std::move(key)), item);
  }
  sort_by(context, keyed, reverse);
  std::vector<Value> items;
  for (auto& [key, item] : keyed) items.push_back(std::move(item));
  return context.make_list(std::move(items));
}

Value dictsort(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "dictsort", arguments);
  bool case_sensitive = reader.take_bool("case_sensitive", false);
  std::string by = context.str(reader.take("by", Value("key"))).bytes();
  bool reverse = reader.take_bool("reverse", false);
  reader.finish();
  context.require_defined(subject);
  if (by != "key" && by != "value") context.fail("You can only sort by either \"key\" or \"value\"");
  if (!subject.is_dict()) context.fail("'" + subject.type_name() + "' object has no attribute 'items'");
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, value] : subject.as_dict()->entries()) {
    const Value& part = by == "key" ? key : value;
    keyed.emplace_back(case_sensitive ? part : ignore_case(context, part), context.make_tuple({key, value}));
  }
  sort_by(context, keyed, reverse);
  std::vector<Value> items;
  for (auto& [key, item] : keyed) items.push_back(std::move(item));
  return context.make_list(std::move(items));
}

Value groupby(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "groupby", arguments);
  std::vector<Value> path = attribute_path(context, reader.require("attribute"));
  Value otherwise = reader.take("default", Value());
  bool case_sensitive = reader.take_bool("case_sensitive", false);
  reader.finish();
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : context.each(subject)) {
    Value key = walk(context, item, path, otherwise);
    keyed.emplace_back(case_sensitive ? key : ignore_case(context, key), item);
  }
  sort_by(context, keyed, false);
  std::vector<Value> groups;
  for (size_t begin = 0, end = 0; begin < keyed.size(); begin = end) {
    std::vector<Value> members;
    for (end = begin; end < keyed.size() && context.equal(keyed[begin].first, keyed[end].first); ++end) {
      members.push_back(keyed[end].second);
    }
    if (end == begin) ++end;  // a key unequal to itself (nan)
    Value name = walk(context, keyed[begin].second, path, otherwise);
    groups.push_back(context.make_tuple({name, context.make_list(std::move(members))}));
  }
  return context.make_list(std::move(groups));
}

Value unique(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "unique", arguments);
  bool case_sensitive = reader.take_bool("case_sensitive", false);
  std::vector<Value> path = attribute_path(context, reader.take("attribute", Value()));
  reader.finish();
  Dict seen;
  std::vector<Value> items;
  for (const Value& item : context.each(subject)) {
    Value key = walk(context, item, path);
    if (!case_sensitive) key = ignore_case(context, key);
    if (seen.find(key)) continue;
    context.set_entry(seen, key, Value());
    items.push_back(item);
  }
  return context.make_iterator(std::move(items));
}

template <bool is_max>
Value extreme(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, is_max ? "max" : "min", arguments);
  bool case_sensitive = reader.take_bool("case_sensitive", false);
  std::vector<Value> path = attribute_path(context, reader.take("attribute", Value()));
  reader.finish();
  SequenceRef items = context.iterate(subject);
  if (items->items.empty()) return Value::undefined("No aggregated item, sequence was empty.");
  Value best, best_key;
  for (size_t i = 0; i < items->items.size(); ++i) {
    Value key = walk(context, items->items[i], path);
    if (!case_sensitive) key = ignore_case(context, key);
    if (i > 0 && !(is_max ? context.less(best_key, key) : context.less(key, best_key))) continue;
    best = items->items[i];
    best_key = key;
  }
  return best;
}

Value sum(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "sum", arguments);
  std::vector<Value> path = attribute_path(context, reader.take("attribute", Value()));
  Value total = reader.take("start", Value(0));
  reader.finish();
  if (total.is_string()) context.fail("sum() can't sum strings [use ''.join(seq) instead]");
  for (const Value& item : context.each(subject)) {
    total = context.apply(Operator::kAdd, total, walk(context, item, path));
  }
  return total;
}

Value join(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "join", arguments);
  Text separator = context.str(reader.take("d", Value("")));
  std::vector<Value> path = attribute_path(context, reader.take("attribute", Value()));
  reader.finish();
  std::vector<Text> parts;
  size_t size = 0;
  for (const Value& item : context.each(subject)) {
    parts.push_back(context.str(walk(context, item, path)));
    context.charge_bytes(parts.back().size());
    context.check_size(size += parts.back().size());
  }
  return context.make_string(join_texts(context, separator, parts));
}

Value first(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader(context, "first", arguments).finish();
  auto* iterator = mutable_object_as<IteratorObject>(subject, ObjectKind::kIterator);
  if (iterator && iterator->error.empty() && iterator->next < iterator->items.size()) {
    return iterator->items[iterator->next++];
  }
  if (subject.is_string() && !subject.bytes().empty()) return context.get_item(subject, Value(0));
  SequenceRef items = context.iterate(subject);
  return items->items.empty() ? Value::undefined("No first item, sequence was empty.") : items->items.front();
}

Value last(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader(context, "last", arguments).finish();
  if (subject.is_string() && !subject.bytes().empty()) return context.get_item(subject, Value(-1));
  if (!context.has_length(subject)) context.fail("'" + subject.type_name() + "' object is not reversible");
  SequenceRef items = context.iterate(subject);
  return items->items.empty() ? Value::undefined("No last item, sequence was empty.") : items->items.back();
}

Value length(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader(context, "length", arguments).finish();
  return Value(context.length(subject));
}

Value list(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader(context, "list", arguments).finish();
  if (subject.is_list()) return subject;  // lists do not change, so no copy is needed
  return context.make_list(context.iterate(subject)->items);
}

Value reverse(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader(context, "reverse", arguments).finish();
  if (subject.is_string()) return context.get_slice(subject, Value(), Value(), Value(-1));
  if (!context.is_iterable(subject)) context.fail("reverse(): argument must be iterable");
  std::vector<Value> items = context.iterate(subject)->items;
  std::reverse(items.begin(), items.end());
  // Python has no reversed() of a generator; Jinja2 makes a list of it then.
  if (object_as<IteratorObject>(subject, ObjectKind::kIterator)) return context.make_list(std::move(items));
  return context.make_iterator(std::move(items));
}

Value items(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader(context, "items", arguments).finish();
  if (!subject.is_undefined() && !subject.is_dict())
    return context.make_iterator({}, "Can only get item pairs from a mapping.");
  std::vector<Value> pairs;
  if (subject.is_dict()) {
    for (const auto& [key, value] : subject.as_dict()->entries())
      pairs.push_back(context.make_tuple({key, value}));
  }
  return context.make_iterator(std::move(pairs));
}

Value attr(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "attr", arguments);
  Value name = reader.require("name");
  reader.finish();
  if (!name.is_string()) context.fail("attr(): the name must be a string");
  context.require_defined(subject);
  // Attributes only: the items of a dict are none.
  if (subject.is_dict()) {
    Value method;
    if (!find_method(subject, name.bytes(), method))
      return Value::undefined("'dict object' has no attribute '" + name.bytes() + "'");
  }
  return context.get_attribute(subject, name.bytes());
}

Value batch(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "batch", arguments);
  int64_t size = reader.take_int("linecount", 0);
  Value fill = reader.take("fill_with", Value());
  reader.finish();
  std::vector<Value> rows, row;
  // Python's loop compares for equality only: a size below 1 never cuts.
  for (const Value& item : context.each(subject)) {
    if (size >= 0 && static_cast<int64_t>(row.size()) == size)
      rows.push_back(context.make_list(std::exchange(row, {})));
    row.push_back(item);
  }
  if (!row.empty()) {
    if (!fill.is_none() && static_cast<int64_t>(row.size()) < size) {
      context.charge(size);
      row.resize(static_cast<size_t>(size), fill);
    }
    rows.push_back(context.make_list(std::move(row)));
  }
  return context.make_iterator(std::move(rows));
}

Value slice(Context& context, const Value& subject, CallArguments& arguments) {
  ArgumentReader reader(context, "slice", arguments);
  int64_t slices = reader.take_int("slices", 0);
  Value fill = reader.take("fill_with", Value());
  reader.finish();
  SequenceRef source = context.iterate(subject);
  if (slices == 0) context.fail("slice(): integer division or modulo by zero");
  std::vector<Value> columns;
  int64_t size = static_cast<int64_t>(source->items.size());
  for (int64_t number = 0, begin = 0; number < slices; ++number) {
    bool has_extra = number < size % slices;
    int64_t end = begin + size / slices + has_extra;
    std::vector<Value> column(source->items.begin() + begin, source->items.begin() + end);
    if (!fill.is_none() && !has_extra) column.push_back(fill);
    columns.push_back(context.make_list(std::move(column)));
    begin = end;
  }
  return context.make_iterator(std::move(columns));
}

Value map(Context& context, const Value& subject, CallArguments& arguments) {
  if (!context.truth(subject)) return context.make_iterator({});
  std::vector<Value> results;
  if (arguments.positional.empty()) {
    ArgumentReader reader(context, "map", arguments);
    if (!reader.has("attribute")) return context.make_iterator({}, "map requires a filter argument");
    std::vector<Value> path = attribute_path(context, reader.require("attribute"));
    Value otherwise = reader.take("default", Value());
    reader.finish();
    for (const Value& item : context.each(subject)) {
      context.charge(1);
      results.push_back(walk(context, item, path, otherwise));
    }
    return context.make_iterator(std::move(results));
  }
  std::string name = context.str(arguments.positional[0]).bytes();
  CallArguments rest = {{arguments.positional.begin() + 1, arguments.positional.end()}, arguments.keyword};
  for (const Value& item : context.each(subject)) {
    context.charge(1);
    CallArguments each = rest;
    results.push_back(apply_filter(context, name, item, each));
  }
  return context.make_iterator(std::move(results));
}

template <bool wanted, bool by_attribute>
Value select(Context& context, const Value& subject, CallArguments& arguments) {
  if (!context.truth(subject)) return context.make_iterator({});
  constexpr size_t kFirst = by_attribute ? 1 : 0;
  std::vector<Value> path;
  if (by_attribute) {
    if (arguments.positional.empty()) context.fail("Missing parameter for attribute name");
    path = attribute_path(context, arguments.positional[0]);
  }
  bool has_name = arguments.positional.size() > kFirst;
  std::string name = has_name ? context.str(arguments.positional[kFirst]).bytes() : "";
  CallArguments rest;
  if (has_name) {
    rest.positional.assign(arguments.positional.begin() + kFirst + 1, arguments.positional.end());
    rest.keyword = arguments.keyword;
  }
  std::vector<Value> kept;
  for (const Value& item : context.each(subject)) {
    context.charge(1);
    Value value = walk(context, item, path);
    CallArguments each = rest;
    if ((has_name ? apply_test(context, name, value, each) : context.truth(value)) == wanted)
      kept.push_back(item);
  }
  return context.make_iterator(std::move(kept));
}

}  // namespace

const FilterTable& sequence_filters() {
  static const FilterTable kFilters = {
      {"sort", sort},
      {"dictsort", dictsort},
      {"groupby", groupby},
      {"unique", unique},
      {"min", extreme<false>},
      {"max", extreme<true>},
      {"sum", sum},
      {"join", join},
      {"first", first},
      {"last", last},
      {"length", length},
      {"count", length},
      {"list", list},
      {"reverse", reverse},
      {"items", items},
      {"attr", attr},
      {"batch", batch},
      {"slice", slice},
      {"map", map},
      {"select", select<true, false>},
      {"reject", select<false, false>},
      {"selectattr", select<true, true>},
      {"rejectattr", select<false, true>},
  };
  return kFilters;
}

}  // namespace restkv::chat

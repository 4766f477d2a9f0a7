// By reflection: only what is set is visited.
#include "server/grpc/message_json.h"

#include <google/protobuf/descriptor.h>

#include <string>
#include <vector>

#include "kernels/base/check.h"

namespace restkv {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using json = RequestJson;

json single_value(const Message& message, const Reflection& reflection, const FieldDescriptor* field) {
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL: return reflection.GetBool(message, field);
    case FieldDescriptor::CPPTYPE_INT32: return reflection.GetInt32(message, field);
    case FieldDescriptor::CPPTYPE_INT64: return reflection.GetInt64(message, field);
    case FieldDescriptor::CPPTYPE_DOUBLE: return reflection.GetDouble(message, field);
    case FieldDescriptor::CPPTYPE_STRING: return reflection.GetString(message, field);
    case FieldDescriptor::CPPTYPE_MESSAGE: return json_of(reflection.GetMessage(message, field));
    default: break;
  }
  CHECK(false) << "request messages have no field of type " << field->cpp_type_name();
  return {};
}

json list_value(const Message& message, const Reflection& reflection, const FieldDescriptor* field) {
  json list = json::array();
  const int size = reflection.FieldSize(message, field);
  for (int i = 0; i < size; ++i) {
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_INT32:
        list.push_back(reflection.GetRepeatedInt32(message, field, i));
        break;
      case FieldDescriptor::CPPTYPE_STRING:
        list.push_back(reflection.GetRepeatedString(message, field, i));
        break;
      case FieldDescriptor::CPPTYPE_MESSAGE:
        list.push_back(json_of(reflection.GetRepeatedMessage(message, field, i)));
        break;
      default: CHECK(false) << "request messages have no list of " << field->cpp_type_name();
    }
  }
  return list;
}

// JSON's keys are strings: {7: -1.5} is {"7": -1.5}.
json map_value(const Message& message, const Reflection& reflection, const FieldDescriptor* field) {
  json object = json::object();
  const int size = reflection.FieldSize(message, field);
  for (int i = 0; i < size; ++i) {
    json entry = json_of(reflection.GetRepeatedMessage(message, field, i));  // keys and values are always set
    json& key = entry["key"];
    const std::string name = key.is_null() ? "0" : key.is_string() ? key.get<std::string>() : key.dump();
    object[name] = entry.contains("value") ? std::move(entry["value"]) : json(0);
  }
  return object;
}

}  // namespace

json json_of(const Message& message) {
  const Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  json object = json::object();
  for (const FieldDescriptor* field : fields) {
    json& value = object[field->name()];
    if (field->is_map()) {
      value = map_value(message, reflection, field);
    } else if (field->is_repeated()) {
      value = list_value(message, reflection, field);
    } else {
      value = single_value(message, reflection, field);
    }
  }
  return object;
}

}  // namespace restkv

// Tensors and parameters to fields.
#include "server/grpc/open_inference_request.h"

#include <cstring>
#include <string>
#include <string_view>

#include "engine/model/json_reader.h"

namespace restkv {
namespace {

using inference::InferParameter;
using inference::ModelInferRequest;
using json = RequestJson;
using InputTensor = ModelInferRequest::InferInputTensor;

Status invalid(const std::string& name, const std::string& what) {
  return invalid_argument("'" + name + "' " + what).with_param(name).with_reason("invalid_value");
}

// Little-endian bytes of one number, as raw_input_contents hold them.
template <class T>
bool read_raw(std::string_view raw, json& out) {
  if (raw.size() != sizeof(T)) return false;
  T value{};
  std::memcpy(&value, raw.data(), sizeof value);
  out = value;
  return true;
}

// A BYTES tensor of one element: four bytes of length, then the text.
bool read_raw_text(std::string_view raw, json& out) {
  uint32_t len = 0;
  if (raw.size() < sizeof len) return false;
  std::memcpy(&len, raw.data(), sizeof len);
  if (raw.size() - sizeof len != len) return false;
  out = std::string(raw.substr(sizeof len));
  return true;
}

bool read_raw_value(const std::string& datatype, std::string_view raw, json& out) {
  if (datatype == "BYTES") return read_raw_text(raw, out);
  if (datatype == "BOOL") {
    if (raw.size() != 1) return false;
    out = raw[0] != 0;
    return true;
  }
  if (datatype == "INT8") return read_raw<int8_t>(raw, out);
  if (datatype == "INT16") return read_raw<int16_t>(raw, out);
  if (datatype == "INT32") return read_raw<int32_t>(raw, out);
  if (datatype == "INT64") return read_raw<int64_t>(raw, out);
  if (datatype == "UINT8") return read_raw<uint8_t>(raw, out);
  if (datatype == "UINT16") return read_raw<uint16_t>(raw, out);
  if (datatype == "UINT32") return read_raw<uint32_t>(raw, out);
  if (datatype == "UINT64") return read_raw<uint64_t>(raw, out);
  if (datatype == "FP32") return read_raw<float>(raw, out);
  if (datatype == "FP64") return read_raw<double>(raw, out);
  return false;
}

template <class List>
bool read_one(const List& list, json& out) {
  if (list.size() != 1) return false;
  out = list[0];
  return true;
}

bool read_typed_value(const std::string& datatype, const inference::InferTensorContents& contents,
                      json& out) {
  if (datatype == "BYTES") return read_one(contents.bytes_contents(), out);
  if (datatype == "BOOL") return read_one(contents.bool_contents(), out);
  if (datatype == "INT8" || datatype == "INT16" || datatype == "INT32")
    return read_one(contents.int_contents(), out);
  if (datatype == "INT64") return read_one(contents.int64_contents(), out);
  if (datatype == "UINT8" || datatype == "UINT16" || datatype == "UINT32")
    return read_one(contents.uint_contents(), out);
  if (datatype == "UINT64") return read_one(contents.uint64_contents(), out);
  if (datatype == "FP32") return read_one(contents.fp32_contents(), out);
  if (datatype == "FP64") return read_one(contents.fp64_contents(), out);
  return false;
}

bool is_one_element(const InputTensor& tensor) {
  for (const int64_t extent : tensor.shape()) {
    if (extent != 1) return false;
  }
  return true;
}

// FP32 0.7 is 0.699999988 as a double; what the client wrote is its shortest text.
json widened(const std::string& datatype, json value) {
  if (datatype != "FP32" || !value.is_number_float()) return value;
  char text[40];
  std::snprintf(text, sizeof text, "%.7g", value.get<double>());
  return std::strtod(text, nullptr);
}

json parameter_value(const InferParameter& parameter) {
  switch (parameter.parameter_choice_case()) {
    case InferParameter::kBoolParam: return parameter.bool_param();
    case InferParameter::kInt64Param: return parameter.int64_param();
    case InferParameter::kStringParam: return parameter.string_param();
    case InferParameter::kDoubleParam: return parameter.double_param();
    case InferParameter::kUint64Param: return parameter.uint64_param();
    case InferParameter::PARAMETER_CHOICE_NOT_SET: break;
  }
  return nullptr;
}

// Fields that are objects come as JSON text.
Status set_field(const std::string& name, json value, json& body) {
  const bool is_group = name == "sampling_parameters";
  if (!is_group && name != "cache" && name != "logit_bias") {
    body[name] = std::move(value);
    return {};
  }
  if (!value.is_string()) return invalid(name, "must be a JSON object as text");
  Result<json> object = parse_ordered_json(value.get_ref<const std::string&>());
  if (!object.ok() || !object->is_object()) return invalid(name, "must be a JSON object as text");
  if (!is_group) {
    body[name] = *std::move(object);
    return {};
  }
  for (auto& [key, item] : object->items()) body[key] = std::move(item);
  return {};
}

}  // namespace

Result<json> completion_body_of(const ModelInferRequest& request) {
  json body = json::object();
  for (const auto& [name, parameter] : request.parameters()) {
    if (Status status = set_field(name, parameter_value(parameter), body); !status.ok()) return status;
  }
  const bool is_raw = request.raw_input_contents_size() > 0;
  if (is_raw && request.raw_input_contents_size() != request.inputs_size()) {
    return invalid("raw_input_contents", "must have one entry for each of 'inputs' (" +
                                             std::to_string(request.inputs_size()) + "), not " +
                                             std::to_string(request.raw_input_contents_size()));
  }
  bool has_text = false;
  for (int i = 0; i < request.inputs_size(); ++i) {
    const InputTensor& tensor = request.inputs(i);
    const std::string shown = tensor.name().substr(0, 64);
    if (!is_one_element(tensor)) return invalid(shown, "must be a tensor of one element");
    json value;
    const bool is_read = is_raw ? read_raw_value(tensor.datatype(), request.raw_input_contents(i), value)
                                : read_typed_value(tensor.datatype(), tensor.contents(), value);
    if (!is_read)
      return invalid(shown, "does not hold one element of type '" + tensor.datatype().substr(0, 16) + "'");
    if (tensor.name() == kTextInput) {
      if (!value.is_string()) return invalid(shown, "must be of type 'BYTES'");
      body["prompt"] = std::move(value);
      has_text = true;
      continue;
    }
    Status status = set_field(tensor.name(), widened(tensor.datatype(), std::move(value)), body);
    if (!status.ok()) return status;
  }
  if (!has_text) {
    return invalid_argument("the input tensor 'text_input' (BYTES, one element) is required")
        .with_param(kTextInput)
        .with_reason("missing_required_parameter");
  }
  if (!request.model_name().empty()) body["model"] = request.model_name();
  return body;
}

}  // namespace restkv

// OpenAI's model objects, with vLLM's max_model_len.
#include "server/openai/model_list.h"

#include "server/openai/json_text.h"

namespace restkv {

std::string model_body(const ModelCard& card) {
  std::string out = "{\"id\":";
  append_json_string(out, card.id);
  out += ",\"object\":\"model\",\"created\":";
  append_json_number(out, card.created);
  out += ",\"owned_by\":\"restkv\",\"max_model_len\":";
  append_json_number(out, card.max_model_len);
  out += '}';
  return out;
}

std::string model_list_body(const ModelCard& card) {
  return "{\"object\":\"list\",\"data\":[" + model_body(card) + "]}";
}

}  // namespace restkv

// What a server needs of the model it serves.
#pragma once

#include <memory>
#include <string>

#include "engine/engine.h"
#include "engine/text/tokenizer.h"
#include "server/chat/chat_format.h"

namespace restkv {

struct ServedModel {
  std::string name;  // the id clients see
  std::shared_ptr<Engine> engine;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const ChatFormat> chat_format = nullptr;  // null: no chat template
};

}  // namespace restkv

// From settings to a model in memory, its tokenizer, a running engine, and one request through it: the steps that several
// verbs share.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "engine/engine.h"
#include "engine/text/tokenizer.h"
#include "server/chat/chat_format.h"
#include "server/config/settings.h"

namespace restkv {

struct LoadedModel {
  std::shared_ptr<const Model> model;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const ChatFormat> chat_format;
};

// With a progress bar on a terminal.
Result<std::shared_ptr<const Model>> load_model_of(const Settings& settings);
Result<LoadedModel> load_model_and_tokenizer(const Settings& settings);
// A tokenizer that cannot be this model's: its number of tokens is far from the rows of the embedding.
Status check_tokenizer_fits(const Tokenizer& tokenizer, const ModelConfig& config);

// Submits `request` and waits for its end on this thread. `on_token` gets every token as it comes; when `is_stopped`
// turns true the request is cancelled. The result is the kFinish record; an error is one of submitting or of the engine.
Result<TokenRecord> run_request(Engine& engine, Request request,
                                const std::function<void(const TokenRecord&)>& on_token,
                                const std::function<bool()>& is_stopped);

}  // namespace restkv

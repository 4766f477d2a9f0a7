// The chat format of a model: its template, or several by name, as its files say, and the tokens it prints. Loaded once;
// renders from any number of threads.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "engine/model/gguf.h"
#include "engine/text/tokenizer.h"
#include "server/chat/chat_template.h"

namespace restkv {

class ChatFormat {
 public:
  // No template: every render says so.
  ChatFormat() = default;
  // `sources`: template texts by name; a model with one calls it "default". Texts that do not parse are kept as errors.
  ChatFormat(std::string origin, const std::map<std::string, std::string>& sources, std::string bos_token,
             std::string eos_token);

  // Renders with `tool_use` if the model has one and the conversation has tools, else with `default`. Sets the tokens of
  // `input`, and "developer" becomes "system" where the template does not know it. INVALID_ARGUMENT: no template (reason
  // "no_chat_template"), or as ChatTemplate::render_prompt.
  Result<RenderedPrompt> render(ChatInput input, const RenderLimits& limits,
                                std::chrono::system_clock::time_point now) const;

  const std::string& origin() const { return origin_; }  // "tokenizer_config.json"; empty: no template
  const std::string& bos_token() const { return bos_token_; }
  const std::string& eos_token() const { return eos_token_; }

  struct Named {
    std::string source;
    std::shared_ptr<const ChatTemplate> parsed;  // null: `error` says why
    Status error;
    bool knows_developer = false;
  };
  const std::map<std::string, Named>& templates() const { return templates_; }
  // Why the model cannot chat: no template, or the one for conversations without tools does not parse.
  Status status() const;

 private:
  Result<const Named*> find(bool has_tools) const;

  std::string origin_, bos_token_, eos_token_;
  std::map<std::string, Named> templates_;
};

// From the metadata of `gguf`, or from a Hugging Face folder (`gguf` null): chat_template.jinja, then tokenizer_config.json,
// then chat_template.json. `template_file`, if not empty, is used instead of all of them. Error: that file cannot be read
// or does not parse; a model without a template, or with a broken one, is no error here.
Result<std::shared_ptr<const ChatFormat>> load_chat_format(const std::string& model_path,
                                                           const GgufFile* gguf, const Tokenizer& tokenizer,
                                                           const std::string& template_file);

}  // namespace restkv

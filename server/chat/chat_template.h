// Chat templates: a Jinja engine for the language that published templates use, rendering the bytes that Jinja2 gives in
// the environment of transformers (immutable sandbox, trim_blocks, lstrip_blocks, loop controls, {% generation %}, tojson
// without HTML or ASCII escapes, raise_exception, strftime_now). Parse once; render from any number of threads.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace restkv {

struct RenderLimits {
  int64_t fuel = 1'000'000;  // steps; a step is a node of the template, an element, or 256 bytes of text made
  int depth = 64;            // macros, callers and recursive loops inside one another
  int64_t range = 100'000;   // elements of range(), as Jinja2's sandbox
  size_t output_bytes = 1 << 20;  // of the result and of every string on the way
  std::chrono::milliseconds time{250};
  std::function<std::chrono::steady_clock::time_point()> clock;  // empty: steady_clock
};

// Bytes [begin, end) of a prompt, from the template or from a user.
struct Segment {
  size_t begin, end;
  bool is_user;
  bool operator==(const Segment&) const = default;
};

// Segments cover the text in order and take turns. A special token may be parsed only where it lies wholly in bytes
// that are not a user's: what a user types stays text.
struct RenderedPrompt {
  std::string text;
  std::vector<Segment> segments;
};

// What apply_chat_template of transformers gives a template. Strings in `messages`, `tools`, `documents` and `kwargs`
// are a user's, but for the well-known roles (templates build tokens of them: '<|' + role + '|>').
struct ChatInput {
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  nlohmann::ordered_json tools;      // null: none
  nlohmann::ordered_json documents;  // null: none
  bool add_generation_prompt = true;
  bool continue_final_message =
      false;  // the text ends with the last message, so that the model goes on with it
  std::string bos_token, eos_token;
  nlohmann::ordered_json kwargs =
      nlohmann::ordered_json::object();  // chat_template_kwargs; cannot replace the above
};

struct ParsedTemplate;

class ChatTemplate {
 public:
  // INVALID_ARGUMENT names line and column: "chat template, line 3, column 7: ...".
  static Result<ChatTemplate> parse(std::string_view source);

  // INVALID_ARGUMENT: the template refused (reason "template_refused": exactly the words of raise_exception) or does not
  // fit the input (line and column); reason "template_limit" where a limit ended it.
  Result<std::string> render(const nlohmann::ordered_json& variables, const RenderLimits& limits,
                             std::chrono::system_clock::time_point now) const;
  // The same for a chat request, with the origin of each byte.
  Result<RenderedPrompt> render_prompt(const ChatInput& input, const RenderLimits& limits,
                                       std::chrono::system_clock::time_point now) const;

 private:
  explicit ChatTemplate(std::shared_ptr<const ParsedTemplate> parsed) : parsed_(std::move(parsed)) {}
  std::shared_ptr<const ParsedTemplate> parsed_;
};

}  // namespace restkv

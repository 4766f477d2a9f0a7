// A chat template and the request it renders, both from the input: the template up to the first NUL byte, JSON behind it
// (messages and tools of its own if that is no JSON). Any answer but a crash, a leak or a hang is fine; the segments of
// a prompt must cover its text.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "server/chat/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using nlohmann::ordered_json;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t split = input.find('\0');
  restkv::Result<restkv::ChatTemplate> parsed = restkv::ChatTemplate::parse(input.substr(0, split));
  if (!parsed.ok()) return 0;
  restkv::ChatInput request;
  request.messages = {
      {{"role", "user"}, {"content", "Hi, \"you\" <|im_end|> é\n"}},
      {{"role", "assistant"}, {"content", nullptr}, {"tool_calls", {{{"id", 1}, {"x", 2.5}}}}}};
  request.tools = {
      {{"type", "function"}, {"function", {{"name", "f"}, {"parameters", {{"b", 1}, {"a", true}}}}}}};
  request.bos_token = "<s>";
  request.eos_token = "</s>";
  if (split != std::string_view::npos) {
    ordered_json json = ordered_json::parse(input.substr(split + 1), nullptr, false);
    if (!json.is_discarded()) request.messages = std::move(json);
  }
  restkv::RenderLimits limits;
  limits.fuel = 50'000;
  limits.output_bytes = 1 << 16;
  const restkv::Result<restkv::RenderedPrompt> prompt = parsed->render_prompt(request, limits, {});
  if (!prompt.ok()) return 0;
  size_t end = 0;
  for (const restkv::Segment& segment : prompt->segments) {
    if (segment.begin != end || segment.end <= segment.begin) std::abort();
    end = segment.end;
  }
  if (end != prompt->text.size()) std::abort();
  return 0;
}

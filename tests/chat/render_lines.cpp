// For compare_jinja2.py: each line of the input is {"template": text, "variables": object}; each line of the output is
// {"text": rendered} or {"error": message}.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "server/chat/chat_template.h"

namespace restkv {
namespace {

nlohmann::ordered_json render(const nlohmann::ordered_json& line, std::chrono::system_clock::time_point now) {
  Result<ChatTemplate> parsed = ChatTemplate::parse(line["template"].get<std::string>());
  if (!parsed.ok()) return {{"error", parsed.status().message()}};
  Result<std::string> text = parsed->render(line["variables"], RenderLimits(), now);
  if (!text.ok()) return {{"error", text.status().message()}};
  return {{"text", *text}};
}

}  // namespace
}  // namespace restkv

int main() {
  // 2026-01-15 12:00:00 UTC; the script sets TZ.
  const auto now = std::chrono::system_clock::from_time_t(1768478400);
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << restkv::render(nlohmann::ordered_json::parse(line), now).dump() << "\n";
  }
}

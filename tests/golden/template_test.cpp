// Every recorded conversation of every chat template, as transformers renders it: the same bytes, the same refusal, or
// an error where transformers fails. Templates from RESTKV_TEMPLATES_DIR, cases from RESTKV_GOLDEN_TEMPLATES_DIR.
#include <ctime>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "server/chat/chat_template.h"
#include "tests/golden/golden_folder.h"

namespace fs = std::filesystem;

namespace restkv {
namespace {

// "file/case" -> why the bytes may differ. At most 3 % of the cases.
const std::map<std::string, std::string>& exceptions() {
  static const std::map<std::string, std::string> kExceptions = {};
  return kExceptions;
}
constexpr double kMaxExceptions = 0.03;

std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// "2026-01-15T12:00:00", local time as in Python's naive datetime.
std::chrono::system_clock::time_point parse_time(const std::string& text) {
  std::tm local = {};
  local.tm_isdst = -1;
  std::sscanf(text.c_str(), "%d-%d-%dT%d:%d:%d", &local.tm_year, &local.tm_mon, &local.tm_mday,
              &local.tm_hour, &local.tm_min, &local.tm_sec);
  local.tm_year -= 1900;
  local.tm_mon -= 1;
  return std::chrono::system_clock::from_time_t(std::mktime(&local));
}

// Empty: as expected; otherwise what is wrong.
std::string check(const ChatTemplate& chat_template, const nlohmann::ordered_json& test_case,
                  std::chrono::system_clock::time_point now) {
  ChatInput input;
  input.messages = test_case["messages"];
  input.tools = test_case["tools"];
  input.add_generation_prompt = test_case["add_generation_prompt"];
  input.bos_token = test_case["bos_token"];
  input.eos_token = test_case["eos_token"];
  RenderLimits limits;
  limits.time = std::chrono::seconds(10);  // a golden case is about bytes, also under a sanitizer
  Result<RenderedPrompt> prompt = chat_template.render_prompt(input, limits, now);
  if (test_case["error"].get<bool>()) {
    if (prompt.ok())
      return "rendered, but transformers fails: " + test_case["error_message"].get<std::string>();
    const std::string refusal = "TemplateError: ", expected = test_case["error_message"];
    if (expected.starts_with(refusal) && prompt.status().message() != expected.substr(refusal.size())) {
      return "refused with other words: " + prompt.status().message();
    }
    return "";
  }
  if (!prompt.ok()) return prompt.status().message();
  const std::string expected = test_case["expected"];
  if (prompt->text != expected) {
    size_t at = 0;
    while (at < prompt->text.size() && at < expected.size() && prompt->text[at] == expected[at]) ++at;
    const size_t from = at < 40 ? 0 : at - 40;
    return "differs at byte " + std::to_string(at) + ": got ..." + prompt->text.substr(from, 80) +
           "..., expected ..." + expected.substr(from, 80) + "...";
  }
  size_t end = 0;
  for (const Segment& segment : prompt->segments) {
    if (segment.begin != end || segment.end <= segment.begin) return "the segments do not follow one another";
    end = segment.end;
  }
  return end == expected.size() ? "" : "the segments do not cover the text";
}

int run() {
  golden::Run golden_run("RESTKV_GOLDEN_TEMPLATES_DIR", RESTKV_SHARED_DIR "/golden/templates");
  const golden::Run templates("RESTKV_TEMPLATES_DIR", RESTKV_SHARED_DIR "/data/templates");
  std::vector<fs::path> files;
  if (golden_run.has_folder()) {
    for (const auto& entry : fs::directory_iterator(golden_run.folder())) {
      if (entry.path().extension() == ".json") files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  int num_cases = 0, num_exceptions = 0;
  for (const fs::path& file : files) {
    const auto golden_file = nlohmann::ordered_json::parse(read_text(file), nullptr, false);
    if (golden_file.is_discarded()) {
      golden_run.fail(file.filename(), "not JSON");
      continue;
    }
    const std::string name = golden_file["template"];
    if (!fs::exists(templates.folder() / name)) {
      golden_run.fail(name, "the template is not in " + templates.folder().string());
      continue;
    }
    Result<ChatTemplate> chat_template = ChatTemplate::parse(read_text(templates.folder() / name));
    const auto now = parse_time(golden_file["now"]);
    for (const auto& test_case : golden_file["cases"]) {
      ++num_cases;
      const std::string case_name = name + "/" + test_case["name"].get<std::string>();
      const std::string wrong =
          chat_template.ok() ? check(*chat_template, test_case, now) : chat_template.status().message();
      const auto listed = exceptions().find(case_name);
      if (wrong.empty()) {
        golden_run.ran(case_name);
      } else if (listed != exceptions().end()) {
        ++num_exceptions;
        golden_run.skip(case_name, listed->second);
      } else {
        golden_run.fail(case_name, wrong);
      }
    }
  }
  if (num_exceptions > kMaxExceptions * num_cases)
    golden_run.fail("exceptions", "more than 3 % of the cases");
  return golden_run.finish();
}

}  // namespace
}  // namespace restkv

int main() { return restkv::run(); }

// restkv doctor [MODEL]: one line for each thing that a server needs. Exit 1: something fails.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "server/cli/machine_checks.h"
#include "server/cli/verbs.h"
#include "server/config/build_info.h"

namespace restkv {
namespace {

const char* level_name(FindingLevel level) {
  switch (level) {
    case FindingLevel::kOk: return "ok";
    case FindingLevel::kWarning: return "warn";
    case FindingLevel::kFailure: return "fail";
  }
  return "";
}

void print_json(const std::vector<Finding>& findings, bool is_well) {
  nlohmann::json checks = nlohmann::json::array();
  for (const Finding& finding : findings) {
    checks.push_back({{"name", finding.name},
                      {"level", level_name(finding.level)},
                      {"found", finding.found},
                      {"todo", finding.todo}});
  }
  const nlohmann::json all = {{"version", build_version()}, {"ok", is_well}, {"checks", std::move(checks)}};
  std::printf("%s\n", all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

}  // namespace

int run_doctor(const Invocation& invocation) {
  const Settings& settings = invocation.settings();
  std::vector<Finding> findings = {check_config(invocation.loaded), check_processor(), check_memory()};
  for (Finding& finding : check_gpu()) findings.push_back(std::move(finding));
  findings.push_back(check_port(settings.server));
  findings.push_back(check_file_limit(settings.server));
  findings.push_back(check_hub_cache(settings.model));
  findings.push_back(check_certificates());
  findings.push_back(check_model(settings.model));
  bool is_well = true;
  for (const Finding& finding : findings) is_well = is_well && finding.level != FindingLevel::kFailure;
  if (settings.output.json) {
    print_json(findings, is_well);
  } else {
    for (const Finding& finding : findings) {
      std::printf("%-4s  %-13s %s\n", level_name(finding.level), finding.name.c_str(), finding.found.c_str());
      if (!finding.todo.empty()) std::printf("%-4s  %-13s -> %s\n", "", "", finding.todo.c_str());
    }
  }
  return is_well ? kExitOk : kExitFailure;
}

}  // namespace restkv

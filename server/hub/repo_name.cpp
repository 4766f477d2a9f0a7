// Checks by allowed characters, never by a list of bad ones.
#include "server/hub/repo_name.h"

#include <algorithm>

#include "server/config/logging.h"

namespace restkv {
namespace {

constexpr size_t kMaxNameLen = 96;
constexpr size_t kMaxPathLen = 1024, kMaxPartLen = 255;
constexpr std::string_view kCacheFolder = "models--";

bool is_name_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
         c == '.';
}

bool is_hub_name(std::string_view name) {
  if (name.empty() || name.size() > kMaxNameLen) return false;
  if (!std::all_of(name.begin(), name.end(), is_name_char)) return false;
  for (const char c : {name.front(), name.back()}) {
    if (c == '-' || c == '.') return false;
  }
  return name.find("--") == std::string_view::npos && name.find("..") == std::string_view::npos;
}

bool is_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

Status bad_name(std::string_view what, std::string_view name, std::string_view reason) {
  return invalid_argument(std::string(what) + " '" + escape_text(name.substr(0, 100)) + "' " +
                          std::string(reason));
}

}  // namespace

Result<RepoName> parse_repo_name(std::string_view text) {
  const size_t colon = text.find(':');
  const std::string_view full = text.substr(0, colon);
  const size_t slash = full.find('/');
  RepoName name;
  if (slash != std::string_view::npos) {
    name.org = full.substr(0, slash);
    name.repo = full.substr(slash + 1);
  }
  if (!is_hub_name(name.org) || !is_hub_name(name.repo) || full.ends_with(".gguf")) {
    return bad_name("the name", text,
                    "is not ORG/REPO[:QUANT], as in bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M");
  }
  if (colon != std::string_view::npos) {
    name.quant = text.substr(colon + 1);
    if (name.quant.empty()) return bad_name("the name", text, "has nothing behind ':'");
    if (Status status = check_file_name(name.quant); !status.ok()) return status;
  }
  return name;
}

std::optional<RepoName> repo_of_folder(std::string_view folder) {
  if (!folder.starts_with(kCacheFolder)) return std::nullopt;
  const std::string_view rest = folder.substr(kCacheFolder.size());
  const size_t middle = rest.find("--");
  if (middle == std::string_view::npos) return std::nullopt;
  RepoName name{std::string(rest.substr(0, middle)), std::string(rest.substr(middle + 2)), {}};
  if (!is_hub_name(name.org) || !is_hub_name(name.repo)) return std::nullopt;
  return name;
}

Status check_file_name(std::string_view name) {
  if (name.empty() || name.size() > kMaxPathLen)
    return bad_name("the file name", name, "is empty or too long");
  for (const char c : name) {
    if (static_cast<unsigned char>(c) < ' ' || c == 0x7f || c == '\\') {
      return bad_name("the file name", name, "has a character that no file name may have");
    }
  }
  for (std::string_view rest = name;;) {
    const std::string_view part = rest.substr(0, rest.find('/'));
    if (part.empty() || part == "." || part == ".." || part.size() > kMaxPartLen) {
      return bad_name("the file name", name, "leads out of its folder or is not a plain relative path");
    }
    if (part.size() == rest.size()) return {};
    rest.remove_prefix(part.size() + 1);
  }
}

Status check_revision(std::string_view revision) {
  const auto is_allowed = [](char c) { return is_name_char(c) || c == '/'; };
  if (!check_file_name(revision).ok() || !std::all_of(revision.begin(), revision.end(), is_allowed)) {
    return bad_name("the revision", revision, "is not a branch, a tag or a commit");
  }
  return {};
}

bool is_commit(std::string_view text) { return text.size() == 40 && is_hex(text); }

bool is_digest(std::string_view text) { return (text.size() == 40 || text.size() == 64) && is_hex(text); }

}  // namespace restkv

#include "server/hub/hub_settings.h"

#include <algorithm>
#include <fstream>
#include <iterator>

#include "server/config/logging.h"
#include "server/config/quantity.h"

namespace restkv {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxTokenBytes = 4096;

bool is_true(const std::optional<std::string>& text) {
  if (!text) return false;
  std::string lower(*text);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  return lower == "1" || lower == "true" || lower == "yes" || lower == "on";
}

// A leading ~ is the home folder, as in Python's expanduser.
fs::path expand_home(const std::string& path, const Environment& environment) {
  if (path != "~" && !path.starts_with("~/")) return path;
  const std::optional<std::string> home = environment("HOME");
  return home ? fs::path(*home + path.substr(1)) : fs::path(path);
}

fs::path hub_home(const Environment& environment) {
  if (const auto home = environment("HF_HOME")) return expand_home(*home, environment);
  if (const auto cache = environment("XDG_CACHE_HOME"))
    return expand_home(*cache, environment) / "huggingface";
  if (const auto home = environment("HOME")) return fs::path(*home) / ".cache" / "huggingface";
  return {};
}

std::string trimmed(std::string_view text) {
  const auto is_space = [](char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; };
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return std::string(text);
}

Result<std::string> read_token(const Environment& environment, const fs::path& home) {
  std::string where = "HF_TOKEN", token;
  if (const auto given = environment("HF_TOKEN")) {
    token = trimmed(*given);
  } else {
    const auto named = environment("HF_TOKEN_PATH");
    const fs::path path = named ? expand_home(*named, environment) : home / "token";
    where = "the token file " + path.string();
    std::ifstream file(path, std::ios::binary);
    if (!file) return std::string();
    std::string content(kMaxTokenBytes + 1, '\0');
    file.read(content.data(), static_cast<std::streamsize>(content.size()));
    content.resize(static_cast<size_t>(file.gcount()));
    token = trimmed(content);
  }
  // It becomes part of a header; its text is in no message.
  const bool is_plain = std::all_of(token.begin(), token.end(), [](char c) { return c > ' ' && c < 0x7f; });
  if (!is_plain || token.size() > kMaxTokenBytes)
    return invalid_argument(where + " does not hold a token: one line of letters, digits and '_'");
  return token;
}

}  // namespace

Result<HubSettings> read_hub_settings(const Environment& environment, const std::string& cache_folder) {
  HubSettings settings;
  if (const auto endpoint = environment("HF_ENDPOINT")) settings.endpoint = *endpoint;
  while (settings.endpoint.ends_with('/')) settings.endpoint.pop_back();
  const bool has_scheme =
      settings.endpoint.starts_with("https://") || settings.endpoint.starts_with("http://");
  const bool is_plain = std::all_of(settings.endpoint.begin(), settings.endpoint.end(), [](char c) {
    return c > ' ' && c < 0x7f && c != '@' && c != '?' && c != '#';
  });
  if (!has_scheme || !is_plain) {
    return invalid_argument("HF_ENDPOINT: '" + escape_text(settings.endpoint.substr(0, 100)) +
                            "' is not an address such as https://huggingface.co");
  }
  const fs::path home = hub_home(environment);
  if (!cache_folder.empty()) {
    settings.cache = expand_home(cache_folder, environment);
  } else if (const auto cache = environment("HF_HUB_CACHE")) {
    settings.cache = expand_home(*cache, environment);
  } else if (!home.empty()) {
    settings.cache = home / "hub";
  } else {
    return not_found("no place for models: none of HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME and HOME is set");
  }
  Result<std::string> token = read_token(environment, home);
  if (!token.ok()) return token.status();
  settings.token = *std::move(token);
  settings.certificates = environment("SSL_CERT_FILE").value_or("");
  settings.offline = is_true(environment("HF_HUB_OFFLINE")) || is_true(environment("TRANSFORMERS_OFFLINE"));
  if (const auto seconds = environment("HF_HUB_DOWNLOAD_TIMEOUT")) {
    const Result<int64_t> value = parse_count(*seconds);
    if (!value.ok() || *value < 1 || *value > 3600)
      return invalid_argument("HF_HUB_DOWNLOAD_TIMEOUT: '" + escape_text(seconds->substr(0, 40)) +
                              "' is not a number of seconds from 1 to 3600");
    settings.stall_timeout = std::chrono::seconds(*value);
  }
  return settings;
}

}  // namespace restkv

#include "server/hub/hub_client.h"

#include <curl/curl.h>

#include <charconv>
#include <cstring>

#include "server/config/build_info.h"
#include "server/config/logging.h"

namespace restkv {
namespace {

constexpr int kMaxRedirects = 10;
constexpr long kConnectSeconds = 10;
constexpr int64_t kMaxUnreadBytes =
    1 << 20;  // of an answer that is no file: its status and headers are what counts

void set_up_curl() {
  static const CURLcode code = curl_global_init(CURL_GLOBAL_DEFAULT);
  CHECK(code == CURLE_OK) << curl_easy_strerror(code);
}

struct Origin {
  std::string scheme, host, port;
  bool operator==(const Origin&) const = default;
  std::string text() const {
    return scheme + "://" + host + (port == "443" || port == "80" ? "" : ":" + port);
  }
  bool is_loopback() const {
    return host == "localhost" || host == "[::1]" ||
           (host.starts_with("127.") && host.find_first_not_of("0123456789.") == std::string::npos);
  }
};

// Of an absolute http or https address; empty scheme: it is none.
Origin origin_of(const std::string& url) {
  Origin origin;
  CURLU* parsed = curl_url();
  if (curl_url_set(parsed, CURLUPART_URL, url.c_str(), 0) == CURLUE_OK) {
    const auto part = [&](CURLUPart which, unsigned flags) {
      char* text = nullptr;
      std::string result;
      if (curl_url_get(parsed, which, &text, flags) == CURLUE_OK) result = text;
      curl_free(text);
      return result;
    };
    origin = {part(CURLUPART_SCHEME, 0), part(CURLUPART_HOST, 0), part(CURLUPART_PORT, CURLU_DEFAULT_PORT)};
  }
  curl_url_cleanup(parsed);
  if (origin.scheme != "http" && origin.scheme != "https") origin = {};
  return origin;
}

int64_t number_of(std::string_view text, int64_t otherwise) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && value >= 0 ? value : otherwise;
}

bool has_name(std::string_view line, std::string_view name, std::string_view* value) {
  if (line.size() <= name.size() || line[name.size()] != ':') return false;
  if (strncasecmp(line.data(), name.data(), name.size()) != 0) return false;
  *value = line.substr(name.size() + 1);
  while (!value->empty() && (value->front() == ' ' || value->front() == '\t')) value->remove_prefix(1);
  while (!value->empty() && (value->back() == '\r' || value->back() == '\n' || value->back() == ' '))
    value->remove_suffix(1);
  return true;
}

void read_header(std::string_view line, HubReply* reply) {
  std::string_view value;
  if (has_name(line, "x-error-code", &value)) reply->error_code = escape_text(value.substr(0, 60));
  if (has_name(line, "x-error-message", &value)) reply->error_message = escape_text(value.substr(0, 300));
  if (has_name(line, "retry-after", &value)) reply->retry_after = number_of(value, 0);
  if (has_name(line, "content-range", &value) && value.starts_with("bytes ")) {  // bytes 100-199/200
    value.remove_prefix(6);
    reply->first_byte = number_of(value, -1);
    const size_t slash = value.find('/');
    if (slash != std::string_view::npos) reply->total_size = number_of(value.substr(slash + 1), -1);
  }
}

}  // namespace

// What libcurl's callbacks see of one exchange.
struct HubClient::Connection {
  CURL* curl = nullptr;
  char error[CURL_ERROR_SIZE] = {};
  HubReply reply;
  const Sink* sink = nullptr;
  const StopFlag* is_stopped = nullptr;
  bool sink_ended = false;
  int64_t unread_bytes = 0;
  bool has_endless_body() const { return unread_bytes > kMaxUnreadBytes; }

  ~Connection() { curl_easy_cleanup(curl); }

  static size_t on_header(char* data, size_t size, size_t count, void* self) {
    HubReply& reply = static_cast<Connection*>(self)->reply;
    const std::string_view line(data, size * count);
    if (line.starts_with("HTTP/")) reply = {};  // a further head, after 100 or a proxy's
    read_header(line, &reply);
    return size * count;
  }
  static size_t on_body(char* data, size_t size, size_t count, void* self) {
    auto& connection = *static_cast<Connection*>(self);
    long status = 0;
    curl_easy_getinfo(connection.curl, CURLINFO_RESPONSE_CODE, &status);
    connection.reply.status = static_cast<int>(status);
    if (status < 200 || status > 299) {  // the headers say what is wrong
      connection.unread_bytes += static_cast<int64_t>(size * count);
      return connection.has_endless_body() ? 0 : size * count;
    }
    if (status != 206) connection.reply.first_byte = 0;
    if ((*connection.sink)(connection.reply, {data, size * count})) return size * count;
    connection.sink_ended = true;
    return 0;
  }
  static int on_progress(void* self, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
    return (*static_cast<Connection*>(self)->is_stopped)() ? 1 : 0;
  }
};

HubClient::HubClient(const HubSettings& settings)
    : connection_(std::make_unique<Connection>()), settings_(settings) {
  set_up_curl();
  CURL* curl = connection_->curl = curl_easy_init();
  CHECK(curl != nullptr) << "libcurl gives no handle";
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, kConnectSeconds);
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, static_cast<long>(settings.stall_timeout.count()));
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, connection_->error);
  curl_easy_setopt(curl, CURLOPT_USERAGENT, ("restkv/" + std::string(build_version())).c_str());
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, Connection::on_header);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, connection_.get());
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, Connection::on_body);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, connection_.get());
  curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, Connection::on_progress);
  curl_easy_setopt(curl, CURLOPT_XFERINFODATA, connection_.get());
  if (!settings.uses_proxy) curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
  if (!settings.certificates.empty()) curl_easy_setopt(curl, CURLOPT_CAINFO, settings.certificates.c_str());
}

HubClient::~HubClient() = default;

Result<HubReply> HubClient::get(const std::string& path, int64_t offset, const Sink& sink,
                                const StopFlag& is_stopped) {
  Connection& connection = *connection_;
  CURL* curl = connection.curl;
  connection.sink = &sink;
  connection.is_stopped = &is_stopped;
  connection.sink_ended = false;
  const Origin home = origin_of(settings_.endpoint);
  const bool may_tell = home.scheme == "https" || home.is_loopback();
  std::string url = settings_.endpoint + path;
  for (int step = 0; step <= kMaxRedirects; ++step) {
    const Origin origin = origin_of(url);
    if (origin.scheme.empty() || (home.scheme == "https" && origin.scheme != "https")) {
      return Status(StatusCode::kFailedPrecondition,
                    home.text() + " redirects to an address that is not " + home.scheme);
    }
    curl_slist* headers = nullptr;
    if (!settings_.token.empty() && may_tell && origin == home)
      headers = curl_slist_append(headers, ("Authorization: Bearer " + settings_.token).c_str());
    if (offset > 0)
      headers = curl_slist_append(headers, ("Range: bytes=" + std::to_string(offset) + "-").c_str());
    connection.reply = {};
    connection.error[0] = '\0';
    connection.unread_bytes = 0;
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
    const CURLcode code = curl_easy_perform(curl);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, nullptr);
    curl_slist_free_all(headers);
    if (connection.sink_ended || is_stopped())
      return Status(StatusCode::kCancelled, "the download was stopped");
    if (code != CURLE_OK && !connection.has_endless_body()) {
      const bool is_trust = code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CACERT_BADFILE;
      return Status(
                 is_trust ? StatusCode::kFailedPrecondition : StatusCode::kUnavailable,
                 origin.text() + ": " +
                     escape_text(connection.error[0] != '\0' ? connection.error : curl_easy_strerror(code)) +
                     (is_trust ? " (SSL_CERT_FILE names the certificates of an authority of your own)" : ""))
          .with_reason(code == CURLE_COULDNT_CONNECT || code == CURLE_COULDNT_RESOLVE_HOST ? "no_connection"
                                                                                           : "");
    }
    long status = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    connection.reply.status = static_cast<int>(status);
    const bool is_redirect =
        status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
    if (!is_redirect) return connection.reply;
    const char* next = nullptr;
    curl_easy_getinfo(curl, CURLINFO_REDIRECT_URL, &next);
    if (next == nullptr) return Status(StatusCode::kUnavailable, origin.text() + ": a redirect to nowhere");
    url = next;
  }
  return Status(StatusCode::kFailedPrecondition,
                home.text() + ": more than " + std::to_string(kMaxRedirects) + " redirects");
}

std::string escape_path(std::string_view path) {
  constexpr char kDigits[] = "0123456789ABCDEF";
  std::string result;
  for (const char c : path) {
    const auto byte = static_cast<unsigned char>(c);
    const bool is_plain = (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') ||
                          (byte >= '0' && byte <= '9') || std::strchr("-._~/", c) != nullptr;
    if (is_plain && c != '\0') {
      result += c;
    } else {
      result += {'%', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
  return result;
}

}  // namespace restkv

#include "server/cli/download_view.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "server/cli/terminal.h"
#include "server/config/logging.h"
#include "server/config/quantity.h"

namespace restkv {
namespace {

constexpr std::chrono::milliseconds kRedraw{100}, kPlainInterval{5'000};
constexpr size_t kNameWidth = 34, kBarCells = 20;
constexpr size_t kMaxBars = 8;

std::string fitted(std::string text, size_t width) {
  if (text.size() > width) text = "..." + text.substr(text.size() - width + 3);
  text.resize(width, ' ');
  return text;
}

std::string bar_of(int64_t done, int64_t total) {
  const double share =
      total > 0 ? std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0) : 1.0;
  const auto filled = static_cast<size_t>(share * kBarCells);
  char text[64];
  std::snprintf(text, sizeof text, "[%s%s] %3d %%", std::string(filled, '#').c_str(),
                std::string(kBarCells - filled, '.').c_str(), static_cast<int>(share * 100));
  return text;
}

std::string clock_text(double seconds) {
  const auto whole = static_cast<int64_t>(std::clamp(seconds, 0.0, 359'999.0));
  char text[32];
  if (whole >= 3600) {
    std::snprintf(text, sizeof text, "%d:%02d:%02d", static_cast<int>(whole / 3600),
                  static_cast<int>(whole / 60 % 60), static_cast<int>(whole % 60));
  } else {
    std::snprintf(text, sizeof text, "%d:%02d", static_cast<int>(whole / 60), static_cast<int>(whole % 60));
  }
  return text;
}

size_t terminal_width() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}

}  // namespace

DownloadView::DownloadView() : is_terminal_(stderr_is_terminal() && !logs_as_json()) {}

DownloadView::~DownloadView() { clear_bars(); }

void DownloadView::on_plan(const RepoName& name, std::span<const RepoFile> files) {
  title_ = name.full();
  for (const RepoFile& file : files) {
    files_.push_back({escape_text(file.name), file.size});
    total_ += file.size;
  }
  start_ = shown_ = Clock::now();
  print_line("pulling " + title_ + ": " + std::to_string(files.size()) +
             (files.size() == 1 ? " file, " : " files, ") + rounded_size_text(total_));
}

void DownloadView::on_bytes(size_t index, int64_t done) {
  File& file = files_[index];
  if (!file.is_started) found_ += done;
  file.is_started = true;
  done_ += done - file.done;
  file.done = done;
  if (Clock::now() - shown_ < (is_terminal_ ? std::chrono::milliseconds(kRedraw) : kPlainInterval)) return;
  shown_ = Clock::now();
  if (is_terminal_) {
    draw_bars();
  } else {
    print_progress();
  }
}

void DownloadView::on_file_done(size_t index) {
  files_[index].is_finished = true;
  print_line(files_[index].name + "  " + rounded_size_text(files_[index].size), "  ");
}

void DownloadView::on_message(const std::string& line) { print_line(line, "restkv: "); }

std::string DownloadView::total_text() const {
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  const double rate = seconds > 0 ? static_cast<double>(std::max<int64_t>(0, done_ - found_)) / seconds : 0;
  std::string text = rounded_size_text(done_) + " of " + rounded_size_text(total_);
  if (rate >= 1) {
    text += ", " + rounded_size_text(static_cast<int64_t>(rate)) + "/s, " +
            clock_text(static_cast<double>(total_ - done_) / rate) + " left";
  }
  return text;
}

void DownloadView::print_progress() {
  const double share = total_ > 0 ? static_cast<double>(done_) / static_cast<double>(total_) : 1.0;
  print_line("pulling " + title_ + ": " + std::to_string(static_cast<int>(100.0 * share)) + " %, " +
             total_text());
}

void DownloadView::print_line(const std::string& line, const char* prefix) {
  if (logs_as_json()) return log_event(LogLevel::kInfo, line);
  clear_bars();
  std::fprintf(stderr, "%s%s\n", prefix, line.c_str());
}

void DownloadView::draw_bars() {
  clear_bars();
  const size_t width = terminal_width() - 1;
  const auto draw = [&](const std::string& line) {
    std::fprintf(stderr, "%s\n", line.substr(0, width).c_str());
    ++drawn_lines_;
  };
  size_t num_bars = 0;
  for (const File& file : files_) {
    if (!file.is_started || file.is_finished || num_bars++ == kMaxBars) continue;
    draw(fitted(file.name, kNameWidth) + " " + bar_of(file.done, file.size) + " of " +
         rounded_size_text(file.size));
  }
  draw(fitted("in all", kNameWidth) + " " + bar_of(done_, total_) + "  " + total_text());
}

void DownloadView::clear_bars() {
  for (; drawn_lines_ > 0; --drawn_lines_) std::fputs("\x1b[1A\x1b[2K", stderr);
}

}  // namespace restkv

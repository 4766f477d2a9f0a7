// What people see of a download, on stderr. On a terminal: a bar for each file in work and one for all of them, with rate
// and remaining time, redrawn in place. Elsewhere: plain lines, one a file and one every five seconds.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "server/hub/pull.h"

namespace restkv {

class DownloadView : public PullObserver {
 public:
  DownloadView();
  ~DownloadView() override;
  DownloadView(const DownloadView&) = delete;
  DownloadView& operator=(const DownloadView&) = delete;

  void on_plan(const RepoName& name, std::span<const RepoFile> files) override;
  void on_bytes(size_t file, int64_t done) override;
  void on_file_done(size_t file) override;
  void on_message(const std::string& line) override;

 private:
  using Clock = std::chrono::steady_clock;
  struct File {
    std::string name = {};
    int64_t size = 0, done = 0;
    bool is_started = false, is_finished = false;
  };

  void print_line(const std::string& line,
                  const char* prefix = "");  // above the bars; in a JSON log an event
  void draw_bars();
  void clear_bars();
  void print_progress();
  std::string total_text() const;

  std::vector<File> files_;
  std::string title_;
  int64_t total_ = 0, done_ = 0;
  int64_t found_ = 0;  // bytes that earlier tries left: they count as done, not for the rate
  Clock::time_point start_{}, shown_{};
  int drawn_lines_ = 0;
  const bool is_terminal_;
};

}  // namespace restkv

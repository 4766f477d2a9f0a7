// The registry of mappings is a fixed array of atomics: the handler may neither lock nor allocate.
#include "engine/model/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <mutex>

namespace restkv {
namespace {

struct Slot {
  std::atomic<bool> taken{false};
  std::atomic<const std::byte*> begin{nullptr};  // null: the handler passes it by
  std::atomic<size_t> size{0};
  std::atomic<const char*> path{nullptr};
  std::atomic<const MappedFile::NamedRange*> ranges{nullptr};  // [num_ranges]
  std::atomic<size_t> num_ranges{0};
};

constexpr int kNumSlots = 1024;
std::array<Slot, kNumSlots> g_slots;

void write_text(const char* text) {
  const size_t size = std::strlen(text);
  for (size_t done = 0; done < size;) {
    const ssize_t written = ::write(STDERR_FILENO, text + done, size - done);
    if (written <= 0) return;
    done += static_cast<size_t>(written);
  }
}

bool contains(const std::byte* begin, size_t size, const std::byte* address) {
  return begin != nullptr && address >= begin && address < begin + size;
}

void on_sigbus(int, siginfo_t* info, void*) {
  // A signal that was sent (si_code <= 0) has no address.
  const std::byte* address = info->si_code > 0 ? static_cast<const std::byte*>(info->si_addr) : nullptr;
  for (const Slot& slot : g_slots) {
    if (!contains(slot.begin.load(), slot.size.load(), address)) continue;
    write_text("restkv: fatal: the model file ");
    write_text(slot.path.load());
    write_text(" became shorter, or its disk failed, while it was in use");
    const MappedFile::NamedRange* ranges = slot.ranges.load();
    for (size_t i = 0; ranges != nullptr && i < slot.num_ranges.load(); ++i) {
      if (!contains(ranges[i].begin, ranges[i].size, address)) continue;
      write_text(" (at tensor ");
      write_text(ranges[i].name.c_str());
      write_text(")");
      break;
    }
    write_text("\n");
    ::_exit(kSigbusExitCode);
  }
  // Not ours: the default action, as soon as this handler has returned.
  struct sigaction fallback = {};
  fallback.sa_handler = SIG_DFL;
  ::sigaction(SIGBUS, &fallback, nullptr);
  ::raise(SIGBUS);
}

void install_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action = {};
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    ::sigaction(SIGBUS, &action, nullptr);
  });
}

int take_slot() {
  for (int i = 0; i < kNumSlots; ++i) {
    bool expected = false;
    if (g_slots[static_cast<size_t>(i)].taken.compare_exchange_strong(expected, true)) return i;
  }
  return -1;
}

struct FileDescriptor {
  int fd;
  ~FileDescriptor() {
    if (fd >= 0) ::close(fd);
  }
};

}  // namespace

Result<std::shared_ptr<const MappedFile>> MappedFile::open(const std::string& path) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  const FileDescriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) {
    const StatusCode code = errno == ENOENT   ? StatusCode::kNotFound
                            : errno == EACCES ? StatusCode::kPermissionDenied
                                              : StatusCode::kFailedPrecondition;
    return Status(code, "cannot open " + path + ": " + std::strerror(errno));
  }
  struct stat info = {};
  if (::fstat(file.fd, &info) != 0) {
    return Status(StatusCode::kFailedPrecondition, "cannot read " + path + ": " + std::strerror(errno));
  }
  if (!S_ISREG(info.st_mode)) return invalid_argument(path + " is not a regular file");
  if (info.st_size == 0) return invalid_argument(path + " is empty");
  const size_t size = static_cast<size_t>(info.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.fd, 0);
  if (data == MAP_FAILED) {
    return Status(StatusCode::kFailedPrecondition, "cannot map " + path + ": " + std::strerror(errno));
  }
  install_handler();
  return std::shared_ptr<const MappedFile>(new MappedFile(path, static_cast<const std::byte*>(data), size));
}

MappedFile::MappedFile(std::string path, const std::byte* data, size_t size)
    : path_(std::move(path)), data_(data), size_(size), slot_(take_slot()) {
  if (slot_ < 0) return;
  Slot& slot = g_slots[static_cast<size_t>(slot_)];
  slot.path = path_.c_str();
  slot.size = size_;
  slot.begin = data_;
}

MappedFile::~MappedFile() {
  if (slot_ >= 0) {
    Slot& slot = g_slots[static_cast<size_t>(slot_)];
    slot.begin = nullptr;
    slot.ranges = nullptr;
    slot.num_ranges = 0;
    slot.taken = false;
  }
  ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::name_ranges(std::vector<NamedRange> ranges) const {
  if (!ranges_.empty()) return;
  ranges_ = std::move(ranges);
  if (slot_ < 0) return;
  Slot& slot = g_slots[static_cast<size_t>(slot_)];
  slot.num_ranges = ranges_.size();
  slot.ranges = ranges_.data();
}

Status MappedFile::populate(size_t offset, size_t size) const {
  CHECK(offset <= size_ && size <= size_ - offset) << path_ << " " << offset << " " << size;
  struct stat info = {};
  if (::stat(path_.c_str(), &info) == 0 && static_cast<size_t>(info.st_size) < size_) {
    return Status(StatusCode::kFailedPrecondition,
                  path_ + " became shorter while it was loaded: " + std::to_string(info.st_size) + " of " +
                      std::to_string(size_) + " bytes are left");
  }
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t begin = offset / page * page;
#ifdef MADV_POPULATE_READ
  // Linux 5.14: reads the pages now and reports what would be a SIGBUS.
  if (::madvise(const_cast<std::byte*>(data_) + begin, offset + size - begin, MADV_POPULATE_READ) == 0)
    return {};
  if (errno == EFAULT) {
    return Status(StatusCode::kFailedPrecondition,
                  path_ + " cannot be read to its end: shorter than it was, or a disk error");
  }
#endif
  volatile std::byte sink{};
  for (size_t at = begin; at < offset + size; at += page) sink = data_[at];
  static_cast<void>(sink);
  return {};
}

}  // namespace restkv

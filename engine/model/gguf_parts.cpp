#include "engine/model/gguf_parts.h"

#include <cstdio>

namespace restkv {
namespace {

constexpr int64_t kMaxParts = 99'999;  // five digits

// "-00002-of-00003.gguf" of part 2 of 3.
std::string part_tail(int64_t number, int64_t count) {
  char tail[64];
  std::snprintf(tail, sizeof(tail), "-%05lld-of-%05lld.gguf", static_cast<long long>(number),
                static_cast<long long>(count));
  return tail;
}

// What a file says of itself: part `no` (from 0) of `count`; a file of its own is part 0 of 1.
struct Part {
  int64_t no = 0;
  int64_t count = 1;
};

Result<Part> part_of(const GgufFile& file) {
  const Result<std::optional<int64_t>> no = file.get_int("split.no"), count = file.get_int("split.count");
  if (!no.ok()) return no.status();
  if (!count.ok()) return count.status();
  const Part part{no->value_or(0), count->value_or(1)};
  // a file that was split into itself alone may say 0
  if (part.count <= 1) return Part();
  if (part.count > kMaxParts || part.no < 0 || part.no >= part.count) {
    return invalid_argument(file.path() + ": 'split.no' " + std::to_string(part.no) + " of 'split.count' " +
                            std::to_string(part.count));
  }
  return part;
}

Status check_part(const GgufFile& file, int64_t no, int64_t count) {
  const Result<Part> part = part_of(file);
  if (!part.ok()) return part.status();
  if (part->no == no && part->count == count) return {};
  return invalid_argument(file.path() + " says that it is part " + std::to_string(part->no + 1) + " of " +
                          std::to_string(part->count) + "; its name says " + std::to_string(no + 1) + " of " +
                          std::to_string(count));
}

}  // namespace

std::string gguf_model_name(const std::string& path) {
  const std::string name = path.substr(path.find_last_of('/') + 1);
  long long number = 0, count = 0;
  const std::string::size_type tail = name.rfind("-of-");
  if (tail != std::string::npos && tail > 6 &&
      std::sscanf(name.c_str() + tail - 6, "-%5lld-of-%5lld.gguf", &number, &count) == 2 &&
      name.ends_with(part_tail(number, count))) {
    return name.substr(0, tail - 6);
  }
  return name.ends_with(".gguf") ? name.substr(0, name.size() - 5) : name;
}

Result<GgufFile> open_gguf_parts(const std::string& path) {
  Result<GgufFile> model = GgufFile::open(path);
  if (!model.ok()) return model;
  const Result<Part> first = part_of(*model);
  if (!first.ok()) return first.status();
  if (first->count == 1) return model;
  const std::string what = path + " is part " + std::to_string(first->no + 1) + " of a model in " +
                           std::to_string(first->count) + " files";
  const std::string tail = part_tail(first->no + 1, first->count);
  if (!path.ends_with(tail)) return invalid_argument(what + ", but its name does not end in " + tail);
  const std::string stem = path.substr(0, path.size() - tail.size());
  if (first->no != 0)
    return invalid_argument(what + "; name the first: " + stem + part_tail(1, first->count));

  for (int64_t no = 1; no < first->count; ++no) {
    const std::string name = stem + part_tail(no + 1, first->count);
    Result<GgufFile> part = GgufFile::open(name);
    if (!part.ok()) return Status(part.status().code(), what + ": " + part.status().message());
    if (Status bad = check_part(*part, no, first->count); !bad.ok()) return bad;
    if (Status bad = model->add_tensors(*part); !bad.ok()) return bad;
  }
  const Result<std::optional<int64_t>> expected = model->get_int("split.tensors.count");
  if (!expected.ok()) return expected.status();
  const auto found = static_cast<int64_t>(model->tensors().tensors.size());
  if (expected->value_or(found) != found) {
    return invalid_argument(what + ": they hold " + std::to_string(found) +
                            " tensors, 'split.tensors.count' is " + std::to_string(**expected));
  }
  return model;
}

}  // namespace restkv

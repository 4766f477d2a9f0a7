// Any bytes as the hub's answer: every name that is taken stays inside its folder, every hash is one, and a choice among
// the files names only files that are there.
#include <algorithm>
#include <cstdint>

#include "server/hub/file_choice.h"
#include "server/hub/repo_listing.h"
#include "server/hub/repo_name.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace restkv;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const Result<RepoListing> listing = parse_repo_listing(text);
  if (!listing.ok()) {
    CHECK(listing.status().message().starts_with("the hub's answer: ")) << listing.status().message();
    return 0;
  }
  CHECK(is_commit(listing->commit));
  for (const RepoFile& file : listing->files) {
    CHECK(check_file_name(file.name).ok() && is_digest(file.digest) && file.size >= 0) << file.name;
    CHECK(listing->find(file.name) == &file);
  }
  const std::vector<std::string> names = listing->names();
  for (const std::string& quant :
       {std::string(), std::string("Q4_0"), names.empty() ? std::string("x") : names.back()}) {
    const Result<FileChoice> choice = choose_files(names, quant);
    if (!choice.ok()) continue;
    for (const std::string& name : choice->names) {
      CHECK(std::find(names.begin(), names.end(), name) != names.end()) << name;
    }
  }
  if (const Result<std::vector<std::string>> shards = shards_of_index(text, names); shards.ok()) {
    for (const std::string& shard : *shards) CHECK(check_file_name(shard).ok());
  }
  return 0;
}

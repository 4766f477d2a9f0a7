// A mutex and a vector: a record is pushed once a step, taken by one reader.
#include "engine/token_stream.h"

namespace restkv {

void TokenStream::reserve(size_t records) {
  const std::lock_guard lock(mutex_);
  records_.reserve(records);
}

void TokenStream::push(TokenRecord record) {
  const std::lock_guard lock(mutex_);
  records_.push_back(std::move(record));
  wake_due_ = true;
}

void TokenStream::poke() {
  const std::lock_guard lock(mutex_);
  wake_due_ = true;
}

void TokenStream::flush() {
  {
    const std::lock_guard lock(mutex_);
    if (!wake_due_) return;
    wake_due_ = false;
    if (woken_) return;  // the reader has not come for the last ones yet
    woken_ = true;
  }
  if (wake_) wake_();
}

bool TokenStream::take(std::vector<TokenRecord>& out) {
  out.clear();
  const std::lock_guard lock(mutex_);
  out.swap(records_);
  woken_ = false;
  return !out.empty();
}

}  // namespace restkv

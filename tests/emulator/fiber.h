// Fibers: many stacks on one thread of the operating system, switched by hand. Works under address sanitizer.
#pragma once

#include <cstddef>

namespace restkv::emulator {

class Fiber {
 public:
  using Entry = void (*)(void* argument);

  explicit Fiber(size_t stack_bytes);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next resume() starts `entry` on an empty stack, whatever ran there before is dropped.
  void restart(Entry entry, void* argument);
  // Runs the fiber until it suspends; called by the thread's own stack.
  void resume();
  // Back to the caller of resume(); called on this fiber. `last`: it will not be resumed again before a restart.
  void suspend(bool last);

 private:
  static void start();

  std::byte* mapping_;
  std::byte* stack_;  // lowest usable byte; a guard page lies below
  size_t mapping_bytes_, stack_bytes_;
  void* own_sp_ = nullptr;
  void* caller_sp_ = nullptr;
  Entry entry_ = nullptr;
  void* argument_ = nullptr;
  // of address sanitizer
  void* own_fake_ = nullptr;
  void* caller_fake_ = nullptr;
  const void* caller_stack_ = nullptr;
  size_t caller_stack_bytes_ = 0;
};

}  // namespace restkv::emulator

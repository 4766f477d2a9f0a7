// x86-64: the callee-saved registers are pushed, the stack pointers exchanged. About 5 ns a switch, where swapcontext()
// takes two system calls.
#include "emulator/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define RESTKV_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RESTKV_ASAN 1
#endif
#endif
#if defined(RESTKV_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "tests/emulator/fiber.cpp knows x86-64 only"
#endif

// void restkv_switch_stack(void** save, void* load)
extern "C" void restkv_switch_stack(void** save, void* load);
asm(R"(
.text
.globl restkv_switch_stack
.type restkv_switch_stack, @function
restkv_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size restkv_switch_stack, .-restkv_switch_stack
)");

namespace restkv::emulator {
namespace {

thread_local Fiber* starting = nullptr;

}  // namespace

Fiber::Fiber(size_t stack_bytes) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  stack_bytes_ = (stack_bytes + page - 1) / page * page;
  mapping_bytes_ = stack_bytes_ + page;
  void* mapping =
      mmap(nullptr, mapping_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<std::byte*>(mapping);
  stack_ = mapping_ + page;
  if (mprotect(stack_, stack_bytes_, PROT_READ | PROT_WRITE) != 0) {
    munmap(mapping, mapping_bytes_);
    throw std::bad_alloc();
  }
}

Fiber::~Fiber() {
#if defined(RESTKV_ASAN)
  __asan_unpoison_memory_region(stack_, stack_bytes_);
#endif
  munmap(mapping_, mapping_bytes_);
}

void Fiber::restart(Entry entry, void* argument) {
  entry_ = entry;
  argument_ = argument;
#if defined(RESTKV_ASAN)
  __asan_unpoison_memory_region(stack_, stack_bytes_);  // of frames that were dropped
  own_fake_ = nullptr;
#endif
  // From the top: start's return address, which is never used but makes it begin as behind a call (16-byte alignment),
  // start's address, six registers.
  auto* top = reinterpret_cast<void**>(stack_ + stack_bytes_);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&Fiber::start);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  own_sp_ = top;
}

void Fiber::start() {
  Fiber* self = starting;
#if defined(RESTKV_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &self->caller_stack_, &self->caller_stack_bytes_);
#endif
  self->entry_(self->argument_);
  self->suspend(true);
  __builtin_unreachable();
}

void Fiber::resume() {
  starting = this;
#if defined(RESTKV_ASAN)
  __sanitizer_start_switch_fiber(&caller_fake_, stack_, stack_bytes_);
#endif
  restkv_switch_stack(&caller_sp_, own_sp_);
#if defined(RESTKV_ASAN)
  __sanitizer_finish_switch_fiber(caller_fake_, nullptr, nullptr);
#endif
}

void Fiber::suspend(bool last) {
#if defined(RESTKV_ASAN)
  __sanitizer_start_switch_fiber(last ? nullptr : &own_fake_, caller_stack_, caller_stack_bytes_);
#else
  static_cast<void>(last);
#endif
  restkv_switch_stack(&own_sp_, caller_sp_);
#if defined(RESTKV_ASAN)
  __sanitizer_finish_switch_fiber(own_fake_, &caller_stack_, &caller_stack_bytes_);
#endif
}

}  // namespace restkv::emulator

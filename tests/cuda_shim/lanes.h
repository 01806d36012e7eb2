// The threads of a CUDA block as fibers of one thread of the CPU, which change at collectives only: no system call, so a
// block of 1024 costs microseconds. In random order between two collectives; between two barriers of the block the warps
// are in step or each as far ahead as it comes, so that what needs a missing barrier shows.
// With SHIM_THREADS, and off x86-64, each is a std::thread: what the sanitizers understand.
#pragma once

#include <algorithm>
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

namespace shim {

using Body = std::function<void(int lane)>;

#if defined(SHIM_THREADS) || !defined(__x86_64__)

using Barrier = std::barrier<>;

inline void run_lanes(int count, unsigned, const Body& body) {
  std::vector<std::thread> pool;
  for (int i = 0; i < count; ++i) pool.emplace_back(body, i);
  for (std::thread& t : pool) t.join();
}

#else

// Saves the callee's registers and the stack in use, and goes on with another one.
__attribute__((naked, noinline)) inline void switch_stack(void** /* from */, void* /* to */) {
  asm(R"(
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
    ret)");
}

struct Fiber {
  int lane;
  void* stack_pointer;
  std::unique_ptr<char[]> stack;
};

class Scheduler {
 public:
  void run(int count, unsigned seed, const Body& body) {
    body_ = &body;
    while (static_cast<int>(fibers_.size()) < count) {
      fibers_.push_back({static_cast<int>(fibers_.size()), nullptr, std::make_unique<char[]>(kStackBytes)});
    }
    for (int i = 0; i < count; ++i) {
      // Seven words below an address that is a multiple of 16: six registers and where to return to.
      char* top = fibers_[i].stack.get() + kStackBytes / 16 * 16 - 16;
      auto* words = reinterpret_cast<void**>(top - reinterpret_cast<uintptr_t>(top) % 16) - 8;
      std::fill_n(words, 6, nullptr);
      words[6] = reinterpret_cast<void*>(&start);
      fibers_[i].stack_pointer = words;
      ready_.push_back(&fibers_[i]);
    }
    random_.seed(seed);
    std::shuffle(ready_.begin(), ready_.end(), random_);
    done_ = 0;
    while (!ready_.empty()) {
      current_ = ready_.front();
      ready_.pop_front();
      switch_stack(&stack_pointer_, current_->stack_pointer);
    }
    if (done_ != count) {
      std::fprintf(stderr, "shim: %d of %d threads wait for a collective that the others do not reach\n", count - done_,
                   count);
      std::abort();
    }
  }

  Fiber* current() const { return current_; }
  void wake(std::vector<Fiber*>& waiting) {
    std::shuffle(waiting.begin(), waiting.end(), random_);
    if (waiting.size() > 32) warps_run_ahead_ = random_() % 2 == 0;
    ready_.insert(warps_run_ahead_ ? ready_.begin() : ready_.end(), waiting.begin(), waiting.end());
    waiting.clear();
  }
  void wait() { switch_stack(&current_->stack_pointer, stack_pointer_); }

 private:
  static constexpr size_t kStackBytes = 64 << 10;

  static void start();

  const Body* body_ = nullptr;
  std::deque<Fiber> fibers_;
  std::deque<Fiber*> ready_;
  std::minstd_rand random_;
  bool warps_run_ahead_ = false;
  Fiber* current_ = nullptr;
  void* stack_pointer_ = nullptr;
  int done_ = 0;
};

inline thread_local Scheduler scheduler;

inline void Scheduler::start() {
  (*scheduler.body_)(scheduler.current_->lane);
  ++scheduler.done_;
  scheduler.wait();
}

class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}

  void arrive_and_wait() {
    waiting_.push_back(scheduler.current());
    if (static_cast<int>(waiting_.size()) == count_) scheduler.wake(waiting_);
    scheduler.wait();
  }

 private:
  const int count_;
  std::vector<Fiber*> waiting_;
};

inline void run_lanes(int count, unsigned seed, const Body& body) { scheduler.run(count, seed, body); }

#endif

}  // namespace shim

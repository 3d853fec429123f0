// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Runs the threads of one threadgroup as fibers on one processor. A thread runs until it
// meets a barrier or a simdgroup operation; which one runs next is drawn at random, so that
// a missing barrier shows in the results. Every memory access of the kernel, reported by the
// compiler's thread-sanitizer instrumentation, is checked by memory.cpp.

#include "scheduler.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <vector>

#include "switch.h"

namespace msl {

namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr uint32_t kLanes = 32;
// What a lane gets from a lane that does not exist or has finished.
constexpr uint32_t kPoison = 0x7FADBEEF;

enum Operation { kSum, kMin, kMax, kShuffle, kShuffleDown, kShuffleXor, kAll, kAny, kFirst };
enum class Wait { Ready, Simd, SimdBarrier, Barrier, Done };

struct Fiber {
  void* stack_pointer;
  char* stack;
  Wait wait;
  int operation;
  uint32_t bits;
  uint32_t argument;
  Position position;
};

std::vector<Fiber> fibers;
size_t thread_count;
size_t running;
void* scheduler_stack;
const Launch* launch;
uint64_t random_state;
char* stacks;
size_t stack_count;

uint64_t next_random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

void to_scheduler() {
  msl_switch(&fibers[running].stack_pointer, scheduler_stack);
}

void fiber_main() {
  launch->body(fibers[running].position, launch->buffers);
  fibers[running].wait = Wait::Done;
  to_scheduler();
}

void prepare(Fiber& fiber) {
  auto* top = reinterpret_cast<void**>(fiber.stack + kStackBytes) - kFrameWords;
  std::memset(top, 0, kFrameWords * sizeof(void*));
  top[kReturnAt] = reinterpret_cast<void*>(&fiber_main);
  fiber.stack_pointer = top;
  fiber.wait = Wait::Ready;
}

template <typename T>
uint32_t folded(int operation, const Fiber* lanes, uint32_t count) {
  T result{};
  bool first = true;
  for (uint32_t i = 0; i < count; ++i) {
    if (lanes[i].wait != Wait::Simd) {
      continue;
    }
    const T value = std::bit_cast<T>(lanes[i].bits);
    if (first) {
      result = value;
    } else if (operation == kSum) {
      result = result + value;
    } else if (operation == kMin) {
      result = value < result ? value : result;
    } else {
      result = value > result ? value : result;
    }
    first = false;
  }
  return std::bit_cast<uint32_t>(result);
}

uint32_t combined(int code, const Fiber* lanes, uint32_t count) {
  const int operation = code & 15;
  if (operation == kAll || operation == kAny) {
    bool all = true;
    bool any = false;
    for (uint32_t i = 0; i < count; ++i) {
      if (lanes[i].wait == Wait::Simd) {
        all &= lanes[i].bits != 0;
        any |= lanes[i].bits != 0;
      }
    }
    return operation == kAll ? all : any;
  }
  if (operation == kFirst) {
    for (uint32_t i = 0; i < count; ++i) {
      if (lanes[i].wait == Wait::Simd) {
        return lanes[i].bits;
      }
    }
  }
  switch (code >> 4) {
    case 0:
      return folded<float>(operation, lanes, count);
    case 1:
      return folded<uint32_t>(operation, lanes, count);
    default:
      return folded<int32_t>(operation, lanes, count);
  }
}

uint32_t source_lane(int operation, uint32_t lane, uint32_t argument) {
  switch (operation) {
    case kShuffleDown:
      return lane + argument;
    case kShuffleXor:
      return lane ^ argument;
    default:
      return argument;
  }
}

// All lanes of one simdgroup wait at the same operation: gives each its result.
void finish_simd(size_t first, uint32_t count) {
  Fiber* lanes = &fibers[first];
  int code = -1;
  for (uint32_t i = 0; i < count; ++i) {
    if (lanes[i].wait == Wait::Simd) {
      if (code >= 0 && code != lanes[i].operation) {
        report("threads of one simdgroup met different simdgroup operations");
        return;
      }
      code = lanes[i].operation;
    }
  }
  const int operation = code & 15;
  const bool shuffles =
      operation == kShuffle || operation == kShuffleDown || operation == kShuffleXor;
  const uint32_t whole = shuffles ? 0 : combined(code, lanes, count);
  uint32_t results[kLanes];
  for (uint32_t i = 0; i < count; ++i) {
    results[i] = whole;
    if (shuffles) {
      const uint32_t from = source_lane(operation, i, lanes[i].argument);
      const bool there = from < count && lanes[from].wait == Wait::Simd;
      results[i] = there ? lanes[from].bits : kPoison;
    }
  }
  for (uint32_t i = 0; i < count; ++i) {
    if (lanes[i].wait == Wait::Simd) {
      lanes[i].bits = results[i];
      lanes[i].wait = Wait::Ready;
    }
  }
}

// Releases the simdgroup from `first` on when all its live threads wait at the same thing.
bool advance_simdgroup(size_t first) {
  const auto count = static_cast<uint32_t>(std::min<size_t>(kLanes, thread_count - first));
  uint32_t at_simd = 0;
  uint32_t at_barrier = 0;
  uint32_t live = 0;
  int flags = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const Fiber& fiber = fibers[first + i];
    at_simd += fiber.wait == Wait::Simd;
    at_barrier += fiber.wait == Wait::SimdBarrier;
    live += fiber.wait != Wait::Done;
    flags |= fiber.wait == Wait::SimdBarrier ? fiber.operation : 0;
  }
  if (at_simd > 0 && at_simd == live) {
    finish_simd(first, count);
    return true;
  }
  if (at_barrier > 0 && at_barrier == count) {
    for (uint32_t i = 0; i < count; ++i) {
      fibers[first + i].wait = Wait::Ready;
      pass_simdgroup_barrier(first + i, flags);
    }
    return true;
  }
  return false;
}

bool advance_threadgroup() {
  int flags = 0;
  for (size_t i = 0; i < thread_count; ++i) {
    if (fibers[i].wait != Wait::Barrier) {
      return false;
    }
    flags |= fibers[i].operation;
  }
  for (size_t i = 0; i < thread_count; ++i) {
    fibers[i].wait = Wait::Ready;
  }
  pass_barrier(flags);
  return true;
}

void report_stuck() {
  size_t counts[5] = {};
  for (size_t i = 0; i < thread_count; ++i) {
    ++counts[static_cast<size_t>(fibers[i].wait)];
  }
  char text[200];
  std::snprintf(
      text,
      sizeof(text),
      "unequal barriers: of %zu threads %zu wait at a threadgroup barrier, %zu at a simdgroup "
      "barrier, %zu at a simdgroup operation, %zu have finished",
      thread_count,
      counts[3],
      counts[2],
      counts[1],
      counts[4]);
  report(text);
}

void run_threadgroup() {
  std::vector<uint32_t> ready;
  while (!failed()) {
    ready.clear();
    size_t done = 0;
    for (size_t i = 0; i < thread_count; ++i) {
      done += fibers[i].wait == Wait::Done;
      if (fibers[i].wait == Wait::Ready) {
        ready.push_back(static_cast<uint32_t>(i));
      }
    }
    for (size_t left = ready.size(); left > 0 && !failed(); --left) {
      const size_t pick = next_random() % left;
      std::swap(ready[pick], ready[left - 1]);
      running = ready[left - 1];
      msl_switch(&scheduler_stack, fibers[running].stack_pointer);
    }
    if (!ready.empty()) {
      continue;
    }
    if (done == thread_count) {
      return;
    }
    bool advanced = false;
    for (size_t first = 0; first < thread_count; first += kLanes) {
      advanced |= advance_simdgroup(first);
    }
    if (!advanced && !failed() && !advance_threadgroup()) {
      report_stuck();
    }
  }
}

}  // namespace

size_t current_thread() {
  return running;
}

const char* current_stack() {
  return fibers[running].stack;
}

size_t stack_bytes() {
  return kStackBytes;
}

void leave() {
  to_scheduler();
}

bool run(const Launch& the_launch, uint64_t seed) {
  launch = &the_launch;
  random_state = seed * 0x9E3779B97F4A7C15ull + 0x1234567;
  const auto& group = launch->group;
  thread_count = size_t(group[0]) * group[1] * group[2];
  if (stack_count < thread_count) {
    stack_count = 1024;
    stacks = static_cast<char*>(mmap(
        nullptr,
        stack_count * kStackBytes,
        PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
        -1,
        0));
  }
  fibers.resize(thread_count);
  const uint64_t groups = uint64_t(launch->grid[0]) * launch->grid[1] * launch->grid[2];
  for (uint64_t index = 0; index < groups && !failed(); ++index) {
    const uint32_t at[3] = {
        static_cast<uint32_t>(index % launch->grid[0]),
        static_cast<uint32_t>(index / launch->grid[0] % launch->grid[1]),
        static_cast<uint32_t>(index / launch->grid[0] / launch->grid[1])};
    begin_threadgroup(index, thread_count);
    for (size_t i = 0; i < thread_count; ++i) {
      Fiber& fiber = fibers[i];
      fiber.stack = stacks + i * kStackBytes;
      prepare(fiber);
      Position& position = fiber.position;
      position.thread = static_cast<uint32_t>(i);
      const uint32_t in_group[3] = {
          static_cast<uint32_t>(i % group[0]),
          static_cast<uint32_t>(i / group[0] % group[1]),
          static_cast<uint32_t>(i / group[0] / group[1])};
      for (int axis = 0; axis < 3; ++axis) {
        position.group[axis] = at[axis];
        position.in_group[axis] = in_group[axis];
        position.in_grid[axis] = at[axis] * group[axis] + in_group[axis];
        position.group_size[axis] = group[axis];
        position.grid_groups[axis] = launch->grid[axis];
      }
    }
    run_threadgroup();
  }
  return !failed();
}

}  // namespace msl

extern "C" uint32_t msl_simd(int operation, uint32_t bits, uint32_t argument) {
  using namespace msl;
  Fiber& fiber = fibers[running];
  fiber.operation = operation;
  fiber.bits = bits;
  fiber.argument = argument;
  fiber.wait = Wait::Simd;
  to_scheduler();
  return fibers[running].bits;
}

extern "C" void msl_barrier(int flags, bool of_simdgroup) {
  using namespace msl;
  Fiber& fiber = fibers[running];
  fiber.operation = flags;
  fiber.wait = of_simdgroup ? Wait::SimdBarrier : Wait::Barrier;
  to_scheduler();
}

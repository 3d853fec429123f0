// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// A small pool of threads that outlives calls: a decode step is some two hundred products
// of a fraction of a millisecond each, too short to start threads for.

#pragma once

#include <cstdint>
#include <type_traits>

namespace gemma_surgery::cpu {

// Processors that this process may run on.
int available_threads();

// A reference to a callable `void(int64_t task)`, without allocation.
class Task {
 public:
  template <typename F, typename = std::enable_if_t<!std::is_same_v<std::decay_t<F>, Task>>>
  Task(const F& work)
      : work_(&work),
        call_([](const void* self, int64_t task) { (*static_cast<const F*>(self))(task); }) {}

  void operator()(int64_t task) const {
    call_(work_, task);
  }

 private:
  const void* work_;
  void (*call_)(const void*, int64_t);
};

// Runs work(0) to work(count - 1), each once, on up to `threads` threads (0: as many as
// there are processors), the caller included. Tasks are handed out in order to whoever is
// free, so that a thread that has lost its processor holds nobody up. Which thread runs a
// task is unspecified: results must not depend on it. `work` must not throw. A call from
// within a task, or while another thread uses the pool, runs all tasks on the caller.
void parallel_tasks(int64_t count, int threads, const Task& work);

}  // namespace gemma_surgery::cpu

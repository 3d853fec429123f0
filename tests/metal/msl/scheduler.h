// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// What the scheduler, the memory checks and the generated entry points share.

#pragma once

#include <cstddef>
#include <cstdint>

namespace msl {

struct Buffer {
  char* data;
  size_t size;
  int writable;
};

// Where a thread stands: Metal's [[thread_position_in_grid]] and its kin.
struct Position {
  uint32_t thread;
  uint32_t group[3];
  uint32_t in_group[3];
  uint32_t in_grid[3];
  uint32_t group_size[3];
  uint32_t grid_groups[3];
};

struct Launch {
  void (*body)(const Position& position, const Buffer* buffers);
  const Buffer* buffers;
  int buffer_count;
  uint32_t grid[3];   // threadgroups
  uint32_t group[3];  // threads of each
};

// Runs every threadgroup, one after the other; false when something was reported.
bool run(const Launch& launch, uint64_t seed);

size_t current_thread();
const char* current_stack();
size_t stack_bytes();
// Gives the processor back for good: for a thread that must not go on.
void leave();

// The first report stands; the message lives until the next launch.
void report(const char* text);
bool failed();

// memory.cpp
void begin_launch(const Launch& launch);
const char* first_report();
void begin_threadgroup(uint64_t index, size_t threads);
void pass_barrier(int flags);
void pass_simdgroup_barrier(size_t thread, int flags);
void access(const char* address, size_t size, bool writes);

}  // namespace msl

// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Checks every access of a kernel to the bytes it may use, and to what other threads did
// there: a write and another access without a barrier between them are a race, whatever
// order the threads happened to run in. Threadgroup memory must be written before it is read.

#include <link.h>

#include <algorithm>
#include <string>
#include <unordered_map>
#include <vector>

#include "scheduler.h"

namespace msl {

namespace {

// Who accessed a byte, and after how many barriers: 0 is nobody.
struct Stamp {
  uint32_t group = 0;  // from 1
  uint16_t thread = 0;
  uint16_t barriers = 0;
  uint16_t simd_barriers = 0;
};

struct Shadow {
  Stamp write;
  Stamp reads[2];  // the latest two of different threads
};

struct Region {
  const char* begin;
  const char* end;
  std::string name;
  bool writable;
  bool of_threadgroup;
  std::vector<Shadow> shadow;
};

std::vector<Region> regions;
std::vector<std::vector<char>> arena;
std::unordered_map<const void*, void*> allocations;
size_t buffer_regions;
uint32_t group_number;
uint16_t device_barriers;
uint16_t threadgroup_barriers;
std::vector<uint16_t> simd_device_barriers;
std::vector<uint16_t> simd_threadgroup_barriers;
std::string message;

bool ordered(const Stamp& before, const Stamp& now) {
  if (before.group == 0) {
    return true;
  }
  if (before.group != now.group) {
    return false;
  }
  return before.thread == now.thread || before.barriers != now.barriers ||
         (before.thread / 32 == now.thread / 32 && before.simd_barriers != now.simd_barriers);
}

// The constants and function constants of the kernels lie in the library that holds this code.
struct Module {
  const char* begin = nullptr;
  const char* end = nullptr;
};

int find_module(dl_phdr_info* info, size_t, void* data) {
  auto& module = *static_cast<Module*>(data);
  Module found;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& part = info->dlpi_phdr[i];
    if (part.p_type == PT_LOAD) {
      const auto* begin = reinterpret_cast<const char*>(info->dlpi_addr + part.p_vaddr);
      found.begin = found.begin ? std::min(found.begin, begin) : begin;
      found.end = std::max(found.end, begin + part.p_memsz);
    }
  }
  const auto* here = reinterpret_cast<const char*>(&find_module);
  if (here >= found.begin && here < found.end) {
    module = found;
  }
  return 0;
}

bool in_module(const char* address) {
  static const Module module = [] {
    Module found;
    dl_iterate_phdr(find_module, &found);
    return found;
  }();
  return address >= module.begin && address < module.end;
}

[[noreturn]] void stop(const std::string& text) {
  report((text + ", thread " + std::to_string(current_thread()) + " of threadgroup " +
          std::to_string(group_number - 1))
             .c_str());
  leave();
  __builtin_unreachable();
}

void report_outside(const char* address, size_t size, bool writes) {
  const Region* nearest = nullptr;
  ptrdiff_t least = 0;
  for (const Region& region : regions) {
    const ptrdiff_t distance =
        address < region.begin ? region.begin - address : address + size - region.end;
    if (!nearest || distance < least) {
      nearest = &region;
      least = distance;
    }
  }
  std::string text = "out of bounds: " + std::string(writes ? "write" : "read") + " of " +
                     std::to_string(size) + " bytes";
  if (nearest) {
    text += " at offset " + std::to_string(address - nearest->begin) + " of " + nearest->name +
            ", which has " + std::to_string(nearest->end - nearest->begin) + " bytes";
  }
  stop(text);
}

void check(const Region& region, const Shadow& byte, const Stamp& now, bool writes) {
  if (region.of_threadgroup && !writes && byte.write.group == 0) {
    stop("uninitialised: read of " + region.name);
  }
  const bool clash = !ordered(byte.write, now) ||
                     (writes && (!ordered(byte.reads[0], now) || !ordered(byte.reads[1], now)));
  if (clash) {
    stop(
        "race: " + std::string(writes ? "write" : "read") + " at offset " +
        std::to_string(&byte - region.shadow.data()) + " of " + region.name +
        " without a barrier after another thread's access");
  }
}

void mark(Region& region, const char* address, size_t size, bool writes) {
  const size_t thread = current_thread();
  const bool local = region.of_threadgroup;
  const Stamp now = {
      group_number,
      static_cast<uint16_t>(thread),
      local ? threadgroup_barriers : device_barriers,
      local ? simd_threadgroup_barriers[thread] : simd_device_barriers[thread]};
  Shadow* bytes = &region.shadow[static_cast<size_t>(address - region.begin)];
  for (size_t i = 0; i < size; ++i) {
    Shadow& byte = bytes[i];
    check(region, byte, now, writes);
    if (writes) {
      byte = {now, {}};
    } else {
      if (byte.reads[0].thread != now.thread || byte.reads[0].group != now.group) {
        byte.reads[1] = byte.reads[0];
      }
      byte.reads[0] = now;
    }
  }
}

}  // namespace

void access(const char* address, size_t size, bool writes) {
  const char* stack = current_stack();
  if (address >= stack && address + size <= stack + stack_bytes()) {
    return;
  }
  for (Region& region : regions) {
    if (address < region.begin || address + size > region.end) {
      continue;
    }
    if (region.writable) {
      mark(region, address, size, writes);
    } else if (writes) {
      stop("write to read-only " + region.name);
    }
    return;
  }
  if (writes || !in_module(address)) {
    report_outside(address, size, writes);
  }
}

void report(const char* text) {
  if (message.empty()) {
    message = text;
  }
}

bool failed() {
  return !message.empty();
}

const char* first_report() {
  return message.c_str();
}

void begin_launch(const Launch& launch) {
  message.clear();
  regions.clear();
  for (int i = 0; i < launch.buffer_count; ++i) {
    const Buffer& buffer = launch.buffers[i];
    regions.push_back(
        {buffer.data,
         buffer.data + buffer.size,
         "buffer " + std::to_string(i),
         buffer.writable != 0,
         false,
         std::vector<Shadow>(buffer.writable ? buffer.size : 0)});
  }
  buffer_regions = regions.size();
}

void begin_threadgroup(uint64_t index, size_t threads) {
  group_number = static_cast<uint32_t>(index + 1);
  device_barriers = 0;
  threadgroup_barriers = 0;
  simd_device_barriers.assign(threads, 0);
  simd_threadgroup_barriers.assign(threads, 0);
  regions.resize(buffer_regions);
  arena.clear();
  allocations.clear();
}

void pass_barrier(int flags) {
  device_barriers += (flags & 1) != 0;
  threadgroup_barriers += (flags & 2) != 0;
}

void pass_simdgroup_barrier(size_t thread, int flags) {
  simd_device_barriers[thread] += (flags & 1) != 0;
  simd_threadgroup_barriers[thread] += (flags & 2) != 0;
}

}  // namespace msl

// The memory of a `threadgroup` declaration: one for all threads of the threadgroup.
extern "C" void* msl_threadgroup_memory(const void* key, size_t size) {
  using namespace msl;
  void*& place = allocations[key];
  if (!place) {
    arena.emplace_back(size, static_cast<char>(0xA5));
    place = arena.back().data();
    const auto* begin = static_cast<const char*>(place);
    regions.push_back(
        {begin,
         begin + size,
         "threadgroup memory " + std::to_string(allocations.size()),
         true,
         true,
         std::vector<Shadow>(size)});
  }
  return place;
}

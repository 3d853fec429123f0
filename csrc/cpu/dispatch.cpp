// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "cpu/dispatch.h"

#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace gemma_surgery::cpu {

extern const Kernels k_portable_kernels;
#if defined(__x86_64__)
extern const Kernels k_avx2_kernels;
extern const Kernels k_avx512_kernels;
#elif defined(__aarch64__)
extern const Kernels k_neon_kernels;
#endif

namespace {

#if defined(__x86_64__)

struct X86Features {
  bool avx2 = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512dq = false;
  bool avx512vl = false;
  bool os_saves_ymm = false;
  bool os_saves_zmm = false;
};

uint64_t read_xcr0() {
  uint32_t low = 0;
  uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

X86Features detect() {
  X86Features features;
  uint32_t a = 0;
  uint32_t b = 0;
  uint32_t c = 0;
  uint32_t d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) {
    return features;
  }
  const bool has_xgetbv = (c >> 27) & 1;
  if (has_xgetbv) {
    const uint64_t xcr0 = read_xcr0();
    features.os_saves_ymm = (xcr0 & 0x06) == 0x06;
    features.os_saves_zmm = (xcr0 & 0xE6) == 0xE6;
  }
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    features.avx2 = (b >> 5) & 1;
    features.avx512f = (b >> 16) & 1;
    features.avx512dq = (b >> 17) & 1;
    features.avx512bw = (b >> 30) & 1;
    features.avx512vl = (b >> 31) & 1;
  }
  return features;
}

const X86Features& x86_features() {
  static const X86Features features = detect();
  return features;
}

#endif

std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> tables;
#if defined(__x86_64__)
  const X86Features& f = x86_features();
  if (f.os_saves_zmm && f.avx512f && f.avx512bw && f.avx512dq && f.avx512vl) {
    tables.push_back(&k_avx512_kernels);
  }
  if (f.os_saves_ymm && f.avx2) {
    tables.push_back(&k_avx2_kernels);
  }
#elif defined(__aarch64__)
  tables.push_back(&k_neon_kernels);
#endif
  tables.push_back(&k_portable_kernels);
  return tables;
}

}  // namespace

const std::vector<const Kernels*>& available_kernels() {
  static const std::vector<const Kernels*> tables = supported();
  return tables;
}

const Kernels& find_kernels(const std::string& name) {
  std::string names;
  for (const Kernels* table : available_kernels()) {
    if (name.empty() || name == table->name) {
      return *table;
    }
    names += std::string(names.empty() ? "`" : ", `") + table->name + "`";
  }
  throw std::invalid_argument(
      "[dispatch] need an instruction set of this machine (" + names + "), got `" + name + "`");
}

std::vector<std::pair<std::string, bool>> cpu_features() {
#if defined(__x86_64__)
  const X86Features& f = x86_features();
  return {
      {"avx2", f.avx2},
      {"avx512f", f.avx512f},
      {"avx512bw", f.avx512bw},
      {"avx512dq", f.avx512dq},
      {"avx512vl", f.avx512vl},
      {"os_saves_ymm", f.os_saves_ymm},
      {"os_saves_zmm", f.os_saves_zmm},
  };
#elif defined(__aarch64__)
  return {{"neon", true}};
#else
  return {};
#endif
}

}  // namespace gemma_surgery::cpu

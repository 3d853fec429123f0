// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "cpu/dispatch.h"

#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace gemma_surgery::cpu {

extern const Kernels k_portable_kernels;
#if defined(__x86_64__)
extern const Kernels k_avx2_kernels;
extern const Kernels k_avx512_kernels;
extern const ProductKernels k_avx512_vnni_products;
#elif defined(__aarch64__)
extern const Kernels k_neon_kernels;
extern const ProductKernels k_neon_dot_products;
extern const ProductKernels k_neon_i8mm_products;
#endif

namespace {

#if defined(__x86_64__)

struct X86Features {
  bool avx2 = false;
  bool fma = false;
  bool f16c = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512dq = false;
  bool avx512vl = false;
  bool avx512vbmi = false;
  bool avx512vnni = false;
  bool gfni = false;
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
  features.fma = (c >> 12) & 1;
  features.f16c = (c >> 29) & 1;
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
    features.avx512vbmi = (c >> 1) & 1;
    features.avx512vnni = (c >> 11) & 1;
    features.gfni = (c >> 8) & 1;
  }
  return features;
}

const X86Features& x86_features() {
  static const X86Features features = detect();
  return features;
}

#elif defined(__aarch64__)

struct ArmFeatures {
  bool dot_product = false;
  bool i8mm = false;
};

#if defined(__APPLE__)
bool has_feature(const char* name) {
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
#endif

const ArmFeatures& arm_features() {
  static const ArmFeatures features = [] {
    ArmFeatures found;
#if defined(__APPLE__)
    found.dot_product = has_feature("hw.optional.arm.FEAT_DotProd");
    found.i8mm = has_feature("hw.optional.arm.FEAT_I8MM");
#elif defined(__linux__)
    found.dot_product = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
    found.i8mm = (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
#endif
    return found;
  }();
  return features;
}

#endif

// The same kernels but for products, which profit from instructions of their own.
[[maybe_unused]] Kernels
with_products(const Kernels& base, const char* name, const ProductKernels& products) {
  Kernels table = base;
  table.name = name;
  table.products = &products;
  return table;
}

std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> tables;
#if defined(__x86_64__)
  const X86Features& f = x86_features();
  if (f.os_saves_zmm && f.avx512f && f.avx512bw && f.avx512dq && f.avx512vl) {
    if (f.avx512vbmi && f.avx512vnni && f.gfni) {
      static const Kernels vnni =
          with_products(k_avx512_kernels, "avx512_vnni", k_avx512_vnni_products);
      tables.push_back(&vnni);
    }
    tables.push_back(&k_avx512_kernels);
  }
  if (f.os_saves_ymm && f.avx2 && f.fma && f.f16c) {
    tables.push_back(&k_avx2_kernels);
  }
#elif defined(__aarch64__)
  const ArmFeatures& f = arm_features();
  if (f.dot_product && f.i8mm) {
    static const Kernels i8mm = with_products(k_neon_kernels, "neon_i8mm", k_neon_i8mm_products);
    tables.push_back(&i8mm);
  }
  if (f.dot_product) {
    static const Kernels dot = with_products(k_neon_kernels, "neon_dot", k_neon_dot_products);
    tables.push_back(&dot);
  }
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
      {"fma", f.fma},
      {"f16c", f.f16c},
      {"avx512f", f.avx512f},
      {"avx512bw", f.avx512bw},
      {"avx512dq", f.avx512dq},
      {"avx512vl", f.avx512vl},
      {"avx512vbmi", f.avx512vbmi},
      {"avx512vnni", f.avx512vnni},
      {"gfni", f.gfni},
      {"os_saves_ymm", f.os_saves_ymm},
      {"os_saves_zmm", f.os_saves_zmm},
  };
#elif defined(__aarch64__)
  const ArmFeatures& f = arm_features();
  return {{"neon", true}, {"dot_product", f.dot_product}, {"i8mm", f.i8mm}};
#else
  return {};
#endif
}

}  // namespace gemma_surgery::cpu

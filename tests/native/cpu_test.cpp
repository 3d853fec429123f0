// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// csrc/cpu alone, without Python and MLX: the same bytes from every kernel table, no read
// or write outside exactly sized buffers (run it under sanitizers), hostile bytes included.
// Prints one hash of all results: it must be the same on every machine.
//
//   gemma_surgery_cpu_test [rounds of fuzzing, default 400] [seed, default 1]

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "cpu/dispatch.h"
#include "cpu/encoding.h"
#include "cpu/matrix.h"

using namespace gemma_surgery::cpu;

namespace {

int failures = 0;

void check(bool condition, const char* what) {
  if (!condition) {
    std::printf("FAILED: %s\n", what);
    ++failures;
  }
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 1) {}

  uint64_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_ * 0x2545F4914F6CDD1Dull;
  }

  int64_t below(int64_t limit) {
    return static_cast<int64_t>((next() >> 11) % static_cast<uint64_t>(limit));
  }

  // Bell-shaped, from integers only, so that every machine draws the same values.
  float weight() {
    int64_t sum = 0;
    for (int i = 0; i < 4; ++i) {
      sum += below(65536) - 32768;
    }
    return static_cast<float>(sum) * 0x1p-21f;
  }

 private:
  uint64_t state_;
};

// Exactly sized, on the heap: a sanitizer sees the first byte beyond.
struct Buffer {
  std::unique_ptr<uint8_t[]> data;
  int64_t size;

  explicit Buffer(int64_t bytes) : data(new uint8_t[static_cast<size_t>(bytes)]), size(bytes) {
    std::memset(data.get(), 0xA5, static_cast<size_t>(bytes));
  }
};

struct Matrix {
  Encoding encoding;
  Buffer weight;
  Buffer scales;
  Buffer biases;

  Matrix(const Encoding& layout, int64_t rows, int64_t cols)
      : encoding(layout),
        weight(rows * row_bytes(layout, cols).weight),
        scales(rows * row_bytes(layout, cols).scales),
        biases(rows * row_bytes(layout, cols).biases) {}

  Source source() const {
    return {
        encoding,
        {weight.data.get(), weight.size},
        {scales.data.get(), scales.size},
        {biases.data.get(), biases.size}};
  }

  Target target() {
    return {
        encoding,
        {weight.data.get(), weight.size},
        {scales.data.get(), scales.size},
        {biases.data.get(), biases.size}};
  }
};

uint64_t hash_bytes(uint64_t hash, const void* data, int64_t size) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  for (int64_t i = 0; i < size; ++i) {
    hash = (hash ^ bytes[i]) * 0x100000001B3ull;
  }
  return hash;
}

uint64_t hash_matrix(uint64_t hash, const Matrix& matrix) {
  hash = hash_bytes(hash, matrix.weight.data.get(), matrix.weight.size);
  hash = hash_bytes(hash, matrix.scales.data.get(), matrix.scales.size);
  return hash_bytes(hash, matrix.biases.data.get(), matrix.biases.size);
}

bool equal(const Buffer& a, const Buffer& b) {
  return a.size == b.size &&
         std::memcmp(a.data.get(), b.data.get(), static_cast<size_t>(a.size)) == 0;
}

bool equal(const Matrix& a, const Matrix& b) {
  return equal(a.weight, b.weight) && equal(a.scales, b.scales) && equal(a.biases, b.biases);
}

const std::vector<Encoding>& all_encodings() {
  static const std::vector<Encoding> encodings = [] {
    std::vector<Encoding> list;
    for (const char* dtype : {"F32", "F16", "BF16"}) {
      list.push_back(make_encoding(dtype, 0, 0, ""));
      for (int bits : {2, 3, 4, 5, 6, 8}) {
        for (int group : {32, 64, 128}) {
          list.push_back(make_encoding(dtype, bits, group, "affine"));
          list.push_back(make_encoding(dtype, bits, group, "symmetric"));
        }
      }
    }
    for (const char* mode : {"mxfp4", "nvfp4", "mxfp8"}) {
      list.push_back(make_encoding("U8", 0, 0, mode));
    }
    return list;
  }();
  return encodings;
}

struct Job {
  const Matrix& source;
  int64_t rows;
  int64_t cols;
  Columns columns;
  Encoding target;
  bool refine;
};

// Runs a job on every table and thread count; the outcome, bytes or message, must agree.
uint64_t run_everywhere(uint64_t hash, const Job& job) {
  std::unique_ptr<Matrix> reference;
  std::string reference_error;
  for (const Kernels* kernels : available_kernels()) {
    for (int threads : {1, 3}) {
      auto out = std::make_unique<Matrix>(job.target, job.rows, job.columns.count);
      std::string error;
      try {
        requantize(
            job.source.source(),
            job.rows,
            job.cols,
            job.columns,
            out->target(),
            *kernels,
            {threads, job.refine});
      } catch (const std::invalid_argument& caught) {
        error = caught.what();
      }
      if (!reference) {
        reference = std::move(out);
        reference_error = error;
      } else {
        check(error == reference_error, "the same error on every table");
        check(!error.empty() || equal(*out, *reference), "the same bytes on every table");
      }
    }
  }
  return reference_error.empty()
             ? hash_matrix(hash, *reference)
             : hash_bytes(
                   hash, reference_error.data(), static_cast<int64_t>(reference_error.size()));
}

uint64_t check_sums(uint64_t hash, const Matrix& source, int64_t rows, int64_t cols) {
  std::vector<double> reference;
  for (const Kernels* kernels : available_kernels()) {
    std::vector<double> sums(static_cast<size_t>(rows + cols), 0.0);
    row_square_sums(source.source(), rows, cols, sums.data(), *kernels);
    column_square_sums(source.source(), rows, cols, sums.data() + rows, *kernels);
    if (reference.empty()) {
      reference = sums;
    }
    check(
        std::memcmp(sums.data(), reference.data(), sums.size() * sizeof(double)) == 0,
        "the same sums on every table");
  }
  return hash_bytes(hash, reference.data(), static_cast<int64_t>(reference.size() * 8));
}

Matrix random_matrix(Random& random, const Encoding& encoding, int64_t rows, int64_t cols) {
  Matrix dense(make_encoding("F32", 0, 0, ""), rows, cols);
  for (int64_t i = 0; i < rows * cols; ++i) {
    const float value = random.below(50) == 0 ? 0.0f : random.weight();
    std::memcpy(dense.weight.data.get() + 4 * i, &value, 4);
  }
  Matrix result(encoding, rows, cols);
  requantize(
      dense.source(), rows, cols, {nullptr, cols}, result.target(), find_kernels("portable"), {});
  return result;
}

// Bytes of any content: NaN scales, infinite biases, NaN values.
Matrix hostile_matrix(Random& random, const Encoding& encoding, int64_t rows, int64_t cols) {
  Matrix result(encoding, rows, cols);
  for (Buffer* part : {&result.weight, &result.scales, &result.biases}) {
    for (int64_t i = 0; i < part->size; ++i) {
      part->data[i] = static_cast<uint8_t>(random.next() >> 56);
    }
  }
  return result;
}

std::vector<int32_t> random_columns(Random& random, int64_t cols, int64_t count) {
  std::vector<int32_t> columns(static_cast<size_t>(count));
  const int64_t kind = random.below(4);
  for (int64_t i = 0; i < count; ++i) {
    switch (kind) {
      case 0:  // padded at the end
        columns[i] = static_cast<int32_t>(i < cols ? i : -1);
        break;
      case 1:  // increasing with gaps
        columns[i] = static_cast<int32_t>(i * cols / count);
        break;
      case 2:  // anything
        columns[i] = static_cast<int32_t>(random.below(cols + 1) - 1);
        break;
      default:  // whole groups of 32 in any order
        columns[i] = static_cast<int32_t>((i / 32 * 7 * 32 + i % 32) % cols);
    }
  }
  return columns;
}

int64_t unit(const Encoding& encoding) {
  return encoding.group_size > 0 ? encoding.group_size : 1;
}

uint64_t fuzz_round(uint64_t hash, Random& random, bool hostile) {
  const auto& encodings = all_encodings();
  const auto pick = [&] {
    return encodings[static_cast<size_t>(random.below(static_cast<int64_t>(encodings.size())))];
  };
  const Encoding from = pick();
  const Encoding to = random.below(3) == 0 ? from : pick();
  const int64_t rows = random.below(5);
  const int64_t cols = unit(from) * (1 + random.below(unit(from) == 1 ? 300 : 5));
  const Matrix source =
      hostile ? hostile_matrix(random, from, rows, cols) : random_matrix(random, from, rows, cols);
  const int64_t count = unit(to) * random.below(unit(to) == 1 ? 300 : 5);
  const std::vector<int32_t> columns = random_columns(random, cols, count);
  const int32_t none = 0;
  const Columns chosen = {columns.empty() ? &none : columns.data(), count};
  hash = run_everywhere(hash, {source, rows, cols, chosen, to, random.below(2) == 0});
  if (cols % unit(to) == 0) {
    hash = run_everywhere(hash, {source, rows, cols, {nullptr, cols}, to, false});
  }
  return hostile ? hash : check_sums(hash, source, rows, cols);
}

// Every encoding as source and as target; which pairs, differs from source to source.
uint64_t check_pairs(uint64_t hash, Random& random) {
  constexpr int64_t kRows = 2;
  constexpr int64_t kCols = 384;
  constexpr size_t kStride = 11;
  const auto& encodings = all_encodings();
  for (size_t from = 0; from < encodings.size(); ++from) {
    const Matrix source = random_matrix(random, encodings[from], kRows, kCols);
    hash = hash_matrix(hash, source);
    hash = check_sums(hash, source, kRows, kCols);
    for (size_t to = from % kStride; to < encodings.size(); to += kStride) {
      const std::vector<int32_t> columns = random_columns(random, kCols, 256);
      const Columns chosen = {columns.data(), 256};
      hash =
          run_everywhere(hash, {source, kRows, kCols, chosen, encodings[to], random.below(2) == 0});
    }
  }
  return hash;
}

// Rows of several segments: kept columns, columns in no order, padding, whole groups between.
uint64_t check_wide_rows(uint64_t hash, Random& random) {
  constexpr int64_t kRows = 2;
  constexpr int64_t kCols = 8192;
  constexpr int64_t kCount = 5120;
  const char* dtypes[] = {"BF16", "F16", "F32"};
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (const char* mode : {"affine", "symmetric"}) {
      const Encoding packed = make_encoding(dtypes[bits % 3], bits, 64, mode);
      const Matrix source = random_matrix(random, packed, kRows, kCols);
      hash = check_sums(hash, source, kRows, kCols);
      std::vector<int32_t> kept(kCount);
      std::vector<int32_t> shuffled(kCount);
      std::vector<int32_t> copied(kCount);
      for (int32_t i = 0; i < kCount; ++i) {
        kept[i] = i < kCount - 40 ? static_cast<int32_t>(i * kCols / kCount) : -1;
        shuffled[i] = static_cast<int32_t>(random.below(kCols + 1) - 1);
        copied[i] = i + (i / 1024 % 2 == 0 ? 0 : 7);
      }
      for (const std::vector<int32_t>* columns : {&kept, &shuffled, &copied}) {
        hash =
            run_everywhere(hash, {source, kRows, kCols, {columns->data(), kCount}, packed, true});
      }
    }
  }
  return hash;
}

void check_padding_is_zero(Random& random) {
  const Encoding wide = make_encoding("F32", 0, 0, "");
  for (const Encoding& encoding : all_encodings()) {
    const Matrix source = random_matrix(random, wide, 3, 200);
    std::vector<int32_t> columns(256);
    for (int32_t i = 0; i < 256; ++i) {
      columns[i] = i < 200 ? i : -1;
    }
    Matrix packed(encoding, 3, 256);
    requantize(
        source.source(), 3, 200, {columns.data(), 256}, packed.target(), find_kernels(""), {});
    Matrix back(wide, 3, 256);
    requantize(packed.source(), 3, 256, {nullptr, 256}, back.target(), find_kernels(""), {});
    for (int64_t row = 0; row < 3; ++row) {
      for (int64_t column = 200; column < 256; ++column) {
        float value = 1.0f;
        std::memcpy(&value, back.weight.data.get() + 4 * (256 * row + column), 4);
        check(value == 0.0f, describe(encoding).c_str());
      }
    }
  }
}

#if defined(__x86_64__)
constexpr uint64_t kFlushToZero = 0x8040;
uint64_t float_mode() {
  return _mm_getcsr() & 0xFFC0u;
}
void set_float_mode(uint64_t mode) {
  _mm_setcsr(static_cast<unsigned>(mode));
}
#elif defined(__aarch64__)
constexpr uint64_t kFlushToZero = 1u << 24;
uint64_t float_mode() {
  uint64_t mode = 0;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void set_float_mode(uint64_t mode) {
  __asm__ volatile("msr fpcr, %0" : : "r"(mode));
}
#else
constexpr uint64_t kFlushToZero = 0;
uint64_t float_mode() {
  return 0;
}
void set_float_mode(uint64_t) {}
#endif

// A caller in flush-to-zero mode must get the same results, and keep its mode.
void check_float_mode() {
  const Encoding wide = make_encoding("F32", 0, 0, "");
  Random random(7);
  Matrix source(wide, 1, 64);
  for (int64_t i = 0; i < 64; ++i) {
    const auto subnormal = static_cast<uint32_t>(1 + random.below(0x7FFFFF));
    std::memcpy(source.weight.data.get() + 4 * i, &subnormal, 4);
  }
  Matrix plain(make_encoding("U8", 0, 0, "mxfp8"), 1, 64);
  Matrix flushed(plain.encoding, 1, 64);
  double plain_sum = 0.0;
  double flushed_sum = 0.0;
  const Kernels& kernels = find_kernels("");
  requantize(source.source(), 1, 64, {nullptr, 64}, plain.target(), kernels, {});
  row_square_sums(source.source(), 1, 64, &plain_sum, kernels);
  const uint64_t saved = float_mode();
  set_float_mode(saved | kFlushToZero);
  requantize(source.source(), 1, 64, {nullptr, 64}, flushed.target(), kernels, {});
  row_square_sums(source.source(), 1, 64, &flushed_sum, kernels);
  const uint64_t after = float_mode();
  set_float_mode(saved);
  check(after == (saved | kFlushToZero), "the caller keeps its float mode");
  check(equal(plain, flushed), "the caller's float mode changes no bytes");
  check(plain_sum > 0.0 && plain_sum == flushed_sum, "the caller's float mode changes no sums");
}

template <typename Call>
void check_refused(const char* what, const Call& call) {
  try {
    call();
    check(false, what);
  } catch (const std::invalid_argument&) {
  }
}

void check_refusals() {
  const Encoding packed = make_encoding("BF16", 4, 64, "");
  Matrix source(packed, 2, 64);
  Matrix target(packed, 2, 64);
  const int32_t outside[64] = {64};
  check_refused("a column outside", [&] {
    requantize(source.source(), 2, 64, {outside, 64}, target.target(), find_kernels(""), {});
  });
  check_refused("too many rows", [&] {
    requantize(source.source(), 3, 64, {nullptr, 64}, target.target(), find_kernels(""), {});
  });
  check_refused("rows beyond 2^63 bytes", [&] {
    requantize(
        source.source(), INT64_MAX, 64, {nullptr, 64}, target.target(), find_kernels(""), {});
  });
  check_refused("an unknown instruction set", [] { find_kernels("mmx"); });
  const int32_t rows[2] = {0, 2};
  check_refused("a row outside", [&] {
    gather_rows({source.weight.data.get(), 64}, 32, rows, 2, {target.weight.data.get(), 64});
  });
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 400;
  Random random(argc > 2 ? static_cast<uint64_t>(std::atoll(argv[2])) : 1);
  uint64_t hash = 0xCBF29CE484222325ull;
  hash = check_pairs(hash, random);
  hash = check_wide_rows(hash, random);
  check_padding_is_zero(random);
  check_float_mode();
  check_refusals();
  for (int round = 0; round < rounds; ++round) {
    hash = fuzz_round(hash, random, round % 4 == 3);
  }
  std::string names;
  for (const Kernels* kernels : available_kernels()) {
    names += std::string(" ") + kernels->name;
  }
  std::printf("tables:%s\n", names.c_str());
  std::printf("hash: %016llx\n", static_cast<unsigned long long>(hash));
  return failures == 0 ? 0 : 1;
}

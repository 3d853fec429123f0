// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Products with affine matrices against float64, and the promise that a result depends on its
// own row of x and row of w alone. Runs under the sanitizers. Prints one hash of all results:
// it must be the same on every machine.
//
//   gemma_surgery_product_test [rounds of fuzzing, default 40] [seed, default 1]

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/products.h"
#include "cpu/thread_pool.h"
#include "float_cases.h"

namespace gs = gemma_surgery::cpu;
using namespace float_test;

namespace {

#define CHECK(condition, ...)                                     \
  do {                                                            \
    if (!(condition)) {                                           \
      ++failures;                                                 \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                   \
      std::printf("\n");                                          \
    }                                                             \
  } while (false)

uint64_t hash = 0xCBF29CE484222325ull;

void add_to_hash(const void* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001B3ull;
  }
}

// A random matrix in exactly sized buffers, so that a sanitizer sees a byte too many.
struct Matrix {
  Matrix(int64_t rows, int64_t cols, int bits, int group, Random& random, Dtype dtype = Dtype::BF16)
      : codes(static_cast<size_t>(rows * cols)),
        packed(static_cast<size_t>(rows * cols * bits / 8)),
        scales(dtype, rows * cols / group),
        biases(dtype, rows * cols / group) {
    for (size_t i = 0; i < codes.size(); ++i) {
      codes[i] = static_cast<uint8_t>(random.below(int64_t{1} << bits));
      const size_t row = i / static_cast<size_t>(cols);
      const size_t bit = i % static_cast<size_t>(cols) * static_cast<size_t>(bits);
      uint8_t* at = packed.data() + row * static_cast<size_t>(cols * bits / 8) + bit / 8;
      const unsigned word = static_cast<unsigned>(codes[i]) << (bit % 8);
      at[0] = static_cast<uint8_t>(at[0] | (word & 0xFF));
      if (word > 0xFF) {
        at[1] = static_cast<uint8_t>(at[1] | (word >> 8));
      }
    }
    const float levels = static_cast<float>(1 << bits);
    for (int64_t i = 0; i < scales.size; ++i) {
      const float sign = random.below(2) != 0 ? 1.0f : -1.0f;
      const float scale = sign * (1 + 0.25f * random.value()) / levels;
      scales.set(i, scale);
      biases.set(i, -scale * levels / 2);
    }
    view = {packed.data(), scales.data(), biases.data(), dtype, bits, group, rows, cols};
  }

  double value(int64_t row, int64_t col) const {
    const int64_t group = (row * view.cols + col) / view.group_size;
    const auto code = codes[static_cast<size_t>(row * view.cols + col)];
    return scales.at(group) * code + biases.at(group);
  }

  std::vector<uint8_t> codes;
  std::vector<uint8_t> packed;
  Array scales;
  Array biases;
  gs::AffineMatrix view;
};

std::vector<float> random_rows(int64_t count, Random& random) {
  std::vector<float> x(static_cast<size_t>(count));
  for (float& value : x) {
    value = random.value();
  }
  return x;
}

gs::FloatRows rows_of(const std::vector<float>& x, int64_t count, int64_t cols) {
  return {reinterpret_cast<const uint8_t*>(x.data()), gs::Dtype::F32, count, cols};
}

std::vector<float>
product(const Matrix& w, const gs::FloatRows& x, const gs::ProductOptions& options) {
  std::vector<float> out(static_cast<size_t>(x.count * w.view.rows));
  gs::quantized_product(
      w.view, x, {reinterpret_cast<uint8_t*>(out.data()), gs::Dtype::F32, w.view.rows}, options);
  return out;
}

bool same_bits(const float* a, const float* b, size_t count) {
  return std::memcmp(a, b, count * sizeof(float)) == 0;
}

// Largest error over the root mean square of what is right.
double error_of(const Matrix& w, const std::vector<float>& x, const std::vector<float>& out) {
  const int64_t rows = static_cast<int64_t>(x.size()) / w.view.cols;
  double largest = 0;
  double squares = 0;
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t n = 0; n < w.view.rows; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < w.view.cols; ++k) {
        sum += static_cast<double>(x[static_cast<size_t>(t * w.view.cols + k)]) * w.value(n, k);
      }
      const double error = sum - out[static_cast<size_t>(t * w.view.rows + n)];
      largest = std::max(largest, std::fabs(error));
      squares += sum * sum;
    }
  }
  return largest / std::sqrt(squares / static_cast<double>(rows * w.view.rows) + 1e-30);
}

void test_every_format() {
  Random random(7);
  for (const int bits : {2, 3, 4, 5, 6, 8}) {
    for (const int group : {32, 64, 128}) {
      const int64_t cols = group * random.between(1, 21);
      const int64_t rows = random.between(1, 150);
      const Matrix w(rows, cols, bits, group, random);
      for (const int64_t count : {int64_t{1}, int64_t{3}, int64_t{13}}) {
        const std::vector<float> x = random_rows(count * cols, random);
        const gs::FloatRows view = rows_of(x, count, cols);
        for (const auto mode :
             {gs::Activations::Full, gs::Activations::Int16, gs::Activations::Int8}) {
          std::vector<float> first;
          for (const gs::Kernels* kernels : gs::available_kernels()) {
            const std::vector<float> out = product(w, view, {kernels, 2, mode});
            const double limit = mode == gs::Activations::Full    ? 1e-5
                                 : mode == gs::Activations::Int16 ? 1e-3
                                                                  : 0.2;
            const double error = error_of(w, x, out);
            CHECK(
                error < limit,
                "%s bits %d group %d rows %ld cols %ld T %ld: %g",
                kernels->name,
                bits,
                group,
                static_cast<long>(rows),
                static_cast<long>(cols),
                static_cast<long>(count),
                error);
            first = first.empty() ? out : first;
            CHECK(
                same_bits(first.data(), out.data(), out.size()),
                "%s differs from the widest",
                kernels->name);
          }
          add_to_hash(first.data(), first.size() * sizeof(float));
        }
      }
    }
  }
}

void test_a_row_does_not_depend_on_the_others() {
  Random random(8);
  const Matrix w(300, 320, 4, 64, random);
  const std::vector<float> x = random_rows(int64_t{40} * 320, random);
  for (const gs::Kernels* kernels : gs::available_kernels()) {
    const std::vector<float> all = product(w, rows_of(x, 40, 320), {kernels, 2});
    for (const int64_t count : {1, 2, 4, 5, 7, 12, 25}) {
      for (const int threads : {1, 3}) {
        const std::vector<float> some = product(w, rows_of(x, count, 320), {kernels, threads});
        CHECK(
            same_bits(all.data(), some.data(), some.size()),
            "%s, %ld rows",
            kernels->name,
            static_cast<long>(count));
      }
    }
  }
}

void test_what_is_not_finite_stays_in_its_row() {
  Random random(9);
  const Matrix w(20, 128, 4, 64, random);
  std::vector<float> x = random_rows(int64_t{6} * 128, random);
  x[130] = std::numeric_limits<float>::infinity();
  x[260] = std::nanf("");
  const std::vector<float> out = product(w, rows_of(x, 6, 128), {});
  for (size_t i = 0; i < out.size(); ++i) {
    const bool is_bad = i / 20 == 1 || i / 20 == 2;
    CHECK(std::isnan(out[i]) == is_bad, "element %zu is %g", i, static_cast<double>(out[i]));
  }
}

void test_tiny_and_huge_rows() {
  Random random(10);
  const Matrix w(20, 128, 8, 32, random);
  for (const float size : {1e-30f, 1e30f}) {
    std::vector<float> x = random_rows(128, random);
    for (float& value : x) {
      value *= size;
    }
    const double error = error_of(w, x, product(w, rows_of(x, 1, 128), {}));
    CHECK(error < 1e-5, "at %g: %g", static_cast<double>(size), error);
  }
  const std::vector<float> zeros(128);
  for (const float value : product(w, rows_of(zeros, 1, 128), {})) {
    CHECK(value == 0, "%g of zeros", static_cast<double>(value));
  }
}

void test_the_head() {
  Random random(11);
  constexpr int64_t kRows = 777;
  const Matrix w(kRows, 256, 4, 64, random);
  for (const int64_t count : {int64_t{2}, int64_t{17}}) {
    const std::vector<float> x = random_rows(count * 256, random);
    const gs::FloatRows view = rows_of(x, count, 256);
    for (const float cap : {0.0f, 30.0f}) {
      const gs::Head head = {w.view, cap};
      std::vector<float> logits(static_cast<size_t>(count * kRows));
      gs::tied_logits(
          head, view, {reinterpret_cast<uint8_t*>(logits.data()), gs::Dtype::F32, kRows}, {});
      add_to_hash(logits.data(), logits.size() * sizeof(float));
      const std::vector<float> plain = product(w, view, {});
      for (size_t i = 0; i < logits.size(); ++i) {
        const double right =
            cap == 0 ? plain[i] : cap * std::tanh(plain[i] / static_cast<double>(cap));
        CHECK(
            std::fabs(logits[i] - right) < 2e-5,
            "%g for %g",
            static_cast<double>(logits[i]),
            right);
      }
      constexpr int64_t kBest = 9;
      std::vector<float> values(static_cast<size_t>(count * kBest));
      std::vector<int32_t> ids(values.size());
      std::vector<int32_t> original(kRows);
      for (int64_t i = 0; i < kRows; ++i) {
        original[static_cast<size_t>(i)] = static_cast<int32_t>(3 * i + 1);
      }
      gs::tied_topk(head, view, kBest, original.data(), values.data(), ids.data(), {});
      std::vector<int32_t> targets(static_cast<size_t>(count));
      for (int32_t& target : targets) {
        target = static_cast<int32_t>(random.below(kRows));
      }
      targets[1] = -1;
      std::vector<float> log_probs(targets.size());
      std::vector<float> log_sums(targets.size());
      gs::tied_logprob(head, view, targets.data(), log_probs.data(), log_sums.data(), {});
      for (int64_t t = 0; t < count; ++t) {
        const float* row = logits.data() + t * kRows;
        std::vector<int32_t> order(kRows);
        for (int32_t i = 0; i < kRows; ++i) {
          order[static_cast<size_t>(i)] = i;
        }
        std::stable_sort(
            order.begin(), order.end(), [&](int32_t a, int32_t b) { return row[a] > row[b]; });
        double sum = 0;
        for (int64_t i = 0; i < kRows; ++i) {
          sum += std::exp(static_cast<double>(row[i]));
        }
        for (int64_t i = 0; i < kBest; ++i) {
          const auto at = static_cast<size_t>(t * kBest + i);
          const int32_t best = order[static_cast<size_t>(i)];
          CHECK(
              ids[at] == 3 * best + 1 && values[at] == row[best],
              "place %ld",
              static_cast<long>(i));
        }
        const auto at = static_cast<size_t>(t);
        CHECK(
            std::fabs(log_sums[at] - std::log(sum)) < 1e-5, "sum of row %ld", static_cast<long>(t));
        const double right = t == 1 ? -INFINITY : row[targets[at]] - std::log(sum);
        CHECK(
            log_probs[at] == right || std::fabs(log_probs[at] - right) < 2e-5,
            "target of row %ld",
            static_cast<long>(t));
      }
    }
  }
}

void test_equal_logits_go_to_the_lower_row() {
  Random random(12);
  Matrix w(400, 64, 4, 64, random);
  std::fill(w.packed.begin(), w.packed.end(), uint8_t{0x77});
  for (int64_t i = 0; i < w.scales.size; ++i) {
    w.scales.set(i, 0.5f);
    w.biases.set(i, 0.0f);
  }
  const std::vector<float> x(64, 1.0f);
  std::vector<float> values(5);
  std::vector<int32_t> ids(5);
  gs::tied_topk({w.view, 0}, rows_of(x, 1, 64), 5, nullptr, values.data(), ids.data(), {});
  for (int32_t i = 0; i < 5; ++i) {
    CHECK(
        ids[static_cast<size_t>(i)] == i,
        "place %d went to row %d",
        i,
        ids[static_cast<size_t>(i)]);
  }
}

void test_every_task_runs_once_whoever_calls() {
  const auto count_all = [](int rounds, int threads) {
    for (int round = 0; round < rounds; ++round) {
      const int64_t tasks = 1 + round % 37;
      std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
      gs::parallel_tasks(tasks, threads, [&](int64_t task) {
        runs[static_cast<size_t>(task)].fetch_add(1);
        gs::parallel_tasks(2, threads, [&](int64_t) {});
      });
      for (const std::atomic<int>& run : runs) {
        CHECK(run.load() == 1, "a task ran %d times", run.load());
      }
    }
  };
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back(count_all, 300, 2 + i);
  }
  for (std::thread& caller : callers) {
    caller.join();
  }
}

// More threads than processors stop anywhere: one may hold what it read of a used-up job while
// the next, with more tasks, is set up.
void test_threads_that_stop_anywhere_take_no_task_of_another_job(int jobs) {
  constexpr int kThreads = 16;
  constexpr int64_t kMost = 4;
  std::vector<std::atomic<int>> runs(kMost);
  for (int job = 0; job < jobs; ++job) {
    const int64_t count = job % 2 != 0 ? 2 : kMost;
    gs::parallel_tasks(count, kThreads, [&](int64_t task) {
      runs[static_cast<size_t>(task)].fetch_add(1, std::memory_order_relaxed);
    });
    for (int64_t task = 0; task < kMost; ++task) {
      const int ran = runs[static_cast<size_t>(task)].exchange(0, std::memory_order_relaxed);
      CHECK(
          ran == (task < count ? 1 : 0),
          "task %d of job %d ran %d times",
          static_cast<int>(task),
          job,
          ran);
    }
  }
}

// Any format, dtype, row distance and number of threads: one result on every instruction set.
void fuzz_a_product(Random& random) {
  const int all_bits[] = {2, 3, 4, 5, 6, 8};
  const int bits = all_bits[random.below(6)];
  const int group = 32 << random.below(3);
  const int64_t cols = group * random.between(1, 20);
  const int64_t rows = random.between(1, random.below(4) == 0 ? 300 : 40);
  const int64_t count = random.between(1, random.below(3) == 0 ? 40 : 6);
  const int64_t stride = cols + random.below(3);
  const int64_t out_stride = rows + random.below(3);
  const Matrix w(rows, cols, bits, group, random, random.dtype());
  Array x(random.dtype(), (count - 1) * stride + cols);
  x.fill(random);
  const Dtype dtype = random.dtype();
  const auto mode = static_cast<gs::Activations>(random.below(3));
  // Halves enter with 16 bits. Errors are held against the size that sums have, sqrt(cols) / 3,
  // since some of them cancel.
  const double allowed = mode == gs::Activations::Int8                            ? 0.2
                         : mode == gs::Activations::Full && x.dtype == Dtype::F32 ? 1e-5
                                                                                  : 1e-3;
  const double slack = allowed * std::sqrt(static_cast<double>(cols)) / 3;
  const int threads = static_cast<int>(random.between(1, 3));
  Array first(dtype, (count - 1) * out_stride + rows);
  for (const gs::Kernels* kernels : gs::available_kernels()) {
    Array out(dtype, first.size);
    gs::quantized_product(
        w.view,
        {x.data(), x.dtype, count, stride},
        {out.data(), dtype, out_stride},
        {kernels, threads, mode});
    if (kernels == gs::available_kernels().front()) {
      std::memcpy(first.data(), out.data(), static_cast<size_t>(out.size * bytes_of(dtype)));
    }
    CHECK(first.same_bytes(out), "%s differs from the widest", kernels->name);
  }
  add_to_hash(first.data(), static_cast<size_t>(first.size * bytes_of(dtype)));
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t n = 0; n < rows; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < cols; ++k) {
        sum += x.at(t * stride + k) * w.value(n, k);
      }
      const double got = first.at(t * out_stride + n);
      CHECK(
          near(got, sum, dtype, slack),
          "bits %d group %d rows %ld cols %ld T %ld: %g for %g",
          bits,
          group,
          static_cast<long>(rows),
          static_cast<long>(cols),
          static_cast<long>(count),
          got,
          sum);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 40;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  test_every_format();
  test_a_row_does_not_depend_on_the_others();
  test_what_is_not_finite_stays_in_its_row();
  test_tiny_and_huge_rows();
  test_the_head();
  test_equal_logits_go_to_the_lower_row();
  test_every_task_runs_once_whoever_calls();
  test_threads_that_stop_anywhere_take_no_task_of_another_job(150000 * rounds);
  Random random(seed);
  for (int round = 0; round < rounds; ++round) {
    fuzz_a_product(random);
  }
  std::printf("hash: %016llx\n", static_cast<unsigned long long>(hash));
  std::printf("%s: %d rounds\n", failures == 0 ? "ok" : "FAILED", rounds);
  return failures == 0 ? 0 : 1;
}

// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The solver against float64 on every instruction set: factors, reconstruction and compensated
// rounding, the same bits for any number of threads and on every instruction set.
//
//   gemma_surgery_solve_test [rounds of fuzzing, default 60] [seed, default 1]

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "cpu/encoding.h"
#include "cpu/solve.h"
#include "float_cases.h"

using namespace gemma_surgery::cpu;
using namespace float_test;

namespace {

using Bytes = std::vector<uint8_t>;

std::string on(const char* what, const Kernels* kernels) {
  return std::string(what) + " on " + kernels->name;
}

// One draw for all instruction sets: how many there are must not change what follows.
int random_threads(Random& random) {
  return static_cast<int>(random.between(1, 4));
}

int threads_of(int first, size_t index) {
  return 1 + (first + static_cast<int>(index)) % 4;
}

// FNV-1a of all results: the same on every machine.
uint64_t hash = 0xCBF29CE484222325ull;

void add_to_hash(const void* data, int64_t size) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  for (int64_t i = 0; i < size; ++i) {
    hash = (hash ^ bytes[i]) * 0x100000001B3ull;
  }
}

// Exactly as large as its elements, so that a sanitizer sees the first one beyond.
struct Matrix {
  int64_t rows;
  int64_t cols;
  std::unique_ptr<float[]> data;

  Matrix(int64_t r, int64_t c)
      : rows(r), cols(c), data(new float[static_cast<size_t>(std::max<int64_t>(r * c, 1))]) {}

  float& at(int64_t r, int64_t c) {
    return data[static_cast<size_t>(r * cols + c)];
  }
  double at(int64_t r, int64_t c) const {
    return static_cast<double>(data[static_cast<size_t>(r * cols + c)]);
  }

  void hash_bytes() const {
    add_to_hash(data.get(), rows * cols * 4);
  }

  bool same_bytes(const Matrix& other) const {
    return std::memcmp(
               data.get(), other.data.get(), static_cast<size_t>(rows * cols) * sizeof(float)) == 0;
  }
};

Matrix random_matrix(Random& random, int64_t rows, int64_t cols) {
  Matrix matrix(rows, cols);
  for (int64_t i = 0; i < rows * cols; ++i) {
    matrix.data[static_cast<size_t>(i)] = random.value();
  }
  return matrix;
}

// X^T X of correlated inputs, some columns of which may be dead or the same as others.
Matrix random_hessian(Random& random, int64_t size) {
  const int64_t samples = size + random.between(0, 20);
  Matrix inputs = random_matrix(random, samples, size);
  const int64_t dead = random.below(3) == 0 ? random.below(size) : -1;
  for (int64_t s = 0; s < samples; ++s) {
    for (int64_t c = 1; c < size; ++c) {
      inputs.at(s, c) += 0.5f * inputs.at(s, c - 1);
    }
    if (dead >= 0) {
      inputs.at(s, dead) = 0.0f;
    }
  }
  Matrix hessian(size, size);
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j < size; ++j) {
      double sum = 0.0;
      for (int64_t s = 0; s < samples; ++s) {
        sum += static_cast<double>(inputs.at(s, i)) * static_cast<double>(inputs.at(s, j));
      }
      hessian.at(i, j) = static_cast<float>(sum / static_cast<double>(samples));
    }
  }
  return hessian;
}

double mean_diagonal(const Matrix& hessian, const std::vector<int32_t>& kept) {
  double sum = 0.0;
  double count = 0.0;
  for (const int32_t i : kept) {
    sum += hessian.at(i, i);
    count += hessian.at(i, i) > 0.0;
  }
  return count > 0.0 ? sum / count : 1.0;
}

// The damped Hessian of the kept columns as the solver defines it.
double damped(
    const Matrix& hessian,
    const std::vector<int32_t>& kept,
    int64_t i,
    int64_t j,
    double damping,
    double mean) {
  const double value = hessian.at(kept[static_cast<size_t>(i)], kept[static_cast<size_t>(j)]);
  return i == j ? (value > 0.0 ? value : mean) + damping * mean : value;
}

std::vector<int32_t> all_columns(int64_t count) {
  std::vector<int32_t> columns(static_cast<size_t>(count));
  std::iota(columns.begin(), columns.end(), 0);
  return columns;
}

std::vector<int32_t> shuffled(Random& random, int64_t count) {
  std::vector<int32_t> columns = all_columns(count);
  for (int64_t i = count - 1; i > 0; --i) {
    std::swap(columns[static_cast<size_t>(i)], columns[static_cast<size_t>(random.below(i + 1))]);
  }
  return columns;
}

// U H U^T is the identity, and the Hessian that U stands for is the damped one.
void factors_invert_the_hessian(Random& random) {
  const int64_t size = random.below(3) == 0 ? random.between(150, 420) : random.between(1, 60);
  const Matrix hessian = random_hessian(random, size);
  const double damping = random.below(2) == 0 ? 0.01 : 0.1;
  const std::vector<int32_t> all = all_columns(size);
  const double mean = mean_diagonal(hessian, all);
  const int first_threads = random_threads(random);
  std::vector<Matrix> results;
  for (const Kernels* kernels : available_kernels()) {
    Matrix upper(size, size);
    Matrix again(size, size);
    const int threads = threads_of(first_threads, results.size());
    const double used =
        inverse_factor({hessian.data.get(), size}, damping, upper.data.get(), {kernels, threads});
    check(used == damping, on("a definite matrix takes the damping asked for", kernels));
    hessian_of_factor(upper.data.get(), size, again.data.get(), {kernels, threads});
    results.push_back(std::move(upper));
    results.push_back(std::move(again));
  }
  const Matrix& upper = results[0];
  upper.hash_bytes();
  double worst = 0.0;
  std::vector<double> product(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j < size; ++j) {
      double sum = 0.0;
      for (int64_t k = i; k < size; ++k) {
        sum += upper.at(i, k) * damped(hessian, all, k, j, damping, mean);
      }
      product[static_cast<size_t>(j)] = sum;
      check(j >= i || upper.at(i, j) == 0.0, "an upper factor has zeros below its diagonal");
    }
    for (int64_t j = 0; j < size; ++j) {
      double sum = 0.0;
      for (int64_t k = j; k < size; ++k) {
        sum += product[static_cast<size_t>(k)] * upper.at(j, k);
      }
      worst = std::max(worst, std::fabs(sum - (i == j)));
    }
  }
  check(worst < 2e-4, "U H U^T is the identity, but for " + std::to_string(worst));
  double difference = 0.0;
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j < size; ++j) {
      const double wanted = damped(hessian, all, i, j, damping, mean);
      difference = std::max(difference, std::fabs(results[1].at(i, j) - wanted) / mean);
    }
  }
  check(
      difference < 2e-4, "a factor gives its Hessian back, but for " + std::to_string(difference));
  for (size_t i = 2; i < results.size(); ++i) {
    check(results[i].same_bytes(results[i % 2]), "factor: same bits on instruction sets");
  }
}

// The gradient of the least-squares problem vanishes at the solution.
void reconstruction_is_a_minimum(Random& random) {
  const int64_t size = random.below(3) == 0 ? random.between(200, 450) : random.between(1, 60);
  const int64_t rows = random.between(1, 70);
  const Matrix hessian = random_hessian(random, size);
  const Matrix weight = random_matrix(random, rows, size);
  std::vector<int32_t> kept = shuffled(random, size);
  kept.resize(static_cast<size_t>(random.between(1, size)));
  const auto count = static_cast<int64_t>(kept.size());
  const double damping = 0.01;
  const int first_threads = random_threads(random);
  std::vector<Matrix> results;
  for (const Kernels* kernels : available_kernels()) {
    Matrix out(rows, count);
    reconstruct(
        weight.data.get(),
        rows,
        {hessian.data.get(), size},
        kept.data(),
        count,
        damping,
        out.data.get(),
        {kernels, threads_of(first_threads, results.size())});
    results.push_back(std::move(out));
  }
  results[0].hash_bytes();
  const double mean = mean_diagonal(hessian, kept);
  double worst = 0.0;
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<double> moved(static_cast<size_t>(size));
    for (int64_t c = 0; c < size; ++c) {
      moved[static_cast<size_t>(c)] = -weight.at(r, c);
    }
    for (int64_t k = 0; k < count; ++k) {
      moved[static_cast<size_t>(kept[static_cast<size_t>(k)])] += results[0].at(r, k);
    }
    for (int64_t k = 0; k < count; ++k) {
      const int32_t column = kept[static_cast<size_t>(k)];
      const bool dead = hessian.at(column, column) == 0.0;
      double gradient = (damping + (dead ? 1.0 : 0.0)) * mean * moved[static_cast<size_t>(column)];
      for (int64_t c = 0; c < size; ++c) {
        gradient += moved[static_cast<size_t>(c)] * hessian.at(c, column);
      }
      worst = std::max(worst, std::fabs(gradient) / mean);
    }
  }
  check(worst < 2e-3, "reconstruction has no gradient, but for " + std::to_string(worst));
  for (const Matrix& result : results) {
    check(result.same_bytes(results.front()), "reconstruct: same bits on instruction sets");
  }
}

struct Stored {
  Bytes weight;
  Bytes scales;
  Bytes biases;

  Stored(const Encoding& encoding, int64_t rows, int64_t cols) {
    const RowBytes row = row_bytes(encoding, cols);
    weight.resize(static_cast<size_t>(rows * row.weight), 0xA5);
    scales.resize(static_cast<size_t>(rows * row.scales), 0xA5);
    biases.resize(static_cast<size_t>(rows * row.biases), 0xA5);
  }

  Target target(const Encoding& encoding) {
    const auto part = [](Bytes& bytes) {
      return MutableBytes{bytes.data(), static_cast<int64_t>(bytes.size())};
    };
    return {encoding, part(weight), part(scales), part(biases)};
  }

  bool operator==(const Stored& other) const {
    return weight == other.weight && scales == other.scales && biases == other.biases;
  }
};

Encoding random_encoding(Random& random) {
  const int bits[] = {2, 3, 4, 5, 6, 8};
  const int groups[] = {32, 64, 128};
  const char* dtypes[] = {"F32", "F16", "BF16"};
  // One after the other: arguments of a call are evaluated in any order.
  const char* dtype = dtypes[random.below(3)];
  const int width = bits[random.below(6)];
  const int group = groups[random.below(3)];
  return make_encoding(dtype, width, group, random.below(4) == 0 ? "symmetric" : "affine");
}

Stored requantized(const Matrix& weight, const Encoding& encoding) {
  const Encoding dense = make_encoding("F32", 0, 0, "");
  Stored stored(encoding, weight.rows, weight.cols);
  const Source source = {
      dense,
      {reinterpret_cast<const uint8_t*>(weight.data.get()), weight.rows * weight.cols * 4},
      {},
      {}};
  requantize(
      source,
      weight.rows,
      weight.cols,
      {nullptr, weight.cols},
      stored.target(encoding),
      find_kernels(""),
      {1, true});
  return stored;
}

// trace((W - Q) H (W - Q)^T).
double
output_error(const Matrix& weight, Stored& stored, const Encoding& encoding, const Matrix& h) {
  Matrix decoded(weight.rows, weight.cols);
  const Target parts = stored.target(encoding);
  const Source source = {
      encoding,
      {parts.weight.data, parts.weight.size},
      {parts.scales.data, parts.scales.size},
      {parts.biases.data, parts.biases.size}};
  const int64_t bytes = weight.rows * weight.cols * 4;
  requantize(
      source,
      weight.rows,
      weight.cols,
      {nullptr, weight.cols},
      {make_encoding("F32", 0, 0, ""),
       {reinterpret_cast<uint8_t*>(decoded.data.get()), bytes},
       {},
       {}},
      find_kernels(""),
      {});
  double error = 0.0;
  for (int64_t r = 0; r < weight.rows; ++r) {
    for (int64_t i = 0; i < weight.cols; ++i) {
      double sum = 0.0;
      for (int64_t j = 0; j < weight.cols; ++j) {
        sum += h.at(i, j) * (weight.at(r, j) - static_cast<double>(decoded.at(r, j)));
      }
      error += sum * (weight.at(r, i) - static_cast<double>(decoded.at(r, i)));
    }
  }
  return error;
}

// Where each column is on its own, what is left is rounding after a longer search for scales.
void rounding_compensates(Random& random) {
  const Encoding encoding = random_encoding(random);
  const int64_t cols = encoding.group_size * random.between(1, 256 / encoding.group_size + 1);
  const int64_t rows = random.between(1, 70);
  const Matrix weight = random_matrix(random, rows, cols);
  const bool alone = random.below(3) == 0;
  Matrix hessian = random_hessian(random, cols);
  for (int64_t i = 0; alone && i < cols * cols; ++i) {
    hessian.data[static_cast<size_t>(i)] = i % (cols + 1) == 0 ? 1.0f : 0.0f;
  }
  Matrix upper(cols, cols);
  inverse_factor({hessian.data.get(), cols}, 0.01, upper.data.get(), {});
  const std::vector<int32_t> order = shuffled(random, cols);
  const bool ordered = random.below(2) == 0;
  const int first_threads = random_threads(random);
  std::vector<Stored> results;
  for (const Kernels* kernels : available_kernels()) {
    Stored stored(encoding, rows, cols);
    round_compensated(
        weight.data.get(),
        rows,
        cols,
        upper.data.get(),
        ordered ? order.data() : nullptr,
        stored.target(encoding),
        {kernels, threads_of(first_threads, results.size())});
    results.push_back(std::move(stored));
  }
  for (const Bytes& part : {results[0].weight, results[0].scales, results[0].biases}) {
    add_to_hash(part.data(), static_cast<int64_t>(part.size()));
  }
  Stored plain = requantized(weight, encoding);
  if (alone || !ordered) {
    const double rounded = output_error(weight, plain, encoding, hessian);
    const double compensated = output_error(weight, results[0], encoding, hessian);
    check(
        alone ? compensated <= rounded * (1.0 + 1e-5) : compensated < rounded,
        "compensated rounding has the smaller output error");
  }
  for (const Stored& result : results) {
    check(result == results.front(), "round_compensated: same bytes on instruction sets");
  }
}

void a_matrix_that_is_not_definite_takes_more_damping() {
  Matrix hessian(2, 2);
  hessian.at(0, 0) = hessian.at(1, 1) = 1.0f;
  hessian.at(0, 1) = hessian.at(1, 0) = 1.045f;
  for (const Kernels* kernels : available_kernels()) {
    Matrix upper(2, 2);
    const double used = inverse_factor({hessian.data.get(), 2}, 0.01, upper.data.get(), {kernels});
    check(used > 0.049 && used < 0.051, on("damping grows by hundredths", kernels));
  }
}

bool refuses(const char* message, const auto& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return std::string(error.what()).find(message) != std::string::npos;
  }
  return false;
}

void what_does_not_fit_is_refused() {
  Matrix hessian(2, 2);
  hessian.at(0, 0) = hessian.at(1, 1) = 1.0f;
  hessian.at(0, 1) = hessian.at(1, 0) = 0.0f;
  Matrix out(2, 2);
  const auto factor = [&](double damping) {
    inverse_factor({hessian.data.get(), 2}, damping, out.data.get(), {});
  };
  check(refuses("[factor] need a damping", [&] { factor(-1.0); }), "negative damping");
  check(refuses("[factor] need a damping", [&] { factor(std::nan("")); }), "damping NaN");
  const int32_t twice[] = {0, 0};
  const int32_t beyond[] = {2};
  const auto solve = [&](const int32_t* kept, int64_t count) {
    reconstruct(out.data.get(), 2, {hessian.data.get(), 2}, kept, count, 0.01, out.data.get(), {});
  };
  std::fill_n(out.data.get(), 4, 0.0f);
  check(refuses("need distinct kept", [&] { solve(twice, 2); }), "a column kept twice");
  check(refuses("between -1 and 1, got 2", [&] { solve(beyond, 1); }), "a column beyond the end");
  hessian.at(1, 1) = -1.0f;
  check(refuses("diagonal of at least 0", [&] { factor(0.01); }), "a negative diagonal");
  hessian.at(1, 1) = std::nanf("");
  check(refuses("need a finite matrix", [&] { factor(0.01); }), "a Hessian with NaN");
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 60;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  Random random(seed);
  what_does_not_fit_is_refused();
  a_matrix_that_is_not_definite_takes_more_damping();
  for (int round = 0; round < rounds; ++round) {
    factors_invert_the_hessian(random);
    reconstruction_is_a_minimum(random);
    rounding_compensates(random);
  }
  std::printf("hash: %016llx\n", static_cast<unsigned long long>(hash));
  std::printf("%s: %d rounds\n", failures == 0 ? "ok" : "FAILED", rounds);
  return failures == 0 ? 0 : 1;
}

// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Dense products, norms, GELU and rotary embedding against float64 on every instruction set, and
// what they promise: rows that do not depend on each other, the same bits for any number of
// threads and, where the header says so, on any instruction set.
//
//   gemma_surgery_float_test [rounds of fuzzing, default 150] [seed, default 1]

#include <cstdlib>
#include <stdexcept>
#include <vector>

#include "cpu/dense_product.h"
#include "cpu/row_ops.h"
#include "float_cases.h"

using namespace gemma_surgery::cpu;
using namespace float_test;

namespace {

// Rows with a gap between them, as a slice of a wider array has.
struct Table {
  int64_t rows;
  int64_t cols;
  int64_t stride;
  Array array;

  Table(Random& random, Dtype dtype, int64_t count, int64_t width)
      : rows(count),
        cols(width),
        stride(width + (random.below(2) == 0 ? 0 : random.below(9))),
        array(dtype, count == 0 ? 0 : (count - 1) * stride + width) {
    array.fill(random);
  }

  FloatRows view() const {
    return {array.data(), array.dtype, rows, stride};
  }

  MutableFloatRows target() {
    return {array.data(), array.dtype, stride};
  }

  double at(int64_t row, int64_t col) const {
    return array.at(row * stride + col);
  }
};

std::string on(const char* what, const Kernels* kernels) {
  return std::string(what) + " on " + kernels->name;
}

std::vector<float> random_floats(Random& random, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    value = random.value();
  }
  return values;
}

void dense_product_equals_float64(Random& random) {
  const int64_t rows = random.below(4) == 0 ? random.between(9, 60) : random.between(0, 9);
  const int64_t depth = random.below(8) == 0 ? 0 : random.between(1, 400);
  Table w(random, random.dtype(), random.between(1, 230), depth);
  Table x(random, random.dtype(), rows, depth);
  const std::vector<float> bias = random_floats(random, w.rows);
  const float* added = random.below(2) == 0 ? bias.data() : nullptr;
  const DenseMatrix matrix = {w.array.data(), w.array.dtype, w.rows, depth, w.stride};
  const Table blank(random, random.dtype(), rows, w.rows);
  std::vector<Array> results;
  for (const Kernels* kernels : float_tables()) {
    auto run = [&](const FloatRows& input, int threads) {
      Array out(blank.array.dtype, blank.array.size);
      const MutableFloatRows target = {out.data(), out.dtype, blank.stride};
      dense_product(matrix, input, added, target, {kernels, threads});
      return out;
    };
    Array got = run(x.view(), static_cast<int>(random.between(1, 4)));
    bool good = true;
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t n = 0; n < w.rows; ++n) {
        double sum = added != nullptr ? added[n] : 0.0;
        double size = std::fabs(sum);
        for (int64_t k = 0; k < depth; ++k) {
          sum += x.at(t, k) * w.at(n, k);
          size += std::fabs(x.at(t, k) * w.at(n, k));
        }
        const double value = got.at(t * blank.stride + n);
        good = good && near(value, sum, got.dtype, 1e-6 * size);
      }
    }
    check(good, on("dense product equals float64", kernels));
    check(got.same_bytes(run(x.view(), 1)), on("dense product: one thread, same bits", kernels));
    if (rows > 0) {
      const int64_t t = random.below(rows);
      const int64_t x_offset = t * x.stride * bytes_of(x.array.dtype);
      const Array one = run({x.array.data() + x_offset, x.array.dtype, 1, x.stride}, 2);
      const int64_t bytes = bytes_of(one.dtype);
      check(
          std::memcmp(
              one.data(),
              got.data() + t * blank.stride * bytes,
              static_cast<size_t>(w.rows * bytes)) == 0,
          on("dense product: one row equals one of several", kernels));
    }
    if (std::string(kernels->name) != "portable") {
      results.push_back(std::move(got));
    }
  }
  for (const Array& result : results) {
    check(result.same_bytes(results.front()), "dense product: same bits on instruction sets");
  }
}

// Runs `op(kernels, threads, out)` everywhere and compares with `wanted(row, col)`.
template <typename Op, typename Wanted>
void check_rows(
    Random& random,
    const char* what,
    int64_t rows,
    int64_t cols,
    bool same_everywhere,
    const Op& op,
    const Wanted& wanted) {
  const Table blank(random, random.dtype(), rows, cols);
  std::vector<Array> results;
  for (const Kernels* kernels : float_tables()) {
    Array out(blank.array.dtype, blank.array.size);
    op(FloatOptions{kernels, 1}, MutableFloatRows{out.data(), out.dtype, blank.stride});
    bool good = true;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t col = 0; col < cols; ++col) {
        const double value = wanted(row, col);
        const double got = out.at(row * blank.stride + col);
        good = good && near(got, value, out.dtype, 2e-6 * std::fabs(value) + 1e-6);
      }
    }
    check(good, on(what, kernels));
    Array threaded(blank.array.dtype, blank.array.size);
    const int threads = static_cast<int>(random.between(2, 4));
    op(FloatOptions{kernels, threads},
       MutableFloatRows{threaded.data(), threaded.dtype, blank.stride});
    check(threaded.same_bytes(out), on((std::string(what) + ", threads").c_str(), kernels));
    results.push_back(std::move(out));
  }
  for (const Array& result : results) {
    check(
        !same_everywhere || result.same_bytes(results.front()),
        std::string(what) + ": same bits on instruction sets");
  }
}

void norms_equal_float64(Random& random) {
  const int64_t rows = random.between(0, 60);
  const int64_t cols = random.below(4) == 0 ? random.between(1000, 3000) : random.between(1, 200);
  const Table x(random, random.dtype(), rows, cols);
  const Table h(random, random.dtype(), rows, cols);
  const std::vector<float> weight = random_floats(random, cols);
  const std::vector<float> bias = random_floats(random, cols);
  const bool bare = random.below(3) == 0;
  const float* scale = bare ? nullptr : weight.data();
  const float* shift = bare ? nullptr : bias.data();
  const float eps = 1e-6f;
  std::vector<double> means;
  std::vector<double> squares;
  std::vector<double> variances;
  for (int64_t row = 0; row < rows; ++row) {
    double sum = 0;
    double square = 0;
    for (int64_t col = 0; col < cols; ++col) {
      sum += x.at(row, col);
      square += x.at(row, col) * x.at(row, col);
    }
    means.push_back(sum / static_cast<double>(cols));
    squares.push_back(square / static_cast<double>(cols));
    double spread = 0;
    for (int64_t col = 0; col < cols; ++col) {
      spread += (x.at(row, col) - means.back()) * (x.at(row, col) - means.back());
    }
    variances.push_back(spread / static_cast<double>(cols));
  }
  auto rms = [&](int64_t row, int64_t col) {
    const double factor = scale != nullptr ? scale[col] : 1.0;
    return x.at(row, col) / std::sqrt(squares[static_cast<size_t>(row)] + eps) * factor;
  };
  check_rows(
      random,
      "rms_norm",
      rows,
      cols,
      true,
      [&](const FloatOptions& options, const MutableFloatRows& out) {
        rms_norm(x.view(), cols, scale, eps, out, options);
      },
      rms);
  check_rows(
      random,
      "add_rms_norm",
      rows,
      cols,
      true,
      [&](const FloatOptions& options, const MutableFloatRows& out) {
        add_rms_norm(h.view(), x.view(), cols, scale, eps, out, options);
      },
      [&](int64_t row, int64_t col) { return h.at(row, col) + rms(row, col); });
  if (cols < 8) {
    return;  // the variance of a few numbers may be all rounding
  }
  check_rows(
      random,
      "layer_norm",
      rows,
      cols,
      true,
      [&](const FloatOptions& options, const MutableFloatRows& out) {
        layer_norm(x.view(), cols, scale, shift, eps, out, options);
      },
      [&](int64_t row, int64_t col) {
        const size_t r = static_cast<size_t>(row);
        const double value = (x.at(row, col) - means[r]) / std::sqrt(variances[r] + eps);
        return bare ? value
                    : value * weight[static_cast<size_t>(col)] + bias[static_cast<size_t>(col)];
      });
}

double gelu(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

void gelu_equals_float64(Random& random) {
  const int64_t rows = random.between(0, 40);
  const int64_t cols = random.below(4) == 0 ? random.between(1000, 4000) : random.between(1, 200);
  Table gate(random, random.dtype(), rows, cols);
  const Table up(random, random.dtype(), rows, cols);
  for (int64_t i = 0; i < gate.array.size; ++i) {
    gate.array.set(i, static_cast<float>(gate.array.at(i)) * 6.0f);
  }
  check_rows(
      random,
      "gelu_tanh",
      rows,
      cols,
      false,
      [&](const FloatOptions& options, const MutableFloatRows& out) {
        gelu_tanh(gate.view(), cols, out, options);
      },
      [&](int64_t row, int64_t col) { return gelu(gate.at(row, col)); });
  check_rows(
      random,
      "gated_gelu",
      rows,
      cols,
      false,
      [&](const FloatOptions& options, const MutableFloatRows& out) {
        gated_gelu(gate.view(), up.view(), cols, out, options);
      },
      [&](int64_t row, int64_t col) { return gelu(gate.at(row, col)) * up.at(row, col); });
}

void gelu_of_special_values() {
  const float values[] = {INFINITY, -1e30f, 1e30f, std::nanf(""), 0.0f, -0.0f, -100.0f, 1e-40f};
  const double wanted[] = {INFINITY, 0, 1e30f, NAN, 0, 0, 0, 5e-41};
  Array x(Dtype::F32, 8);
  for (int i = 0; i < 8; ++i) {
    x.set(i, values[i]);
  }
  for (const Kernels* kernels : float_tables()) {
    Array out(Dtype::F32, 8);
    gelu_tanh({x.data(), Dtype::F32, 1, 8}, 8, {out.data(), Dtype::F32, 8}, {kernels, 1});
    for (int i = 0; i < 8; ++i) {
      const bool exact = std::isinf(wanted[i]) ? out.at(i) == wanted[i]
                                               : near(out.at(i), wanted[i], Dtype::F32, 1e-7);
      check(exact, on("gelu of a special value", kernels));
    }
  }
}

void rope_equals_float64(Random& random) {
  RopeShape shape;
  shape.batch = random.between(1, 2);
  shape.heads = random.between(1, 3);
  shape.tokens = random.between(0, 40);
  shape.dim = random.between(1, 150);
  shape.dims = random.below(shape.dim / 2 + 1) * 2;
  const bool token_major = random.below(2) == 0;
  const int64_t head = token_major ? shape.dim : shape.tokens * shape.dim;
  const int64_t token = token_major ? shape.heads * shape.dim : shape.dim;
  const int64_t batch = shape.heads * shape.tokens * shape.dim;
  const int64_t offset = random.below(2) == 0 ? random.below(100) : random.below(1 << 20);
  std::vector<float> periods;
  for (int64_t i = 0; i < shape.dims / 2; ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(shape.dims);
    periods.push_back(static_cast<float>(std::pow(1e6, exponent)));
  }
  if (!periods.empty() && random.below(3) == 0) {
    periods.back() = INFINITY;
  }
  Array x(random.dtype(), shape.batch * batch);
  x.fill(random);
  const Dtype dtype = random.dtype();
  std::vector<Array> results;
  for (const Kernels* kernels : float_tables()) {
    for (const int threads : {1, 3}) {
      Array out(dtype, x.size);
      rope(
          shape,
          {x.data(), x.dtype, batch, head, token},
          periods.data(),
          offset,
          {out.data(), dtype, batch, head, token},
          {kernels, threads});
      results.push_back(std::move(out));
    }
  }
  const int64_t pairs = shape.dims / 2;
  bool good = true;
  for (int64_t row = 0; row < shape.batch * shape.heads * shape.tokens; ++row) {
    const int64_t t = row % shape.tokens;
    const int64_t h = row / shape.tokens % shape.heads;
    const int64_t at = row / (shape.tokens * shape.heads) * batch + h * head + t * token;
    for (int64_t i = 0; i < shape.dim; ++i) {
      double wanted = x.at(at + i);
      if (i < shape.dims) {
        const int64_t pair = i % pairs;
        const double angle = static_cast<double>(offset + t) / periods[static_cast<size_t>(pair)];
        const double a = x.at(at + pair);
        const double b = x.at(at + pair + pairs);
        wanted = i < pairs ? a * std::cos(angle) - b * std::sin(angle)
                           : a * std::sin(angle) + b * std::cos(angle);
      }
      good = good && near(results.front().at(at + i), wanted, dtype, 1e-6);
    }
  }
  check(good, "rope equals float64");
  for (const Array& result : results) {
    check(result.same_bytes(results.front()), "rope: same bits everywhere");
  }
}

void wrong_shapes_are_refused() {
  Array array(Dtype::F32, 16);
  const FloatRows rows = {array.data(), Dtype::F32, -1, 4};
  const MutableFloatRows out = {array.data(), Dtype::F32, 4};
  const HeadsView heads = {array.data(), Dtype::F32, 4, 4, 4};
  const MutableHeadsView to = {array.data(), Dtype::F32, 4, 4, 4};
  const float periods[2] = {1, 1};
  auto refuses = [](const char* tag, const auto& call) {
    try {
      call();
    } catch (const std::invalid_argument& error) {
      return std::string(error.what()).rfind(std::string("[") + tag + "] need", 0) == 0;
    }
    return false;
  };
  const bool all =
      refuses("rms_norm", [&] { rms_norm(rows, 4, nullptr, 0, out, {}); }) &&
      refuses("layer_norm", [&] { layer_norm(rows, 4, nullptr, nullptr, 0, out, {}); }) &&
      refuses("gelu_tanh", [&] { gelu_tanh(rows, 4, out, {}); }) &&
      refuses(
          "gated_gelu",
          [&] {
            const FloatRows one = {array.data(), Dtype::F32, 1, 4};
            const FloatRows two = {array.data(), Dtype::F32, 2, 4};
            gated_gelu(one, two, 4, out, {});
          }) &&
      refuses("rope", [&] { rope({1, 1, 1, 4, 3}, heads, periods, 0, to, {}); }) &&
      refuses("dense_product", [&] {
        dense_product({array.data(), Dtype::F32, 2, 4, 4}, rows, nullptr, out, {});
      });
  check(all, "wrong shapes are refused with the name of the operation");
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 150;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  Random random(seed);
  wrong_shapes_are_refused();
  gelu_of_special_values();
  for (int round = 0; round < rounds; ++round) {
    dense_product_equals_float64(random);
    norms_equal_float64(random);
    gelu_equals_float64(random);
    rope_equals_float64(random);
  }
  std::printf("%s: %d rounds\n", failures == 0 ? "ok" : "FAILED", rounds);
  return failures == 0 ? 0 : 1;
}

// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Attention against float64 on every instruction set, and what it promises: rows that do not
// depend on each other, results that do not depend on threads, zeros where nothing is seen.
//
//   gemma_surgery_attention_test [rounds of fuzzing, default 150] [seed, default 1]

#include <cstdlib>
#include <stdexcept>
#include <vector>

#include "cpu/attention.h"
#include "float_cases.h"

using namespace gemma_surgery::cpu;
using namespace float_test;

namespace {

// Either [B, H, T, D] in this order, or [B, T, H, D] as projections leave it.
struct Strides {
  int64_t batch;
  int64_t head;
  int64_t token;
};

Strides strides_of(bool tokens_first, int64_t heads, int64_t tokens, int64_t dim) {
  const Strides by_token = {tokens * heads * dim, dim, heads * dim};
  const Strides by_head = {tokens * heads * dim, tokens * dim, dim};
  return tokens_first ? by_token : by_head;
}

struct Case {
  AttentionShape shape;
  AttentionMask mask;
  std::vector<int32_t> images;
  std::vector<uint8_t> allowed;
  float scale;
  bool tokens_first;
  Array q;
  Array k;
  Array v;
  Dtype out;

  int64_t out_size() const {
    return shape.batch * shape.heads * shape.queries * shape.dim;
  }

  Strides q_strides() const {
    return strides_of(tokens_first, shape.heads, shape.queries, shape.dim);
  }

  Strides k_strides() const {
    return strides_of(!tokens_first, shape.kv_heads, shape.keys, shape.dim);
  }

  Array run(const Kernels* kernels, int threads) const {
    Array result(out, out_size());
    const Strides a = q_strides();
    const Strides b = k_strides();
    attention(
        shape,
        {q.data(), q.dtype, a.batch, a.head, a.token},
        {k.data(), k.dtype, b.batch, b.head, b.token},
        {v.data(), v.dtype, b.batch, b.head, b.token},
        scale,
        mask,
        {result.data(), out, a.batch, a.head, a.token},
        {kernels, threads});
    return result;
  }

  bool sees(int64_t batch, int64_t head, int64_t t, int64_t s) const {
    if (mask.kind == AttentionMask::Kind::Boolean) {
      return allowed[static_cast<size_t>(
                 batch * mask.batch_stride + head * mask.head_stride + t * mask.query_stride +
                 s * mask.key_stride)] != 0;
    }
    if (mask.kind == AttentionMask::Kind::Full) {
      return true;
    }
    const int64_t past = shape.keys - shape.queries;
    bool seen = s <= past + t;
    if (!images.empty() && s >= past) {
      const int32_t image = images[static_cast<size_t>(t)];
      seen = seen || (image > 0 && images[static_cast<size_t>(s - past)] == image);
    }
    return seen && (mask.window == 0 || s > past + t - mask.window);
  }
};

Case random_case(Random& random, int64_t queries) {
  AttentionShape shape;
  shape.batch = random.between(1, 2);
  shape.kv_heads = random.between(1, 2);
  shape.heads = shape.kv_heads * random.between(1, 3);
  shape.queries = queries;
  shape.dim = random.below(3) == 0 ? 72 : 8 * random.between(1, 20);
  if (random.below(12) == 0) {
    shape.dim = 8 * random.between(40, 64);
  }
  const auto kind = static_cast<AttentionMask::Kind>(random.below(3));
  const bool long_past = random.below(4) == 0;
  shape.keys = random.below(long_past ? 1300 : 150);
  if (kind == AttentionMask::Kind::Causal) {
    shape.keys += queries;
  }
  const int64_t kv_size = shape.batch * shape.kv_heads * shape.keys * shape.dim;
  Case c{
      shape,
      {},
      {},
      {},
      (1.0f + random.value()) / std::sqrt(static_cast<float>(shape.dim)),
      random.below(2) == 0,
      Array(random.dtype(), shape.batch * shape.heads * queries * shape.dim),
      Array(random.dtype(), kv_size),
      Array(random.dtype(), kv_size),
      random.dtype()};
  c.q.fill(random);
  c.k.fill(random);
  c.v.fill(random);
  c.mask.kind = kind;
  if (kind == AttentionMask::Kind::Causal) {
    c.mask.window = random.below(2) == 0 ? 0 : random.between(1, shape.keys + 3);
    if (random.below(2) == 0) {
      int32_t image = 0;
      for (int64_t t = 0; t < queries; ++t) {
        image = random.below(6) == 0 ? static_cast<int32_t>(random.below(3)) : image;
        c.images.push_back(image);
      }
    }
  } else if (kind == AttentionMask::Kind::Boolean) {
    const bool per_head = random.below(2) == 0;
    const bool transposed = random.below(3) == 0;
    c.mask.query_stride = transposed ? 1 : shape.keys;
    c.mask.key_stride = transposed ? queries : 1;
    c.mask.head_stride = per_head ? queries * shape.keys : 0;
    c.mask.batch_stride = per_head ? shape.heads * queries * shape.keys : 0;
    const int64_t planes = per_head ? shape.batch * shape.heads : 1;
    const int64_t density = random.between(1, 4);
    for (int64_t i = 0; i < planes * queries * shape.keys; ++i) {
      c.allowed.push_back(
          random.below(4) < density ? static_cast<uint8_t>(random.between(1, 255)) : 0);
    }
  }
  return c;
}

// The pointers of a mask, once the case has its final place.
void attach(Case& c) {
  c.mask.image_blocks = c.images.empty() ? nullptr : c.images.data();
  static const uint8_t nothing = 0;
  c.mask.allowed = c.mask.kind != AttentionMask::Kind::Boolean ? nullptr
                   : c.allowed.empty()                         ? &nothing
                                                               : c.allowed.data();
}

std::vector<double> truth(const Case& c) {
  const AttentionShape& shape = c.shape;
  std::vector<double> result(static_cast<size_t>(c.out_size()), 0.0);
  const Strides a = c.q_strides();
  const Strides b = c.k_strides();
  std::vector<double> weights(static_cast<size_t>(shape.keys));
  for (int64_t batch = 0; batch < shape.batch; ++batch) {
    for (int64_t head = 0; head < shape.heads; ++head) {
      const int64_t kv = batch * b.batch + head / (shape.heads / shape.kv_heads) * b.head;
      for (int64_t t = 0; t < shape.queries; ++t) {
        const int64_t at = batch * a.batch + head * a.head + t * a.token;
        double top = -INFINITY;
        for (int64_t s = 0; s < shape.keys; ++s) {
          double score = 0;
          for (int64_t d = 0; d < shape.dim; ++d) {
            score += c.q.at(at + d) * c.k.at(kv + s * b.token + d);
          }
          weights[static_cast<size_t>(s)] = c.sees(batch, head, t, s) ? score * c.scale : -INFINITY;
          top = std::fmax(top, weights[static_cast<size_t>(s)]);
        }
        double total = 0;
        for (double& weight : weights) {
          weight = weight == -INFINITY ? 0.0 : std::exp(weight - top);
          total += weight;
        }
        for (int64_t d = 0; d < shape.dim && total > 0; ++d) {
          double sum = 0;
          for (int64_t s = 0; s < shape.keys; ++s) {
            sum += weights[static_cast<size_t>(s)] * c.v.at(kv + s * b.token + d);
          }
          result[static_cast<size_t>(at + d)] = sum / total;
        }
      }
    }
  }
  return result;
}

std::string described(const Case& c, const char* isa) {
  return "B" + std::to_string(c.shape.batch) + " H" + std::to_string(c.shape.heads) + " K" +
         std::to_string(c.shape.kv_heads) + " T" + std::to_string(c.shape.queries) + " S" +
         std::to_string(c.shape.keys) + " D" + std::to_string(c.shape.dim) + " mask " +
         std::to_string(static_cast<int>(c.mask.kind)) + " window " +
         std::to_string(c.mask.window) + " images " + std::to_string(c.images.size()) + " on " +
         isa;
}

void attention_equals_float64(Random& random) {
  const int64_t lengths[] = {0, 1, 2, 5, 16, 17, 20, 49, 100};
  Case c = random_case(random, lengths[random.below(9)]);
  attach(c);
  const std::vector<double> wanted = truth(c);
  for (const Kernels* kernels : float_tables()) {
    const Array got = c.run(kernels, static_cast<int>(random.between(1, 3)));
    bool good = true;
    for (int64_t i = 0; i < got.size; ++i) {
      // Values lie within 4: scores off by 1e-6 move their mean by as much.
      good = good && near(got.at(i), wanted[static_cast<size_t>(i)], got.dtype, 1e-5);
    }
    check(good, "attention equals float64: " + described(c, kernels->name));
    check(got.same_bytes(c.run(kernels, 4)), "same on 4 threads: " + described(c, kernels->name));
  }
}

// One token after the other, each with the keys up to its own, gives the rows of all at once.
void single_tokens_equal_several(Random& random) {
  Case c = random_case(random, random.between(2, 16));
  c.shape.batch = 1;
  if (c.mask.kind != AttentionMask::Kind::Causal) {
    return;
  }
  c.images.clear();
  attach(c);
  const int64_t past = c.shape.keys - c.shape.queries;
  for (const Kernels* kernels : float_tables()) {
    const Array all = c.run(kernels, static_cast<int>(random.between(1, 4)));
    for (int64_t t = 0; t < c.shape.queries; ++t) {
      const Strides a = c.q_strides();
      const Strides b = c.k_strides();
      // What a cache would have dropped by then: keys before the window.
      const int64_t end = past + t + 1;
      const int64_t window = c.mask.window == 0 ? end : c.mask.window;
      const int64_t dropped = random.below(2) == 0 ? 0 : std::max<int64_t>(end - window, 0);
      AttentionShape shape = c.shape;
      shape.queries = 1;
      shape.keys = end - dropped;
      AttentionMask mask = c.mask;
      mask.window = dropped > 0 ? 0 : mask.window;
      Array one(c.out, shape.heads * shape.dim);
      attention(
          shape,
          {c.q.data() + t * a.token * bytes_of(c.q.dtype), c.q.dtype, 0, a.head, a.token},
          {c.k.data() + dropped * b.token * bytes_of(c.k.dtype), c.k.dtype, 0, b.head, b.token},
          {c.v.data() + dropped * b.token * bytes_of(c.v.dtype), c.v.dtype, 0, b.head, b.token},
          c.scale,
          mask,
          {one.data(), c.out, 0, shape.dim, shape.dim},
          {kernels, static_cast<int>(random.between(1, 4))});
      for (int64_t head = 0; head < shape.heads; ++head) {
        const int64_t bytes = bytes_of(c.out);
        check(
            std::memcmp(
                one.data() + head * shape.dim * bytes,
                all.data() + (head * a.head + t * a.token) * bytes,
                static_cast<size_t>(shape.dim * bytes)) == 0,
            "one token equals one of several: " + described(c, kernels->name));
      }
    }
  }
}

// A query that is not a number spoils its own row; a value that nobody sees spoils nothing.
void nan_stays_where_it_is_seen(Random& random) {
  for (const int64_t queries : {4, 60}) {
    Case c = random_case(random, queries);
    while (c.mask.kind != AttentionMask::Kind::Causal) {
      c = random_case(random, queries);
    }
    c.images.clear();
    c.mask.window = 0;
    attach(c);
    const int64_t spoiled = random.below(queries);
    const Strides a = c.q_strides();
    for (const Kernels* kernels : float_tables()) {
      const Array clean = c.run(kernels, 2);
      Array q(c.q.dtype, c.q.size);
      std::memcpy(q.data(), c.q.data(), static_cast<size_t>(q.size * bytes_of(q.dtype)));
      c.q.set(spoiled * a.token, std::nanf(""));
      const Array got = c.run(kernels, 2);
      std::swap(c.q.bytes, q.bytes);
      bool good = true;
      for (int64_t batch = 0; batch < c.shape.batch; ++batch) {
        for (int64_t head = 0; head < c.shape.heads; ++head) {
          for (int64_t t = 0; t < queries; ++t) {
            const int64_t at = batch * a.batch + head * a.head + t * a.token;
            const bool spoiled_row = t == spoiled && head == 0 && batch == 0;
            good = good && (spoiled_row ? std::isnan(got.at(at)) : got.at(at) == clean.at(at));
          }
        }
      }
      check(good, "NaN in one query: " + described(c, kernels->name));
      if (queries <= 16) {
        Case last = random_case(random, queries);
        while (last.mask.kind != AttentionMask::Kind::Causal) {
          last = random_case(random, queries);
        }
        last.images.clear();
        attach(last);
        const Array before = last.run(kernels, 1);
        const int64_t key = last.shape.keys - 1;
        last.v.set(key * last.k_strides().token, std::nanf(""));
        const Array after = last.run(kernels, 1);
        const Strides s = last.q_strides();
        check(
            after.at(0) == before.at(0) && std::isnan(after.at((queries - 1) * s.token)),
            "NaN in a later value: " + described(last, kernels->name));
      }
    }
  }
}

void wrong_shapes_are_refused() {
  Array array(Dtype::F32, 64 * 4);
  const HeadsView view = {array.data(), Dtype::F32, 64, 64, 64};
  const MutableHeadsView out = {array.data(), Dtype::F32, 64, 64, 64};
  AttentionMask causal;
  causal.kind = AttentionMask::Kind::Causal;
  const AttentionShape shapes[] = {
      {1, 1, 1, 1, 1, 7},
      {1, 1, 1, 1, 1, 520},
      {1, 3, 2, 1, 1, 8},
      {1, 1, 0, 1, 1, 8},
      {1, 1, 1, 2, 1, 8},
      {1, 1, 1, -1, 1, 8}};
  for (const AttentionShape& shape : shapes) {
    bool refused = false;
    try {
      attention(shape, view, view, view, 1.0f, causal, out, {});
    } catch (const std::invalid_argument& error) {
      refused = std::string(error.what()).rfind("[attention] need", 0) == 0;
    }
    check(refused, "refuses D=" + std::to_string(shape.dim));
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 150;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  Random random(seed);
  wrong_shapes_are_refused();
  for (int round = 0; round < rounds; ++round) {
    attention_equals_float64(random);
    single_tokens_equal_several(random);
    if (round % 10 == 0) {
      nan_stays_where_it_is_seen(random);
    }
  }
  std::printf("%s: %d rounds\n", failures == 0 ? "ok" : "FAILED", rounds);
  return failures == 0 ? 0 : 1;
}

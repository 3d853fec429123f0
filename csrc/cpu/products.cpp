// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0

#include "cpu/products.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/checks.h"
#include "cpu/dispatch.h"
#include "cpu/product_plan.h"
#include "cpu/thread_pool.h"

namespace gemma_surgery::cpu {

namespace {

const ProductKernels& kernels_of(const ProductOptions& options) {
  return *(options.kernels ? options.kernels : &find_kernels(""))->products;
}

// A span of the head: enough of them for all threads, few enough to merge what each found.
// It follows from the shape alone, so that sums are the same for every number of threads.
int64_t head_span(int64_t rows) {
  constexpr int64_t kSpans = 64;
  const int64_t share = (rows + kSpans - 1) / kSpans;
  return std::max((share + kBlockRows - 1) / kBlockRows, int64_t{1}) * kBlockRows;
}

int64_t head_spans(int64_t rows) {
  return (rows + head_span(rows) - 1) / head_span(rows);
}

class Writer : public Consumer {
 public:
  Writer(const ProductKernels& kernels, const MutableFloatRows& out, float cap)
      : kernels_(kernels), out_(out), cap_(cap), size_(out.dtype == Dtype::F32 ? 4 : 2) {}

  void take(int64_t, int64_t t, int64_t first, int64_t count, float* values) override {
    if (cap_ != 0) {
      kernels_.softcap(values, count, cap_);
    }
    kernels_.store(out_.dtype, values, count, out_.data + (t * out_.stride + first) * size_);
  }

 private:
  const ProductKernels& kernels_;
  MutableFloatRows out_;
  float cap_;
  int64_t size_;
};

struct Candidate {
  float value;
  int32_t row;
};

// A total order: NaN before all numbers, then larger values, then lower rows.
bool is_before(const Candidate& a, const Candidate& b) {
  const bool a_is_nan = std::isnan(a.value);
  const bool b_is_nan = std::isnan(b.value);
  if (a_is_nan != b_is_nan) {
    return a_is_nan;
  }
  if (!a_is_nan && a.value != b.value) {
    return a.value > b.value;
  }
  return a.row < b.row;
}

// The best k of each span as a heap with the worst in front, for every row of x.
class Selector : public Consumer {
 public:
  Selector(const ProductKernels& kernels, int64_t spans, int64_t count_t, int64_t k, float cap)
      : kernels_(kernels),
        count_t_(count_t),
        k_(static_cast<size_t>(k)),
        cap_(cap),
        heaps_(static_cast<size_t>(spans * count_t)) {}

  void take(int64_t span, int64_t t, int64_t first, int64_t count, float* values) override {
    if (cap_ != 0) {
      kernels_.softcap(values, count, cap_);
    }
    std::vector<Candidate>& heap = heaps_[static_cast<size_t>(span * count_t_ + t)];
    for (int64_t i = 0; i < count; ++i) {
      // Rows come in order: an equal value in a full heap is beaten by its lower row.
      if (heap.size() == k_ &&
          (values[i] <= heap.front().value || std::isnan(heap.front().value))) {
        continue;
      }
      if (heap.size() == k_) {
        std::pop_heap(heap.begin(), heap.end(), is_before);
        heap.pop_back();
      }
      heap.push_back({values[i], static_cast<int32_t>(first + i)});
      std::push_heap(heap.begin(), heap.end(), is_before);
    }
  }

  // The best k of all spans, in order.
  std::vector<Candidate> best(int64_t t) const {
    std::vector<Candidate> all;
    for (size_t i = static_cast<size_t>(t); i < heaps_.size(); i += static_cast<size_t>(count_t_)) {
      all.insert(all.end(), heaps_[i].begin(), heaps_[i].end());
    }
    std::partial_sort(
        all.begin(), all.begin() + static_cast<std::ptrdiff_t>(k_), all.end(), is_before);
    all.resize(k_);
    return all;
  }

 private:
  const ProductKernels& kernels_;
  int64_t count_t_;
  size_t k_;
  float cap_;
  std::vector<std::vector<Candidate>> heaps_;
};

// sum * e^largest, kept so that neither overflows.
struct ExpSum {
  float largest = -std::numeric_limits<float>::infinity();
  double sum = 0;

  void add(const ExpSum& other) {
    if (other.sum == 0) {
      return;
    }
    const float top = std::max(largest, other.largest);
    sum = sum * std::exp(static_cast<double>(largest) - top) +
          other.sum * std::exp(static_cast<double>(other.largest) - top);
    largest = top;
  }

  float log() const {
    return static_cast<float>(largest + std::log(sum));
  }
};

class LogSums : public Consumer {
 public:
  LogSums(
      const ProductKernels& kernels,
      int64_t spans,
      int64_t count_t,
      float cap,
      const int32_t* targets,
      float* target_logits)
      : kernels_(kernels),
        count_t_(count_t),
        cap_(cap),
        targets_(targets),
        target_logits_(target_logits),
        sums_(static_cast<size_t>(spans * count_t)) {}

  void take(int64_t span, int64_t t, int64_t first, int64_t count, float* values) override {
    if (cap_ != 0) {
      kernels_.softcap(values, count, cap_);
    }
    const int64_t target = targets_[t];
    if (first <= target && target < first + count) {
      target_logits_[t] = values[target - first];
    }
    ExpSum block;
    block.sum = kernels_.exp_sum(values, count, &block.largest);
    sums_[static_cast<size_t>(span * count_t_ + t)].add(block);
  }

  float log_sum(int64_t t) const {
    ExpSum total;
    for (size_t i = static_cast<size_t>(t); i < sums_.size(); i += static_cast<size_t>(count_t_)) {
      total.add(sums_[i]);
    }
    return total.log();
  }

 private:
  const ProductKernels& kernels_;
  int64_t count_t_;
  float cap_;
  const int32_t* targets_;
  float* target_logits_;
  std::vector<ExpSum> sums_;
};

// The best row of each span, and the sum over its allowed rows.
class Chooser : public Consumer {
 public:
  Chooser(
      const ProductKernels& kernels,
      int64_t spans,
      int64_t count_t,
      float cap,
      const int32_t* ids)
      : kernels_(kernels),
        count_t_(count_t),
        cap_(cap),
        ids_(ids),
        found_(static_cast<size_t>(spans * count_t)) {}

  struct Found {
    Candidate best = {-std::numeric_limits<float>::infinity(), -1};
    ExpSum total;

    void add(const Found& other) {
      const bool is_first = best.row < 0;
      best = other.best.row >= 0 && (is_first || is_before(other.best, best)) ? other.best : best;
      total.add(other.total);
    }
  };

  void take(int64_t span, int64_t t, int64_t first, int64_t count, float* values) override {
    if (cap_ != 0) {
      kernels_.softcap(values, count, cap_);
    }
    Found block;
    for (int64_t i = 0; i < count; ++i) {
      if (ids_ && ids_[first + i] < 0) {
        values[i] = -std::numeric_limits<float>::infinity();
        continue;
      }
      const Candidate candidate = {values[i], static_cast<int32_t>(first + i)};
      if (block.best.row < 0 || is_before(candidate, block.best)) {
        block.best = candidate;
      }
    }
    block.total.sum = kernels_.exp_sum(values, count, &block.total.largest);
    found_[static_cast<size_t>(span * count_t_ + t)].add(block);
  }

  Found result(int64_t t) const {
    Found all;
    for (size_t i = static_cast<size_t>(t); i < found_.size(); i += static_cast<size_t>(count_t_)) {
      all.add(found_[i]);
    }
    return all;
  }

 private:
  const ProductKernels& kernels_;
  int64_t count_t_;
  float cap_;
  const int32_t* ids_;
  std::vector<Found> found_;
};

}  // namespace

void quantized_product(
    const AffineMatrix& w,
    const FloatRows& x,
    const MutableFloatRows& out,
    const ProductOptions& options) {
  Writer writer(kernels_of(options), out, 0);
  run_products(w, x, kBlockRows, options, writer);
}

void tied_logits(
    const Head& head,
    const FloatRows& x,
    const MutableFloatRows& out,
    const ProductOptions& options) {
  Writer writer(kernels_of(options), out, head.softcap);
  run_products(head.matrix, x, kBlockRows, options, writer);
}

void tied_topk(
    const Head& head,
    const FloatRows& x,
    int64_t k,
    const int32_t* original_ids,
    float* values,
    int32_t* ids,
    const ProductOptions& options) {
  const int64_t rows = head.matrix.rows;
  if (k < 1 || k > rows) {
    fail(
        "tied_topk",
        "need k between 1 and the " + std::to_string(rows) + " rows, got " + std::to_string(k));
  }
  Selector selector(kernels_of(options), head_spans(rows), x.count, k, head.softcap);
  run_products(head.matrix, x, head_span(rows), options, selector);
  parallel_tasks(x.count, options.threads, [&](int64_t t) {
    const std::vector<Candidate> best = selector.best(t);
    for (int64_t i = 0; i < k; ++i) {
      const Candidate& found = best[static_cast<size_t>(i)];
      values[t * k + i] = found.value;
      ids[t * k + i] = original_ids ? original_ids[found.row] : found.row;
    }
  });
}

void tied_logprob(
    const Head& head,
    const FloatRows& x,
    const int32_t* targets,
    float* log_probs,
    float* log_sums,
    const ProductOptions& options) {
  const int64_t rows = head.matrix.rows;
  std::fill_n(log_probs, x.count, -std::numeric_limits<float>::infinity());
  LogSums sums(kernels_of(options), head_spans(rows), x.count, head.softcap, targets, log_probs);
  run_products(head.matrix, x, head_span(rows), options, sums);
  for (int64_t t = 0; t < x.count; ++t) {
    log_sums[t] = sums.log_sum(t);
    log_probs[t] -= log_sums[t];
  }
}

void tied_choice(
    const Head& head,
    const FloatRows& x,
    const int32_t* ids,
    int32_t* chosen,
    float* log_probs,
    const ProductOptions& options) {
  const int64_t rows = head.matrix.rows;
  Chooser chooser(kernels_of(options), head_spans(rows), x.count, head.softcap, ids);
  run_products(head.matrix, x, head_span(rows), options, chooser);
  for (int64_t t = 0; t < x.count; ++t) {
    const Chooser::Found found = chooser.result(t);
    const int32_t row = found.best.row;
    chosen[t] = ids && row >= 0 ? ids[row] : row;
    log_probs[t] = found.best.value - found.total.log();
  }
}

}  // namespace gemma_surgery::cpu

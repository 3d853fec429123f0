// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// The eval_gpu of every primitive, to be called from a test: arrays in, arrays out. The other
// virtual functions of the primitives are not wanted here and only complete the classes.

#include <cstring>

#include "cpu/encoding.cpp"
#include "metal_files.cpp"
#include "primitives/affine.cpp"
#include "primitives/metal_call.cpp"
#include "primitives/metal_gather_embed.cpp"
#include "primitives/metal_requantize.cpp"
#include "primitives/metal_source.cpp"
#include "primitives/metal_tied_head.cpp"

extern "C" {
int (*on_dispatch)(const Dispatch*) = nullptr;

// As in the test.
struct Array {
  void* data;
  int64_t elements;  // in memory
  int dtype;
  int axes;
  int shape[8];
  int64_t strides[8];
};
}

namespace gemma_surgery::ops {

#define UNWANTED_ONE(Class)                                          \
  void Class::eval_cpu(const std::vector<mx::array>&, mx::array&) {} \
  UNWANTED(Class)
#define UNWANTED_MANY(Class)                                                      \
  void Class::eval_cpu(const std::vector<mx::array>&, std::vector<mx::array>&) {} \
  UNWANTED(Class)
#define UNWANTED(Class)                                                        \
  bool Class::is_equivalent(const mx::Primitive&) const {                      \
    return false;                                                              \
  }                                                                            \
  std::vector<mx::Shape> Class::output_shapes(const std::vector<mx::array>&) { \
    return {};                                                                 \
  }
#define UNWANTED_VMAP(Class)                                       \
  std::pair<std::vector<mx::array>, std::vector<int>> Class::vmap( \
      const std::vector<mx::array>&, const std::vector<int>&) {    \
    return {};                                                     \
  }

UNWANTED_ONE(GatherEmbed)
UNWANTED_VMAP(GatherEmbed)
UNWANTED_ONE(TiedLogits)
UNWANTED_VMAP(TiedLogits)
UNWANTED_ONE(QuantizedLinear)
UNWANTED_VMAP(QuantizedLinear)
UNWANTED_MANY(TiedTopk)
UNWANTED_VMAP(TiedTopk)
UNWANTED_MANY(TiedLogprob)
UNWANTED_VMAP(TiedLogprob)
UNWANTED_MANY(Requantize)

std::vector<mx::array> QuantizedLinear::vjp(
    const std::vector<mx::array>&,
    const std::vector<mx::array>&,
    const std::vector<int>&,
    const std::vector<mx::array>&) {
  return {};
}

namespace {

const mx::Dtype kDtypes[] = {mx::float32, mx::float16, mx::bfloat16, mx::uint32, mx::int32};
const mx::Stream kGpu{0, mx::Device::gpu};
std::string message;

mx::array input_of(const Array& from) {
  const mx::Shape shape(from.shape, from.shape + from.axes);
  const mx::Strides strides(from.strides, from.strides + from.axes);
  mx::array made(shape, kDtypes[from.dtype], nullptr, {});
  const auto bytes = static_cast<size_t>(from.elements) * made.itemsize();
  const bool in_order = strides == made.strides();
  made.set_data(
      mx::allocator::malloc(bytes),
      static_cast<size_t>(from.elements),
      strides,
      {in_order, in_order, false});
  std::memcpy(made.data<char>(), from.data, bytes);
  return made;
}

std::vector<mx::array> inputs_of(const Array* arrays, int count) {
  std::vector<mx::array> made;
  for (int i = 0; i < count; ++i) {
    made.push_back(input_of(arrays[i]));
  }
  return made;
}

std::vector<mx::array> outputs_of(const Array* arrays, int count) {
  std::vector<mx::array> made;
  for (int i = 0; i < count; ++i) {
    made.emplace_back(
        mx::Shape(arrays[i].shape, arrays[i].shape + arrays[i].axes),
        kDtypes[arrays[i].dtype],
        nullptr,
        std::vector<mx::array>{});
  }
  return made;
}

template <typename Work>
const char* evaluate(Array* arrays, int count, const Work& work) {
  message.clear();
  try {
    std::vector<mx::array> outputs = outputs_of(arrays, count);
    work(outputs);
    for (int i = 0; i < count; ++i) {
      std::memcpy(arrays[i].data, outputs[i].data<char>(), outputs[i].nbytes());
    }
  } catch (const std::exception& error) {
    message = error.what();
  }
  mx::metal::get_command_encoder(kGpu).clear();
  return message.c_str();
}

}  // namespace

extern "C" {

const char* source_of(const char* file, const char* x, const char* s, const char* o) {
  message = metal_source(file, {x, s, o});
  return message.c_str();
}

const char*
run_gather_embed(const Array* in, int count, Array* out, int bits, int group, float scale) {
  return evaluate(out, 1, [&](auto& outputs) {
    GatherEmbed(kGpu, {bits, group}, scale, outputs[0].dtype())
        .eval_gpu(inputs_of(in, count), outputs[0]);
  });
}

const char*
run_tied_logits(const Array* in, int count, Array* out, int bits, int group, float softcap) {
  return evaluate(out, 1, [&](auto& outputs) {
    TiedLogits(kGpu, {{bits, group}, softcap}, outputs[0].dtype())
        .eval_gpu(inputs_of(in, count), outputs[0]);
  });
}

const char* run_quantized_linear(const Array* in, int count, Array* out, int bits, int group) {
  return evaluate(out, 1, [&](auto& outputs) {
    QuantizedLinear(kGpu, {bits, group}, cpu::Activations::Full)
        .eval_gpu(inputs_of(in, count), outputs[0]);
  });
}

const char*
run_tied_topk(const Array* in, int count, Array* out, int bits, int group, float softcap, int k) {
  return evaluate(out, 2, [&](auto& outputs) {
    TiedTopk(kGpu, {{bits, group}, softcap}, k).eval_gpu(inputs_of(in, count), outputs);
  });
}

const char*
run_tied_logprob(const Array* in, int count, Array* out, int bits, int group, float softcap) {
  return evaluate(out, 2, [&](auto& outputs) {
    TiedLogprob(kGpu, {{bits, group}, softcap}).eval_gpu(inputs_of(in, count), outputs);
  });
}

// source and target: dtype, bits (0: dense), group.
const char* run_requantize(
    const Array* in,
    int count,
    Array* out,
    int out_count,
    const int* source,
    const int* target,
    int takes_columns,
    int takes_rows,
    int refine) {
  return evaluate(out, out_count, [&](auto& outputs) {
    const auto encoding = [](const int* from) -> cpu::Encoding {
      const auto mode = from[1] ? cpu::Mode::Affine : cpu::Mode::Dense;
      return {static_cast<cpu::Dtype>(from[0]), mode, from[1], from[1] ? from[2] : 0};
    };
    Requantize(
        kGpu,
        {encoding(source), encoding(target), takes_columns != 0, takes_rows != 0, refine != 0})
        .eval_gpu(inputs_of(in, count), outputs);
  });
}
}

}  // namespace gemma_surgery::ops

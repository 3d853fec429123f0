"""Products with 4-bit matrices: the decoder's at one token, which memory bounds; prompts and SigLIP, which
arithmetic bounds. `activations="int8"` is the coarse mode, beside the full one."""

from __future__ import annotations

import pytest
from cases import AFFINE, DTYPES, both_dtypes, evaluated, factors_dtype, full, ours_and_stock, stock_product
from shapes import LINEARS, PATCHES, VISION_LINEARS, packed_bytes
from weights import activations
from work import OURS, Work

from gemma_surgery import ops

# Several layers per evaluation, as in a decode step.
BYTES_PER_RUN = 128 << 20
# MLX takes the rows of a quantized product one by one, so a few tell the time of all.
STOCK_TOKENS = {"bf16": 1, "f32": 4}

PROMPTS = [("gate", 128), full("gate", 512), full("down", 128), full("down", 512), full("gate, mobile", 512)]


@ours_and_stock
@both_dtypes
@pytest.mark.parametrize("name", [name if name in ("gate", "k") else full(name) for name in LINEARS])
def test_quantized_linear_of_one_token(measure, pool, who, dtype, name):
    rows, cols = LINEARS[name]
    matrices = pool.endless(rows, cols, factors_dtype(who, dtype))
    x = activations(1, 1, cols, dtype=DTYPES[dtype])
    size_bytes = packed_bytes(rows, cols)
    calls = max(1, BYTES_PER_RUN // size_bytes) if who == OURS else 1
    product = ours if who == OURS else stock_product
    run = evaluated(lambda: [product(x, next(matrices)) for _ in range(calls)])
    work = Work("quantized_linear", f"{name} [{rows}, {cols}], T=1", dtype, size_bytes, 2 * rows * cols)
    measure(work, who, run, calls=calls)


@ours_and_stock
@both_dtypes
@pytest.mark.parametrize(("name", "tokens"), PROMPTS)
def test_quantized_linear_of_a_prompt(measure, pool, who, dtype, name, tokens):
    _many(measure, pool, who, dtype, name, LINEARS[name], tokens)


@both_dtypes
@pytest.mark.parametrize("tokens", [128, full(512)])
def test_quantized_linear_with_rounded_activations(measure, pool, dtype, tokens):
    rows, cols = LINEARS["gate"]
    matrix = pool.matrices(rows, cols, factors_dtype(OURS, dtype))[0]
    x = activations(1, tokens, cols, dtype=DTYPES[dtype])
    work = Work(
        "quantized_linear",
        f"gate [{rows}, {cols}], T={tokens}, int8",
        dtype,
        packed_bytes(rows, cols),
        2 * tokens * rows * cols,
    )
    measure(work, OURS, evaluated(lambda: ops.quantized_linear(x, *matrix, activations="int8", **AFFINE)))


@pytest.mark.full
@ours_and_stock
@both_dtypes
@pytest.mark.parametrize("size", PATCHES)
@pytest.mark.parametrize("name", VISION_LINEARS)
def test_quantized_linear_of_the_vision_tower(measure, pool, who, dtype, name, size):
    _many(measure, pool, who, dtype, name, VISION_LINEARS[name], PATCHES[size])


def ours(x, matrix):
    return ops.quantized_linear(x, *matrix, **AFFINE)


def _many(measure, pool, who, dtype, name, shape, tokens):
    rows, cols = shape
    matrix = pool.matrices(rows, cols, factors_dtype(who, dtype))[0]
    done = tokens if who == OURS else STOCK_TOKENS[dtype]
    x = activations(1, done, cols, dtype=DTYPES[dtype])
    product = ours if who == OURS else stock_product
    work = Work(
        "quantized_linear",
        f"{name} [{rows}, {cols}], T={tokens}",
        dtype,
        packed_bytes(rows, cols),
        2 * tokens * rows * cols,
    )
    measure(work, who, evaluated(lambda: product(x, matrix)), share=done / tokens)

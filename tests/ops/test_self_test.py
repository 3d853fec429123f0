"""The self-test covers every op and notices wrong results of any of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from ops_oracle import ISAS, cpu_options, random_array, raw

from gemma_surgery import ops
from gemma_surgery._native import ext
from gemma_surgery.ops import self_test

FASTEST = self_test.Backend(ISAS[0], mx.cpu, ISAS[0])
# Where an op of another name does the work.
NATIVE = {"requantize": "requantize_arrays"}


def plant(monkeypatch: pytest.MonkeyPatch, op: str, spoil: Callable[[mx.array], mx.array]) -> None:
    """Spoils the first of the results of an op."""
    name = NATIVE.get(op, op)
    right = getattr(ext, name)

    def wrong(*arguments: Any) -> Any:
        result = right(*arguments)
        if isinstance(result, mx.array):
            return spoil(result)
        return type(result)([spoil(result[0]), *result[1:]])

    monkeypatch.setattr(ext, name, wrong)


def wrong_ops() -> list[str]:
    return [finding.op for finding in self_test.run([FASTEST]) if not finding.ok]


def test_every_op_is_tested_and_right_on_every_backend() -> None:
    backends = self_test.available_backends()
    assert [backend.isa for backend in backends if backend.isa] == ISAS
    findings = self_test.run(backends)
    assert {(finding.op, finding.backend) for finding in findings} == {
        (op, backend.name) for op in ops.__all__ for backend in backends
    }
    assert [finding.detail for finding in findings if not finding.ok] == []
    assert all(0 <= finding.error < 2e-4 for finding in findings if finding.backend != "metal")


@pytest.mark.parametrize("op", ops.__all__)
def test_a_result_that_is_a_little_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    def spoil(x: mx.array) -> mx.array:
        if x.dtype == mx.uint32:
            return x ^ mx.array(0x8000_0000, mx.uint32)
        return x + 1 if x.dtype == mx.int32 else x * 1.01

    plant(monkeypatch, op, spoil)
    assert wrong_ops() == [op]


@pytest.mark.parametrize("op", ["quantized_linear", "tied_logprob", "attention", "rope"])
def test_a_nan_is_noticed_and_named(monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    plant(monkeypatch, op, lambda x: mx.where(mx.arange(x.size).reshape(x.shape) == 0, mx.nan, x))
    (finding,) = (one for one in self_test.run([FASTEST]) if not one.ok)
    assert finding.op == op and math.isinf(finding.error)
    assert f"`{op}` on {ISAS[0]}" in finding.detail and "float16" in finding.detail


@pytest.mark.parametrize("op", ["tied_argmax", "tied_topk"])
def test_a_wrong_id_with_the_right_value_is_noticed(monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    right = getattr(ext, op)

    def wrong(*arguments: Any) -> tuple[mx.array, mx.array]:
        values, ids = right(*arguments)
        return values, mx.where(ids > 0, ids - 3, ids + 3)

    monkeypatch.setattr(ext, op, wrong)
    assert wrong_ops() == [op]


def test_an_op_that_raises_is_one_finding_with_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> mx.array:
        raise ValueError("[gelu_tanh] need better weather, got rain")

    monkeypatch.setattr(ext, "gelu_tanh", wrong)
    (finding,) = (one for one in self_test.run([FASTEST]) if not one.ok)
    assert "[gelu_tanh] need better weather, got rain" in finding.detail


def test_the_chosen_instruction_set_is_restored() -> None:
    x = random_array(1, 4, 64)
    before = raw(ops.linear(x, x))
    self_test.run([self_test.Backend("portable", mx.cpu, "portable")])
    with cpu_options():
        assert (raw(ops.linear(x, x)) == before).all()


def test_every_dtype_and_width_is_among_the_formats() -> None:
    assert {form.bits for form in self_test.CPU_FORMATS} == {2, 3, 4, 5, 6, 8}
    assert {form.group_size for form in self_test.CPU_FORMATS} == {32, 64, 128}
    assert {form.dtype for form in self_test.CPU_FORMATS} == {mx.float32, mx.float16, mx.bfloat16}

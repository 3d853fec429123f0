"""Faults put into kernels on purpose are caught: what the harness is silent about means something."""

from __future__ import annotations

from collections.abc import Callable

import kernels as metal
import numpy as np
import pytest
from harness import KernelError, KernelName, Launch, Library
from kernels import KERNELS, Coding, Kernels, source_text
from numbers_as_stored import DTYPES, make_table

FLOAT = ("float", "float", "float")
HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"
EXAMPLE = """
[[kernel]] void reverse(
    const device float* x [[buffer(0)]],
    device float* y [[buffer(1)]],
    uint i [[thread_index_in_threadgroup]],
    uint group [[threadgroup_position_in_grid]]) {
  threadgroup float tile[64];
  tile[i] = x[group * 64 + i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[group * 64 + i] = tile[63 - i];
}
"""
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"

Plant = Callable[[str, str, str], Library]


@pytest.fixture
def plant(kernels: Kernels, request: pytest.FixtureRequest) -> Plant:
    """Compiles one of our files with one place changed."""

    def planted(file: str, old: str, new: str) -> Library:
        source = source_text(file, FLOAT)
        assert old in source
        name = "planted_" + "".join(c if c.isalnum() else "_" for c in request.node.name)
        return Library(
            kernels.folder,
            name,
            source.replace(old, new, 1),
            [KernelName(kernel) for kernel in KERNELS[file]],
        )

    return planted


# Name, what is replaced by what, and the report.
FAULTS = [
    ("no_barrier", BARRIER, "", "uninitialised: read of threadgroup memory 1"),
    ("other_memory", BARRIER, "threadgroup_barrier(mem_flags::mem_device);", "race: read at offset"),
    ("only_simdgroup", "threadgroup_barrier(", "simdgroup_barrier(", "uninitialised|race"),
    ("half_the_threads", BARRIER, f"if (i < 32) {BARRIER}", "unequal barriers|uninitialised|race"),
    ("one_leaves", BARRIER, f"if (i == 5) return; {BARRIER}", "unequal barriers: of 64 threads 63 wait"),
    (
        "write_past_end",
        "y[group * 64 + i] =",
        "y[group * 64 + i + 1] =",
        "out of bounds: write of 4 bytes",
    ),
    (
        "read_before",
        "x[group * 64 + i]",
        "x[int(group * 64 + i) - 1]",
        "out of bounds: read .* offset -4",
    ),
    ("past_the_tile", "tile[63 - i]", "tile[64 - i]", "out of bounds: read .* threadgroup memory 1"),
    ("write_to_input", "y[group", "const_cast<float*>(x)[group", "write to read-only buffer 0"),
    ("same_place", "y[group * 64 + i]", "y[i]", "race: write at offset .* of buffer 1"),
    (
        "divergent",
        BARRIER,
        f"{BARRIER} if (i < 3) simd_sum(1.0f); else simd_max(1.0f);",
        "different simdgroup operations",
    ),
    ("only_some_lanes", BARRIER, f"if (i < 3) simd_sum(1.0f); {BARRIER}", "unequal barriers"),
]


@pytest.fixture(scope="module")
def examples(kernels: Kernels) -> Library:
    """The example as it is and with each fault, one kernel each."""
    bodies = [("right", EXAMPLE), *[(name, EXAMPLE.replace(old, new, 1)) for name, old, new, _ in FAULTS]]
    assert all(text != EXAMPLE for _, text in bodies[1:])
    source = HEAD + "".join(text.replace("reverse", f"reverse_{name}") for name, text in bodies)
    return Library(kernels.folder, "planted", source, [KernelName(f"reverse_{name}") for name, _ in bodies])


def run_example(library: Library, name: str) -> np.ndarray:
    x, y = np.arange(128, dtype=np.float32), np.zeros(128, np.float32)
    library.run(Launch(KernelName(f"reverse_{name}"), [x, y], {1}, (2, 1, 1), (64, 1, 1)))
    return y


def test_a_right_kernel_passes(examples: Library) -> None:
    y = run_example(examples, "right")
    assert np.array_equal(y, np.arange(128).reshape(2, 64)[:, ::-1].reshape(-1))


@pytest.mark.parametrize(("name", "found"), [(fault[0], fault[3]) for fault in FAULTS])
def test_a_fault_is_named(examples: Library, name: str, found: str) -> None:
    with pytest.raises(KernelError, match=found):
        run_example(examples, name)


def test_a_missing_barrier_is_caught_in_the_sort(plant: Plant) -> None:
    body = f"        }}\n      }}\n      {BARRIER}"
    library = plant("tied_topk", body, "        }\n      }\n")
    table = make_table(np.random.default_rng(0), 300, 32, 4, 32, "float")
    with pytest.raises(KernelError, match="race"):
        metal.tied_topk(library, table, np.ones((1, 32), np.float32), 0.0, 4, None, seed=1)


def test_a_missing_simdgroup_barrier_is_caught_in_requantize(plant: Plant) -> None:
    library = plant(
        "requantize", "  simdgroup_barrier(mem_flags::mem_threadgroup);\n  pack_group", "  pack_group"
    )
    values = np.random.default_rng(0).normal(0, 1, (1, 64)).astype(np.float32)
    with pytest.raises(KernelError, match=r"uninitialised|race"):
        metal.requantize(
            library, Coding("float"), [values], (1, 64), Coding("float", 4, 32), None, None, DTYPES, seed=1
        )


def test_a_missing_guard_is_caught_in_the_embedding(plant: Plant) -> None:
    library = plant("gather_embed", "column >= shape.cols", "false")
    table = make_table(np.random.default_rng(0), 2, 64, 4, 32, "float")
    with pytest.raises(KernelError, match="out of bounds"):
        metal.gather_embed(library, table, np.array([1], np.int32), None, 1.0, np.zeros((1, 64), np.float32))


def test_one_byte_too_many_is_caught(plant: Plant) -> None:
    library = plant("requantize", "if (shift + uint(bits) > 8) {", "{")
    parts = make_table(np.random.default_rng(0), 1, 64, 4, 32, "float")
    source = Coding("float", 4, 32)
    with pytest.raises(KernelError, match="out of bounds: read of 1 bytes at offset 32 of buffer 0"):
        metal.requantize(
            library,
            source,
            [parts.weight, parts.scales, parts.biases],
            (1, 64),
            Coding("float"),
            None,
            None,
            DTYPES,
            seed=1,
        )


def test_results_do_not_depend_on_the_order_of_threads(kernels: Kernels) -> None:
    library = kernels.library("tied_topk", FLOAT)
    table = make_table(np.random.default_rng(3), 300, 32, 4, 32, "float")
    h = np.random.default_rng(4).normal(0, 1, (5, 32)).astype(np.float32)
    results = [metal.tied_topk(library, table, h, 0.0, 3, None, seed) for seed in range(5)]
    assert all(np.array_equal(results[0], other) for other in results[1:])

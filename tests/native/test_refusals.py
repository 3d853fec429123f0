"""What the kernels refuse, with the sentence that says why; and the pairing with mlx."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import mlx.core as mx
import numpy as np
import pytest
from native_oracle import ISAS, Encoding, empty, requantize

from gemma_surgery import _native
from gemma_surgery._native import ext
from gemma_surgery.errors import SurgeryError

DENSE, PACKED = Encoding("F32"), Encoding("BF16", 4, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("F64",), "got `F64`"),
        (("U8",), "got `U8`"),
        (("BF16", 1, 64), "2, 3, 4, 5, 6 or 8 bits, got 1"),
        (("BF16", 7, 64), "2, 3, 4, 5, 6 or 8 bits, got 7"),
        (("BF16", -4, 64), "got -4"),
        (("BF16", 4, 16), "group size 32, 64 or 128, got 16"),
        (("BF16", 4), "group size 32, 64 or 128, got 0"),
        (("BF16", 0, 64), "no groups, got group size 64"),
        (("U8", 4, 64), "scales and biases need dtype"),
        (("BF16", 4, 64, "ternary"), "got `ternary`"),
        (("U8", 8, 32, "mxfp4"), "`mxfp4` needs 4 bits in groups of 32, got 8 bits"),
        (("U8", 4, 32, "nvfp4"), "`nvfp4` needs 4 bits in groups of 16, got 4 bits in groups of 32"),
    ],
)
def test_an_impossible_encoding_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoding(*arguments)


def test_encodings_compare_hash_and_print() -> None:
    assert Encoding("BF16", 4, 64) == Encoding("BF16", 4, 64, "affine") != Encoding("BF16", 4, 32)
    assert Encoding("BF16") != None and Encoding("BF16") != "BF16"  # noqa: E711
    assert len({Encoding("F16"), Encoding("F16"), Encoding("F32")}) == 2
    assert repr(Encoding("BF16", 4, 64)) == "Encoding('BF16', bits=4, group_size=64, mode='affine')"
    assert repr(Encoding("F32")) == "Encoding('F32')"
    mxfp8 = Encoding("U8", mode="mxfp8")
    assert (mxfp8.dtype, mxfp8.bits, mxfp8.group_size, mxfp8.mode) == ("U8", 8, 32, "mxfp8")


def test_row_bytes_follow_the_format() -> None:
    assert Encoding("BF16").row_bytes(4304) == (8608, 0, 0)
    assert Encoding("BF16", 4, 64).row_bytes(2560) == (1280, 80, 80)
    assert Encoding("F32", 3, 32).row_bytes(64) == (24, 8, 8)
    assert Encoding("U8", mode="nvfp4").row_bytes(64) == (32, 4, 0)
    with pytest.raises(ValueError, match="divisible by group size 64, got 4304"):
        Encoding("BF16", 4, 64).row_bytes(4304)
    with pytest.raises(ValueError, match="got -1"):
        Encoding("BF16").row_bytes(-1)


def good_call() -> dict[str, object]:
    weight, scales, biases = empty(PACKED, 2, 128)
    return {
        "weight": np.ones((2, 192), np.float32),
        "scales": None,
        "biases": None,
        "source": DENSE,
        "rows": 2,
        "cols": 192,
        "columns": np.arange(128, dtype=np.int32),
        "target": PACKED,
        "out_weight": weight,
        "out_scales": scales,
        "out_biases": biases,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": np.ones(383, np.float32)}, "need 1536 bytes of source weight, got 1532"),
        ({"scales": np.ones(2, np.uint8)}, "need 0 bytes of source scales, got 2"),
        ({"rows": 3}, "need 2304 bytes of source weight, got 1536"),
        ({"rows": -1}, "got -1 times"),
        ({"rows": 2**60}, "2\\^63"),
        ({"cols": -192}, "got -192"),
        ({"cols": 2**40}, "0 to 2147483647 columns"),
        ({"columns": np.arange(127, dtype=np.int32)}, "divisible by group size 64, got 127"),
        ({"columns": np.arange(128)}, "int32 array for `columns`"),
        ({"columns": np.full((2, 64), 0, np.int32)}, "one-dimensional int32"),
        ({"columns": np.full(128, 192, np.int32)}, "between -1 and 191, got 192 at position 0"),
        ({"columns": np.full(128, -2, np.int32)}, "between -1 and 191, got -2 at position 0"),
        ({"out_weight": np.zeros(127, np.uint8)}, "need 128 bytes of target weight, got 127"),
        ({"out_scales": None}, "need 8 bytes of target scales, got 0"),
        ({"out_biases": np.zeros(9, np.uint8)}, "need 8 bytes of target biases, got 9"),
        ({"out_weight": np.zeros(256, np.uint8)[::2]}, "C-contiguous array for `out_weight`"),
        ({"isa": "avx1024"}, "got `avx1024`"),
        ({"threads": 0}, "at least 1 thread, got 0"),
    ],
)
def test_a_call_with_wrong_sizes_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ext.requantize(**{**good_call(), **changes})
    ext.requantize(**good_call())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "target", [PACKED, Encoding("F32", 3, 32, "symmetric"), Encoding("U8", mode="mxfp4")]
)
def test_values_that_are_not_finite_are_named(isa: str, bad: float, target: ext.Encoding) -> None:
    values = np.ones((5, 128), np.float32)
    values[3, 77] = bad
    values[4, 0] = bad
    reverse = np.arange(127, -1, -1, dtype=np.int32)
    for threads in (1, 2, 5):
        with pytest.raises(ValueError, match=r"need finite values, got .* at row 3, source column 77$"):
            requantize((values, None, None), DENSE, 5, 128, target, reverse, isa=isa, threads=threads)
    values[3:] = 1.0
    requantize((values, None, None), DENSE, 5, 128, target, reverse, isa=isa)


@pytest.mark.parametrize("isa", ISAS)
def test_values_that_do_not_fit_the_stored_dtype_are_named(isa: str) -> None:
    values = np.ones((2, 128), np.float32)
    values[1, 70] = 70000.0
    for target, message in (
        (Encoding("F16"), "fit Encoding\\('F16'\\), got one that is too large at row 1, source column 70"),
        (Encoding("F16", 4, 64), "in the group that starts at row 1, source column 64"),
        (Encoding("F16", 8, 64, "symmetric"), "in the group that starts at row 1, source column 64"),
        (Encoding("U8", mode="nvfp4"), "in the group that starts at row 1, source column 64"),
    ):
        with pytest.raises(ValueError, match=message):
            requantize((values, None, None), DENSE, 2, 128, target, isa=isa)
    requantize((values, None, None), DENSE, 2, 128, Encoding("BF16", 4, 64), isa=isa)


def test_infinities_and_nan_pass_between_dense_dtypes() -> None:
    values = np.array([[np.inf, -np.inf, np.nan, 1.0]], np.float32)
    got = requantize((values, None, None), DENSE, 1, 4, Encoding("F16"))[0].view(np.float16)
    np.testing.assert_array_equal(got, values[0].astype(np.float16))


def test_sums_need_an_aligned_float64_output() -> None:
    values = np.ones((2, 8), np.float32)
    for out in (np.zeros(2, np.float32), np.zeros(2, np.int64)):
        with pytest.raises(ValueError, match="aligned float64"):
            ext.row_square_sums(values, None, None, DENSE, 2, 8, out)
    with pytest.raises(ValueError, match="need 64 bytes of output, got 16"):
        ext.column_square_sums(values, None, None, DENSE, 2, 8, np.zeros(2))


def test_the_module_reads_arrays_of_this_mlx() -> None:
    assert ext.probe_array(mx.zeros((3, 4))) == 12
    with pytest.raises(TypeError, match="incompatible function arguments"):
        ext.probe_array(np.zeros(3))


def test_isas_are_listed_from_widest_to_portable() -> None:
    names = ext.available_isas()
    assert names[0] == ext.default_isa()
    assert names[-1] == "portable"
    features = ext.cpu_features()
    assert ("avx512" in names) == (features.get("avx512bw", False) and features["os_saves_zmm"])


BUILT = {"mlx": "0.32.4", "nanobind": "3.1.0", "compiler": "gcc"}


def test_a_wrong_pairing_is_one_sentence_with_both_versions_and_the_repair() -> None:
    _native.check_pairing("0.32.9", BUILT, None)
    with pytest.raises(SurgeryError) as other_minor:
        _native.check_pairing("0.33.0", BUILT, None)
    with pytest.raises(SurgeryError) as unreadable:
        _native.check_pairing("0.32.4", BUILT, TypeError("incompatible function arguments"))
    for error, version in ((other_minor.value, "0.33.0"), (unreadable.value, "0.32.4")):
        assert "need mlx 0.32" in error.message and f"got mlx {version}" in error.message
        assert "nanobind 3.1.0" in error.message
        assert "\n" not in error.message and not error.message.endswith(".")
        assert error.hint is not None and "pip install" in error.hint


@pytest.mark.parametrize(
    ("stub", "message"),
    [
        ("None", "need the native module `gemma_surgery._ext`"),
        ("Foreign()", "whose arrays it cannot read"),
    ],
)
def test_importing_without_a_usable_module_gives_that_sentence(stub: str, message: str) -> None:
    program = f"""
        import sys
        class Foreign:
            def probe_array(self, array):
                raise TypeError("probe_array(): incompatible function arguments")
            def build_info(self):
                return {{"mlx": "0.32.0", "nanobind": "2.15.0", "compiler": "gcc"}}
        import gemma_surgery
        sys.modules["gemma_surgery._ext"] = {stub}
        try:
            import gemma_surgery._native
        except gemma_surgery.errors.SurgeryError as error:
            print(error)
    """
    program = textwrap.dedent(program).replace("import gemma_surgery\n", "import gemma_surgery.errors\n")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert message in done.stdout, done.stderr
    assert "hint: rebuild it" in done.stdout

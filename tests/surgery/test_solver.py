"""The solver against plain float64, its promise of equal bytes, and what it refuses."""

from __future__ import annotations

from itertools import product

import numpy as np
import plain_solver as plain
import pytest

from gemma_surgery._native import ext
from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery import solver
from gemma_surgery.surgery.encoding import AFFINE_BITS, AFFINE_GROUPS, Quantized

ISAS = ext.available_isas()
# One and several blocks of elimination, with and without a rest.
SIZES = [1, 7, 48, 191, 192, 193, 400, 577]
DTYPES = ["F32", "F16", "BF16"]
FOUR_BITS = Quantized(4, 64, "BF16")


def random_hessian(size: int, seed: int = 0, samples: int = 0) -> np.ndarray:
    """Of correlated inputs of very different sizes, as those of a down projection are."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(samples or 2 * size + 8, size))
    inputs += inputs @ rng.normal(size=(size, size)) / np.sqrt(size)
    inputs *= np.exp(rng.normal(size=size))
    return (inputs.T @ inputs / len(inputs)).astype(np.float32)


def random_weight(rows: int, cols: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.02, (rows, cols)).astype(np.float32)


def random_columns(count: int, size: int, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).permutation(size)[:count].astype(np.int32)


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("size", SIZES)
def test_factor_equals_the_cholesky_factor_of_the_inverse(size: int) -> None:
    hessian = random_hessian(size)
    assert relative(solver.factor(hessian), plain.factor(hessian, 0.01)) < 1e-4


@pytest.mark.parametrize("size", [7, 193, 577])
def test_a_factor_gives_its_hessian_back(size: int) -> None:
    hessian = random_hessian(size)
    again = np.empty_like(hessian)
    ext.solve_hessian(solver.factor(hessian), again)
    assert relative(again, plain.damped(hessian, 0.01)) < 1e-4
    assert np.array_equal(again, again.T)


@pytest.mark.parametrize("size", SIZES)
def test_reconstruction_equals_the_normal_equations(size: int) -> None:
    hessian, weight = random_hessian(size), random_weight(50, size)
    for count in {1, size // 2 + 1, size}:
        kept = random_columns(count, size)
        got = solver.reconstruct(weight, hessian, kept)
        assert relative(got, plain.reconstruct(weight, hessian, kept, 0.01)) < 1e-4


def test_keeping_all_columns_changes_nothing() -> None:
    weight = random_weight(5, 200)
    kept = random_columns(200, 200)
    assert np.array_equal(solver.reconstruct(weight, random_hessian(200), kept), weight[:, kept])


def test_reconstruction_lowers_the_output_error_on_other_samples() -> None:
    """With fewer samples than columns, where only damping keeps the solution sensible."""
    size, rng = 256, np.random.default_rng(5)
    mixing = rng.normal(size=(24, size)) + 0.3 * rng.normal(size=(1, size))
    inputs = rng.normal(size=(2, 200, 24)) @ mixing + rng.normal(size=(2, 200, size))
    seen, unseen = (part.T @ part / len(part) for part in inputs)
    weight, kept = random_weight(30, size), np.sort(random_columns(192, size))
    cut = weight.copy()
    cut[:, np.setdiff1d(np.arange(size), kept)] = 0
    mended = np.zeros_like(weight)
    mended[:, kept] = solver.reconstruct(weight, seen.astype(np.float32), kept)
    assert plain.output_error(weight, mended, unseen) < 0.3 * plain.output_error(weight, cut, unseen)


def test_dead_columns_keep_their_weights_and_leave_the_others_alone() -> None:
    hessian, weight = random_hessian(300), random_weight(9, 300)
    alive = np.setdiff1d(np.arange(300), [5, 190, 299])
    zeroed = np.zeros_like(hessian)
    zeroed[np.ix_(alive, alive)] = hessian[np.ix_(alive, alive)]
    upper = solver.factor(zeroed)
    assert relative(upper[np.ix_(alive, alive)], solver.factor(hessian[np.ix_(alive, alive)])) < 1e-5
    kept = np.arange(150, 300, dtype=np.int32)
    got = solver.reconstruct(weight, zeroed, kept)
    assert np.array_equal(got[:, [40, 149]], weight[:, [190, 299]])
    assert not np.array_equal(got, weight[:, kept])


def test_shrinking_leaves_the_diagonal_and_takes_a_share_of_the_rest() -> None:
    hessian = random_hessian(40)
    shrunk = hessian.copy()
    solver.shrink(shrunk, 0.25)
    assert np.array_equal(np.diagonal(shrunk), np.diagonal(hessian))
    rest = ~np.eye(40, dtype=bool)
    assert np.array_equal(shrunk[rest], hessian[rest] * np.float32(0.75))


def test_fewer_tokens_shrink_more_and_enough_of_them_not_at_all() -> None:
    shares = [solver.shrinkage(tokens, 100) for tokens in (1, 200, 400, 799, 800, 10**6)]
    assert shares[:4] == sorted(shares[:4], reverse=True)
    assert 0.99 < shares[0] < 1
    assert shares[1:3] == [0.75, 0.5]
    assert shares[4:] == [0, 0]


def test_without_correlations_errors_stay_where_they_are_and_scales_suit_what_they_cost() -> None:
    hessian, weight = random_hessian(256), random_weight(20, 256)
    solver.shrink(hessian, 1.0)
    rounded = plain.output_error(weight, plain.decoded(plain.rounded(weight, FOUR_BITS), FOUR_BITS), hessian)
    natural, ordered = (
        solver.round_calibrated(weight, hessian, FOUR_BITS, each)[0] for each in solver.ORDERS
    )
    assert all(np.array_equal(*parts) for parts in zip(natural, ordered, strict=True))
    assert plain.output_error(weight, plain.decoded(natural, FOUR_BITS), hessian) < 0.8 * rounded
    # Without any data at all, each column counts the same.
    empty = np.zeros_like(hessian)
    parts, _ = solver.round_calibrated(weight, empty, FOUR_BITS)
    errors = [
        np.square(weight - plain.decoded(each, FOUR_BITS)).sum()
        for each in (parts, plain.rounded(weight, FOUR_BITS))
    ]
    assert 0.9 * errors[1] < errors[0] < errors[1]


@pytest.mark.parametrize("mode", ["affine", "symmetric"])
@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_scales_and_biases_are_as_good_as_those_of_a_plain_search(bits: int, mode: str) -> None:
    costs = np.exp(np.random.default_rng(8).normal(0, 1.5, 128)).astype(np.float32)
    weight = random_weight(50, 128)
    upper = np.diag(1 / np.sqrt(costs))
    for group_size, dtype in product(AFFINE_GROUPS, DTYPES):
        encoding = Quantized(bits, group_size, dtype, mode)
        wanted = 0.0
        for first in range(0, 128, group_size):
            group = slice(first, first + group_size)
            scale, bias = plain.fitted(weight[:, group], encoding, costs[group])
            codes = np.rint((weight[:, group] - bias[:, None]) / scale[:, None])
            decoded = codes.clip(0, 2**bits - 1) * scale[:, None] + bias[:, None]
            wanted += (np.square(weight[:, group] - decoded) @ costs[group]).sum()
        parts = solver.round_compensated(weight, upper, encoding)
        got = (np.square(weight - plain.decoded(parts, encoding)) @ costs).sum()
        assert got < 1.01 * wanted, encoding


@pytest.mark.parametrize("tokens_per_column", [0.5, 1, 2])
def test_shrinkage_makes_few_tokens_safe(tokens_per_column: float) -> None:
    """Inputs of which half the power is shared: few tokens show correlations that are chance."""
    size, rng = 256, np.random.default_rng(6)
    few = int(tokens_per_column * size)
    mixing = rng.normal(size=(128, size)) / np.sqrt(128)
    seen, unseen = (
        x.T @ x / len(x)
        for x in (
            rng.normal(size=(tokens, 128)) @ mixing + rng.normal(size=(tokens, size))
            for tokens in (few, 40 * size)
        )
    )
    weight, kept = random_weight(30, size), np.sort(random_columns(192, size))
    cut = weight.copy()
    cut[:, np.setdiff1d(np.arange(size), kept)] = 0
    rounded = plain.decoded(plain.rounded(weight, FOUR_BITS), FOUR_BITS)

    def errors(hessian: np.ndarray) -> tuple[float, float]:
        """Of least squares and of rounding, relative to what they are to make better."""
        mended = np.zeros_like(weight)
        mended[:, kept] = solver.reconstruct(weight, hessian, kept)
        parts, _ = solver.round_calibrated(weight, hessian, FOUR_BITS)
        return (
            plain.output_error(weight, mended, unseen) / plain.output_error(weight, cut, unseen),
            plain.output_error(weight, plain.decoded(parts, FOUR_BITS), unseen)
            / plain.output_error(weight, rounded, unseen),
        )

    hessian = seen.astype(np.float32)
    shrunk = hessian.copy()
    solver.shrink(shrunk, solver.shrinkage(few, size))
    assert max(errors(shrunk)) < 1 < min(errors(hessian))


def test_a_damping_that_is_too_small_grows_and_is_told() -> None:
    inputs = np.random.default_rng(3).normal(size=(20, 260)).astype(np.float32)
    hessian = inputs.T @ inputs / 20
    assert solver.factor_damped(hessian)[1] == 0.01
    # Of rank 20, so that the least eigenvalue is that of what is taken away.
    mean = np.diagonal(hessian).mean()
    shifted = hessian - 0.115 * mean * np.eye(260, dtype=np.float32)
    upper, damping = solver.factor_damped(shifted)
    assert damping == pytest.approx(0.115 / 0.885, abs=0.011)
    assert np.isfinite(upper).all()
    kept = np.arange(260, dtype=np.int32)
    assert solver.reconstruct_damped(random_weight(3, 260), shifted, kept)[1] == damping


@pytest.mark.parametrize("order", solver.ORDERS)
@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_compensated_rounding_is_as_good_as_the_plain_loop_and_better_than_rounding(
    bits: int, order: solver.Order
) -> None:
    cols = 256
    hessian, weight = random_hessian(cols), random_weight(40, cols)
    upper = solver.factor(hessian)
    for group_size, dtype in product(AFFINE_GROUPS, DTYPES):
        encoding = Quantized(bits, group_size, dtype)
        rounded = plain.decoded(plain.rounded(weight, encoding), encoding)
        got = plain.decoded(solver.round_compensated(weight, upper, encoding, order), encoding)
        error = plain.output_error(weight, got, hessian)
        assert error < 0.85 * plain.output_error(weight, rounded, hessian), encoding
        if dtype == DTYPES[bits % 3]:
            wanted = plain.round_compensated(weight, plain.damped(hessian, 0.01), encoding, order)
            assert error < 1.01 * plain.output_error(weight, wanted, hessian), encoding


def test_symmetric_encodings_are_compensated_too() -> None:
    hessian, weight = random_hessian(256), random_weight(20, 256)
    encoding = Quantized(4, 64, "BF16", "symmetric")
    parts = solver.round_compensated(weight, solver.factor(hessian), encoding)
    assert np.array_equal(plain.stored(parts[2], encoding), -8 * plain.stored(parts[1], encoding))
    rounded = plain.decoded(plain.rounded(weight, encoding), encoding)
    got = plain.decoded(parts, encoding)
    assert plain.output_error(weight, got, hessian) < 0.8 * plain.output_error(weight, rounded, hessian)


def test_groups_see_the_errors_before_them_in_natural_order_and_the_weights_as_given_in_the_other() -> None:
    # Of equal inputs, so that both orders are one.
    hessian = np.full((64, 64), 0.9, np.float32) + 0.1 * np.eye(64, dtype=np.float32)
    weight, encoding = random_weight(40, 64), Quantized(2, 32, "F32")
    upper = solver.factor(hessian)
    alone = np.diag(np.diagonal(upper))
    columns, native = np.arange(64, dtype=np.int32), plain.native_encoding(encoding)
    biases = []
    for matrix, order in ((upper, None), (upper, columns), (alone, columns)):
        parts = [np.empty((40, size), np.uint8) for size in native.row_bytes(64)]
        ext.solve_round(weight, matrix, order, native, *parts)
        biases.append(plain.stored(parts[2], encoding))
    moved, given, unmoved = biases
    assert np.array_equal(given, unmoved)
    assert np.array_equal(moved[:, 0], unmoved[:, 0])
    assert (moved[:, 1] != unmoved[:, 1]).all()


@pytest.mark.parametrize("order", solver.ORDERS)
def test_rounding_from_the_hessian_is_factoring_and_rounding(order: solver.Order) -> None:
    hessian, weight = random_hessian(256), random_weight(20, 256)
    parts, damping = solver.round_calibrated(weight, hessian, FOUR_BITS, order, 0.02)
    wanted = solver.round_compensated(weight, solver.factor(hessian, 0.02), FOUR_BITS, order)
    assert damping == 0.02
    if order == "natural":
        assert all(np.array_equal(got, part) for got, part in zip(parts, wanted, strict=True))
    # Through the factor and back, a rounding error may change a code here and there.
    errors = [plain.output_error(weight, plain.decoded(each, FOUR_BITS), hessian) for each in (parts, wanted)]
    assert errors[0] == pytest.approx(errors[1], rel=0.01)


def test_every_instruction_set_and_thread_count_gives_the_same_bytes() -> None:
    size, rows = 512, 99
    hessian, weight = random_hessian(size), random_weight(rows, size)
    kept, order = random_columns(350, size), random_columns(size, size)
    known: dict[str, bytes] = {}
    for isa, threads in product(ISAS, (1, 2, 3)):
        upper, again = np.empty_like(hessian), np.empty_like(hessian)
        solved = np.empty((rows, len(kept)), np.float32)
        ext.solve_factor(hessian, 0.01, upper, isa=isa, threads=threads)
        ext.solve_hessian(upper, again, isa=isa, threads=threads)
        ext.solve_reconstruct(weight, hessian, kept, 0.01, solved, isa=isa, threads=threads)
        got = {"factor": upper.tobytes(), "hessian": again.tobytes(), "reconstruct": solved.tobytes()}
        for name, columns, encoding in (
            ("natural", None, ext.Encoding("BF16", 4, 64)),
            ("narrow", None, ext.Encoding("F16", 3, 32, "symmetric")),
            ("ordered", order, ext.Encoding("F32", 5, 128)),
        ):
            parts = [np.empty(rows * row, np.uint8) for row in encoding.row_bytes(size)]
            ext.solve_round(weight, upper, columns, encoding, *parts, isa=isa, threads=threads)
            got[name] = b"".join(part.tobytes() for part in parts)
        for name, result in got.items():
            assert result == known.setdefault(name, result), (name, isa, threads)


def test_inputs_that_are_not_contiguous_or_writeable_give_the_same() -> None:
    hessian, weight = random_hessian(128), random_weight(6, 128)
    wide = np.zeros((6, 200), np.float32)
    wide[:, :128] = weight
    frozen = hessian.copy()
    frozen.flags.writeable = False
    kept = np.arange(0, 128, 2)
    wanted = solver.reconstruct(weight, hessian, kept.astype(np.int32))
    assert np.array_equal(solver.reconstruct(wide[:, :128], frozen, kept), wanted)


def _with(array: np.ndarray, value: float, *place: int) -> np.ndarray:
    changed = array.copy()
    changed[place or (0, 1)] = value
    return changed


WEIGHT, HESSIAN = random_weight(3, 128), random_hessian(128)
UPPER = np.ascontiguousarray(plain.factor(HESSIAN, 0.01), np.float32)
INDEFINITE = np.eye(128, dtype=np.float32) * np.float32(1e-6)
INDEFINITE[0, 1] = INDEFINITE[1, 0] = 1.0
KEPT = np.arange(64, dtype=np.int32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: solver.factor(_with(HESSIAN, np.nan)), r"\[factor\] need a finite matrix"),
        (lambda: solver.factor(_with(HESSIAN, -np.inf, 127, 0)), "need a finite matrix"),
        (lambda: solver.factor(HESSIAN[:, :5]), r"need an aligned float32 matrix \[128, 128\] for `hessian`"),
        (lambda: solver.factor(np.zeros((0, 0), np.float32)), "at least 1 column, got 0"),
        (lambda: solver.factor(HESSIAN[0]), "need a matrix, got an array of 1 dimensions"),
        (lambda: solver.factor(HESSIAN, -0.1), "need a damping of 0 to 1000, got -0.1"),
        (lambda: solver.factor(HESSIAN, np.nan), "need a damping of 0 to 1000, got nan"),
        (lambda: solver.factor(_with(HESSIAN, -1, 3, 3)), "a diagonal of at least 0, got an element -1.0"),
        (lambda: solver.factor(INDEFINITE), "need a positive semidefinite Hessian"),
        (lambda: solver.reconstruct(WEIGHT, HESSIAN, KEPT // 2), "need distinct kept columns .* got 0"),
        (lambda: solver.reconstruct(WEIGHT, HESSIAN, KEPT + 65), "between -1 and 127, got 128"),
        (lambda: solver.reconstruct(WEIGHT, HESSIAN, KEPT - 1), "of at least 0, got -1 at position 0"),
        (
            lambda: solver.reconstruct(WEIGHT[:, :96], HESSIAN, KEPT),
            r"\[3, 128\] for `weight`, got shape \[3, 96\]",
        ),
        (lambda: solver.reconstruct(_with(WEIGHT, np.inf), HESSIAN, KEPT), "need a finite weight"),
        (lambda: solver.round_compensated(_with(WEIGHT, np.nan), UPPER, FOUR_BITS), "need a finite weight"),
        (lambda: solver.round_compensated(WEIGHT, _with(UPPER, np.nan), FOUR_BITS), "need a finite matrix"),
        (lambda: solver.round_compensated(WEIGHT, _with(UPPER, 0, 5, 5), FOUR_BITS), "0.000000 in column 5"),
        (lambda: solver.round_compensated(WEIGHT, UPPER[:64, :64], FOUR_BITS), r"\[128, 128\] for `upper`"),
        (
            lambda: solver.round_compensated(WEIGHT[:, :96], UPPER[:96, :96], FOUR_BITS),
            "divisible by group size 64, got 96",
        ),
        (
            lambda: solver.round_compensated(WEIGHT, UPPER, Quantized(4, 32, "U8", "mxfp4")),
            "need mode `affine` or `symmetric`, got `mxfp4`",
        ),
        (
            lambda: solver.round_compensated(WEIGHT, UPPER, FOUR_BITS, "random"),
            "need an order out of natural",
        ),
        (
            lambda: solver.round_compensated(WEIGHT * 1e8, UPPER, Quantized(4, 64, "F16")),
            "too large in the group that starts at column 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        call()


def test_an_order_with_a_column_twice_is_refused() -> None:
    native = plain.native_encoding(FOUR_BITS)
    parts = [np.empty(3 * row, np.uint8) for row in native.row_bytes(128)]
    order = np.arange(128, dtype=np.int32)
    order[3] = 4
    for wrong, message in ((order, "each column once"), (order[:64], "need 512 bytes of order, got 256")):
        with pytest.raises(ValueError, match=message):
            ext.solve_round(WEIGHT, UPPER, wrong, native, *parts)

"""An interrupted profile goes on after its last layer, to the same bytes; a failure is one clear error."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from calibrating import DATA_SHA256, profiled, samples_of

from gemma_surgery.calibration import measure
from gemma_surgery.calibration.samples import Sample
from gemma_surgery.calibration.statistics import LayerStatistics
from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.errors import SurgeryError

HESSIANS = ("*.2.mlp.down_proj", "*.6.mlp.down_proj")
NUM_LAYERS = 8


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def samples(dense: Path, pictures: Path) -> list[Sample]:
    return samples_of(dense, 2, pictures)


@pytest.fixture(scope="module")
def expected(dense: Path, samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of an uninterrupted run."""
    path = tmp_path_factory.mktemp("whole") / "whole"
    profiled(dense, samples, path, hessians=HESSIANS)
    return path.read_bytes()


@pytest.fixture
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SAVE_SECONDS", -1.0)


@contextmanager
def interrupted_in(layer: int) -> Iterator[None]:
    """The run ends while decoder layer `layer` is under way."""
    begin = LayerStatistics.begin

    def raising(self, site, module) -> None:
        if (site.part, site.index) == ("text", layer):
            raise Interrupted
        begin(self, site, module)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(LayerStatistics, "begin", raising)
        yield


@pytest.mark.parametrize("layer", range(NUM_LAYERS))
def test_a_run_interrupted_after_any_layer_resumes_to_the_same_bytes(
    dense, samples, expected, save_always, tmp_path, layer: int
) -> None:
    path = tmp_path / "p"
    with interrupted_in(layer):
        profiled(dense, samples, path, hessians=HESSIANS)
    assert not path.exists()
    with pytest.MonkeyPatch.context() as patch:
        seen: list[int] = []
        begin = LayerStatistics.begin

        def note(self, site, module) -> None:
            seen.append(site.index)
            begin(self, site, module)

        patch.setattr(LayerStatistics, "begin", note)
        profiled(dense, samples, path, hessians=HESSIANS, resume=True)
    done_again = [*range(3), *range(NUM_LAYERS)] if layer == 0 else [*range(layer, NUM_LAYERS)]
    assert seen == done_again
    assert path.read_bytes() == expected
    assert [each.name for each in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [1, 4])
def test_a_run_that_dies_while_saving_resumes_to_the_same_bytes(
    dense, samples, expected, save_always, tmp_path, number: int, when: str
) -> None:
    path, replace, calls = tmp_path / "p", Path.replace, []

    def dying(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == number and when == "before":
            raise Interrupted
        result = replace(self, target)
        if len(calls) == number:
            raise Interrupted
        return result

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Path, "replace", dying)
        profiled(dense, samples, path, hessians=HESSIANS)
    profiled(dense, samples, path, hessians=HESSIANS, resume=True)
    assert path.read_bytes() == expected


def test_a_run_interrupted_twice_resumes_to_the_same_bytes(
    dense, samples, expected, save_always, tmp_path
) -> None:
    path = tmp_path / "p"
    with interrupted_in(3):
        profiled(dense, samples, path, hessians=HESSIANS)
    with interrupted_in(5):
        profiled(dense, samples, path, hessians=HESSIANS, resume=True)
    profiled(dense, samples, path, hessians=HESSIANS, resume=True)
    assert path.read_bytes() == expected


def test_states_of_an_earlier_run_are_not_taken_for_those_of_a_later_one(
    dense, samples, expected, save_always, monkeypatch, tmp_path
) -> None:
    path = tmp_path / "p"
    with interrupted_in(5):
        profiled(dense, samples, path, hessians=HESSIANS)
    monkeypatch.setattr(measure, "SAVE_SECONDS", 1e9)
    # Begun anew, and interrupted before anything was saved: the statistics of five layers are gone.
    with interrupted_in(1):
        profiled(dense, samples, path, hessians=HESSIANS)
    profiled(dense, samples, path, hessians=HESSIANS, resume=True)
    assert path.read_bytes() == expected


def test_resuming_without_an_interrupted_run_starts_one(dense, samples, expected, tmp_path) -> None:
    profiled(dense, samples, tmp_path / "p", hessians=HESSIANS, resume=True)
    assert (tmp_path / "p").read_bytes() == expected


def test_resumed_progress_counts_what_is_left(dense, samples, save_always, tmp_path) -> None:
    told: list[tuple[str, int]] = []

    class Telling:
        def begin(self, total: int) -> None:
            told.append(("begin", total))

        def advance(self, amount: int) -> None:
            told.append(("advance", amount))

        def finish(self) -> None:
            told.append(("finish", 0))

    with interrupted_in(6):
        profiled(dense, samples, tmp_path / "p")
    request = measure.Request(DATA_SHA256, resume=True)
    checkpoint = open_checkpoint(dense)
    times = measure.make_profile(checkpoint, samples, tmp_path / "p", request, progress=Telling())
    tokens = sum(len(sample.tokens) for sample in samples)
    assert times.resumed_layers == 6
    assert told[0] == ("begin", 2 * tokens) and told[-1] == ("finish", 0)
    assert sum(amount for kind, amount in told if kind == "advance") == 2 * tokens


@pytest.mark.parametrize("change", ["data", "hessians", "checkpoint", "damage"])
def test_resuming_another_run_is_refused(
    dense, quantized, samples, save_always, tmp_path, change: str
) -> None:
    path = tmp_path / "p"
    with interrupted_in(4):
        profiled(dense, samples, path, hessians=HESSIANS)
    left = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    assert set(left) == {".p.partial", ".p.states"}
    folder, others, hessians = dense, samples, HESSIANS
    if change == "data":
        others = samples[:2]
    elif change == "hessians":
        hessians = HESSIANS[:1]
    elif change == "checkpoint":
        folder = quantized
    else:
        left[".p.states"] = left[".p.states"][50:]
        (tmp_path / ".p.states").write_bytes(left[".p.states"])
    with pytest.raises(SurgeryError, match="need the run that was interrupted, got another") as caught:
        profiled(folder, others, path, hessians=hessians, resume=True)
    assert caught.value.hint is not None and "--resume" in caught.value.hint
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == left


def test_truncated_or_missing_leftovers_are_refused(dense, samples, save_always, tmp_path) -> None:
    path = tmp_path / "p"
    with interrupted_in(4):
        profiled(dense, samples, path)
    states = tmp_path / ".p.states"
    data = states.read_bytes()
    states.write_bytes(data[:-4])
    with pytest.raises(SurgeryError, match=r"need .* bytes of states to resume, got .* in `\.p\.states`"):
        profiled(dense, samples, path, resume=True)
    states.write_bytes(data)
    (tmp_path / ".p.partial").unlink()
    with pytest.raises(SurgeryError, match=r"cannot write `.*/\.p\.partial`: no such file"):
        profiled(dense, samples, path, resume=True)


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Writing beyond fails as on a full disk, with another reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit_bytes", [1_000, 60_000, 400_000])
def test_a_full_disk_is_one_clear_error_and_leaves_nothing_under_the_name(
    dense, samples, expected, save_always, tmp_path, limit_bytes: int
) -> None:
    path = tmp_path / "p"
    assert limit_bytes < len(expected)
    with (
        files_of_at_most(limit_bytes),
        pytest.raises(SurgeryError, match=r"\[profile\] cannot write `.*p`: file too large"),
    ):
        profiled(dense, samples, path, hessians=HESSIANS)
    assert not path.exists()
    profiled(dense, samples, path, hessians=HESSIANS, resume=True)
    assert path.read_bytes() == expected


def test_an_earlier_profile_stays_until_the_new_one_is_whole(dense, samples, tmp_path) -> None:
    path = tmp_path / "p"
    path.write_bytes(b"earlier")
    with interrupted_in(7):
        profiled(dense, samples, path)
    assert path.read_bytes() == b"earlier"


def test_a_folder_that_cannot_be_written_is_one_clear_error(dense, samples, tmp_path) -> None:
    with pytest.raises(SurgeryError, match=r"need a folder `.*none` for the profile, got none"):
        profiled(dense, samples, tmp_path / "none/p")
    (tmp_path / ".p.partial").mkdir()
    with pytest.raises(SurgeryError, match=r"cannot write `.*\.p\.partial`: is a directory"):
        profiled(dense, samples, tmp_path / "p")

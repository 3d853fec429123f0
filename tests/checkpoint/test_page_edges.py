"""Pages that several writes share."""

from __future__ import annotations

from gemma_surgery.checkpoint.page_edges import PAGE_BYTES, PageEdges


def test_a_page_comes_out_when_its_last_fragment_arrives() -> None:
    edges = PageEdges()
    assert edges.add(PAGE_BYTES * 3 + 1000, memoryview(b"b" * 3096)) is None
    page = edges.add(PAGE_BYTES * 3, memoryview(b"a" * 1000))
    assert page is not None and bytes(page) == b"a" * 1000 + b"b" * 3096
    assert list(edges.drain()) == []


def test_what_never_became_whole_is_drained_in_runs() -> None:
    edges = PageEdges()
    edges.add(10, memoryview(b"xy"))
    edges.add(12, memoryview(b"z"))
    edges.add(PAGE_BYTES + 5, memoryview(b"q"))
    drained = [(offset, bytes(data)) for offset, data in edges.drain()]
    assert drained == [(10, b"xyz"), (PAGE_BYTES + 5, b"q")]


def test_a_fragment_written_again_does_not_complete_a_page() -> None:
    edges = PageEdges()
    half = memoryview(bytes(PAGE_BYTES // 2))
    assert edges.add(0, half) is None
    assert edges.add(0, half) is None
    assert edges.add(PAGE_BYTES // 2, half) is not None

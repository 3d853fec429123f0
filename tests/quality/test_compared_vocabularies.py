"""What a pruned vocabulary makes of the reference's probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gemma_surgery.generation.vocabularies import known_ids
from gemma_surgery.models import load_model
from gemma_surgery.quality.divergence import divergence, log_softmax
from gemma_surgery.quality.subject import Subject
from gemma_surgery.quality.vocabulary import NO_PIECE, Credit, ModelTokens, first_pieces


@pytest.fixture(scope="module")
def whole(dense: Path) -> ModelTokens:
    return Subject.open(dense).tokens


@pytest.fixture(scope="module")
def pruned(mobile: Path) -> ModelTokens:
    return Subject.open(mobile).tokens


@pytest.fixture(scope="module")
def pieces(whole: ModelTokens, pruned: ModelTokens) -> np.ndarray:
    return first_pieces(whole, pruned)


def test_kept_tokens_are_their_own_piece(pieces, mobile: Path) -> None:
    kept = np.flatnonzero(known_ids(load_model(mobile)))
    kept = kept[kept < len(pieces)]
    assert len(kept) > 1000
    assert (pieces[kept] == kept).all()


def test_a_pruned_token_begins_as_its_text_is_split(pieces, whole, pruned) -> None:
    respelled = [i for i in np.flatnonzero(pieces >= 0) if pieces[i] != i]
    assert len(respelled) > 500
    for token_id in respelled[::37]:
        text = whole.tokenizer.decode([int(token_id)])
        split = pruned.tokenizer.encode(text, special_tokens=False)
        assert pieces[token_id] == split[0] and text.startswith(pruned.tokenizer.decode(split)[:1])


def test_control_and_unused_tokens_have_no_piece(pieces, whole) -> None:
    lost = [whole.tokenizer.token_of(int(i)) for i in np.flatnonzero(pieces == NO_PIECE)]
    assert any(token is not None and token.startswith("<unused") for token in lost)
    assert not any(token is not None and token.isalpha() for token in lost)


def test_carried_probabilities_sum_to_one(whole, pruned, pieces) -> None:
    rng = np.random.default_rng(0)
    p = np.exp(log_softmax(rng.normal(size=(5, len(whole.id_of_row))) * 4))
    carried, lost = Credit(whole, pruned, pieces).carry(p)
    assert carried.shape == (5, len(pruned.id_of_row))
    assert carried.sum(axis=1) == pytest.approx(np.ones(5), abs=1e-12)
    assert (lost > 0).all() and (lost < 0.5).all()
    # By hand, for one piece that several tokens become.
    piece = np.bincount(pieces[pieces >= 0]).argmax()
    by_hand = p[2, whole.rows_of(np.flatnonzero(pieces == piece))].sum() / (1 - lost[2])
    assert carried[2, pruned.rows_of(np.array([piece]))[0]] == pytest.approx(by_hand)


def test_a_candidate_that_says_the_pieces_as_often_has_no_divergence(whole, pruned, pieces) -> None:
    rng = np.random.default_rng(0)
    p = np.exp(log_softmax(rng.normal(size=(5, len(whole.id_of_row))) * 4))
    carried, _ = Credit(whole, pruned, pieces).carry(p)
    with np.errstate(divide="ignore"):
        ln_p = np.log(carried)
    assert divergence(carried, ln_p, ln_p).tolist() == [0.0] * 5


def test_the_same_vocabulary_carries_nothing(whole, pruned) -> None:
    for tokens in (whole, pruned):
        credit = Credit(tokens, tokens, first_pieces(tokens, tokens))
        assert credit.is_identity and credit.num_respelled == credit.num_without_piece == 0


def test_renumbered_tokens_are_found_by_their_text(whole) -> None:
    """A head whose rows lie in another order is the same vocabulary."""
    order = np.random.default_rng(0).permutation(len(whole.id_of_row))
    shuffled = ModelTokens(whole.tokenizer, whole.id_of_row[order], whole.size)
    credit = Credit(whole, shuffled, first_pieces(whole, shuffled))
    p = np.random.default_rng(1).random((3, len(order)))
    p /= p.sum(axis=1, keepdims=True)
    assert not credit.is_identity
    assert credit.carry(p)[0] == pytest.approx(p[:, order])

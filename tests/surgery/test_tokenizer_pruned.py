"""The pruned tokenizer: same ids, kept ones only, same text back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_cases import (
    IMAGE,
    TEXT,
    encoded,
    mask_of,
    pruned_in_python,
    random_keep,
    small_document,
    small_reference,
    small_tokenizer,
    surfaces,
)
from tokenizers import Tokenizer

from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.keep_sets import keep_pass, special
from gemma_surgery.surgery.merge_closure import close_under_merges
from gemma_surgery.surgery.pruned_tokenizer import (
    STALE_FILES,
    pruned,
    pruned_added_tokens,
    pruned_tokenizer_config,
)
from gemma_surgery.surgery.tokenizer import TokenizerFile
from gemma_surgery.surgery.vocabulary import select

ALPHABET = sorted({c for line in TEXT for c in line} | set("\n\t\r\0▁<>ÀЖ漢😀\u0301\u200f"))
PIECES = st.sampled_from(
    [*ALPHABET, *TEXT, "<unused1>", "<start_of_turn>", IMAGE, "<0x41>", "\n\n\n\n", "the "]
)


def english() -> np.ndarray:
    tokenizer = small_tokenizer()
    return select(tokenizer, [keep_pass(tokenizer, n) for n in ("ascii", "typographic")]).keep


def test_kept_tokens_and_merges_stay_in_order_and_the_rest_goes() -> None:
    tokenizer, keep = small_tokenizer(), english()
    before, after = small_document(), json.loads(pruned(tokenizer, keep))
    names = surfaces(tokenizer, keep)
    vocab = [(t, i) for t, i in before["model"]["vocab"].items() if t in names]
    assert list(after["model"]["vocab"].items()) == [*vocab, (IMAGE, tokenizer.num_ids - 1)]
    merges = [[a, b] for a, b in before["model"]["merges"] if {a, b, a + b} <= names]
    assert after["model"]["merges"] == merges
    assert 0 < len(merges) < len(before["model"]["merges"])
    assert after["added_tokens"] == [e for e in before["added_tokens"] if e["content"] in names]
    assert list(after) == list(before)
    assert list(after["model"]) == list(before["model"])
    untouched = set(before) - {"added_tokens", "model"}
    assert {key: after[key] for key in untouched} == {key: before[key] for key in untouched}


STRANGE = [
    '"',
    "\\",
    "/",
    "\b",
    "\f",
    "\n",
    "\r",
    "\t",
    "\0",
    "\x1f",
    "\x7f",
    "\u2028",
    "é",
    "👍",
    "\U0010ffff",
]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.0, 0.3, 0.9, 1.0]), pairs=st.booleans())
def test_bytes_are_those_of_dumping_the_pruned_tree(seed: int, share: float, pairs: bool) -> None:
    document = small_document(pairs)
    vocab, merges = document["model"]["vocab"], document["model"]["merges"]
    for token in [*STRANGE, *(a + b for a in STRANGE for b in STRANGE)]:
        vocab.setdefault(token, len(vocab) + 1)
    merges += [[a, b] if pairs else f"{a} {b}" for a in STRANGE for b in STRANGE]
    tokenizer = TokenizerFile.parse(encoded(document, None), "t")
    keep = (np.random.default_rng(seed).random(tokenizer.num_ids) < share) | special(tokenizer)
    assert pruned(tokenizer, keep) == pruned_in_python(tokenizer, keep)


def test_merges_keep_their_style() -> None:
    tokenizer = TokenizerFile.parse(encoded(small_document(pairs=False)), "t")
    merges = json.loads(pruned(tokenizer, english()))["model"]["merges"]
    expected = json.loads(pruned(small_tokenizer(), english()))["model"]["merges"]
    assert merges == [" ".join(pair) for pair in expected]


def test_pruning_again_gives_the_same_bytes() -> None:
    tokenizer = small_tokenizer()
    once = pruned(tokenizer, english())
    again = TokenizerFile.parse(once, "again")
    assert pruned(again, again.exists) == once
    np.testing.assert_array_equal(again.exists, english())


def test_added_tokens_outside_the_vocabulary_keep_their_id() -> None:
    cut = Tokenizer.from_str(pruned(small_tokenizer(), english()).decode())
    assert cut.token_to_id(IMAGE) == small_reference().token_to_id(IMAGE) == small_tokenizer().num_ids - 1
    assert cut.encode(f"a{IMAGE}b").ids == small_reference().encode(f"a{IMAGE}b").ids


def test_ascii_text_keeps_its_ids() -> None:
    cut = Tokenizer.from_str(pruned(small_tokenizer(), english()).decode())
    for text in (TEXT[0], "a  <b>b</b>\n\n\tc <0x41>", "<start_of_turn>user\nhi<end_of_turn>\n"):
        assert cut.encode(text).ids == small_reference().encode(text).ids


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(PIECES, max_size=12),
    seed=st.integers(0, 9),
    share=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_pruned_ids_never_come_and_text_comes_back(parts: list[str], seed: int, share: float) -> None:
    tokenizer, text = small_tokenizer(), "".join(parts)
    keep = close_under_merges(tokenizer, random_keep(seed, share))
    cut = Tokenizer.from_str(pruned(tokenizer, keep).decode())
    ids = cut.encode(text).ids
    assert keep[ids].all()
    original = small_reference().encode(text).ids
    # The space mark itself comes back as a space, from the original tokenizer as well.
    assert small_reference().decode(original[1:], skip_special_tokens=False) == text.replace("▁", " ")
    assert cut.decode(ids[1:], skip_special_tokens=False) == text.replace("▁", " ")
    if keep[original].all():
        assert ids == original


def test_texts_of_kept_tokens_are_common_enough_to_test() -> None:
    keep = close_under_merges(small_tokenizer(), random_keep(0, 0.5))
    texts = [word for line in TEXT for word in line.split()]
    whole = [keep[small_reference().encode(text).ids].all() for text in texts]
    assert 0.2 < np.mean(whole) < 1


@pytest.mark.parametrize(
    ("token", "message"),
    [("<unk>", 'the unknown token, `"<unk>"`, would'), ("<bos>", 'a token of the post-processor, `"<bos>"`')],
)
def test_tokens_that_the_file_refers_to_cannot_be_pruned(token: str, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        pruned(small_tokenizer(), ~mask_of(small_tokenizer(), token))


@pytest.mark.parametrize(
    "processor",
    [
        {"type": "RobertaProcessing", "sep": ["<eos>", 1], "cls": ["<bos>", 2]},
        {
            "type": "Sequence",
            "processors": [{"type": "BertProcessing", "sep": ["<eos>", 1], "cls": ["q", 9]}],
        },
    ],
)
def test_every_kind_of_post_processor_is_checked(processor: dict[str, Any]) -> None:
    tokenizer = TokenizerFile.parse(encoded({**small_document(), "post_processor": processor}), "t")
    assert pruned(tokenizer, english())
    with pytest.raises(SurgeryError, match='a token of the post-processor, `"<eos>"`'):
        pruned(tokenizer, ~mask_of(tokenizer, "<eos>"))


def test_tokenizer_config_loses_the_entries_of_pruned_tokens() -> None:
    entries = {str(e["id"]): {"content": e["content"]} for e in small_document()["added_tokens"]}
    config = {
        "bos_token": "<bos>",
        "pad_token": {"content": "<pad>"},
        "added_tokens_decoder": entries,
        "x": 1,
    }
    after = pruned_tokenizer_config(config, english())
    names = surfaces(small_tokenizer(), english())
    assert after == {
        **config,
        "added_tokens_decoder": {k: e for k, e in entries.items() if e["content"] in names},
    }
    assert len(after["added_tokens_decoder"]) == len(entries) - 3  # type: ignore[arg-type]
    assert pruned_tokenizer_config({"x": 1}, english()) == {"x": 1}
    with pytest.raises(
        SurgeryError, match=r'`pad_token` of `tokenizer_config.json` is `"<pad>"`, id 0, which'
    ):
        pruned_tokenizer_config(config, ~mask_of(small_tokenizer(), "<pad>"))
    with pytest.raises(SurgeryError, match='need ids in `added_tokens_decoder`, got `"x1"`'):
        pruned_tokenizer_config({"added_tokens_decoder": {"x1": {}}}, english())


def test_added_tokens_file_loses_pruned_tokens() -> None:
    tokenizer = small_tokenizer()
    added: dict[str, object] = {a.content: a.token_id for a in tokenizer.added}
    after = pruned_added_tokens({**added, "beyond": 10**6}, english())
    assert after == {content: i for content, i in added.items() if "unused" not in content}
    with pytest.raises(SurgeryError, match=r'need an id for `"a"`, got `"7"` in `added_tokens.json`'):
        pruned_added_tokens({"a": "7"}, english())


def test_the_sentencepiece_file_is_named_stale() -> None:
    assert "tokenizer.model" in STALE_FILES

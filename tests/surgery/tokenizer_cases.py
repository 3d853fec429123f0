"""A small tokenizer in the shape of Gemma's, for the tests beside this file."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from gemma_surgery.surgery.keep_sets import special
from gemma_surgery.surgery.tokenizer import TokenizerFile

REAL_TOKENIZER = Path(__file__).parents[2].parent / "shared" / "data" / "gemma3-tokenizer" / "tokenizer.json"

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
UNUSED = ("<unused0>", "<unused1>", "<unused2>")
RUNS = ("\n", "\n\n", "\n\n\n", "\t", "\t\t")
IMAGE = "<image_soft_token>"

TEXT = (
    "the quick brown fox jumps over the lazy dog and the other fox thinks that this is the end",
    "le café où l'élève déjà rêvait, naïve et têtue, était fermé: le café où l'élève",
    "“curly quotes” — and dashes – and ‘more’ … “curly quotes” — he said, “no”",
    "съешь ещё этих мягких французских булок да выпей чаю, съешь ещё этих мягких",
    "日本語の文章と日本語の単語、中国的文字和中国的词语",
    "good 👍 ok 👍🏽 love ❤️ family 👩\u200d👩\u200d👧 flag 🇩🇪 👍👍 good 👍",
    "price £5 €7 50° 2×3 → x ≥ y ½ • item • item",
)


@functools.cache
def _trained() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Multi-character tokens in rank order, and single characters."""
    trainer = Tokenizer(models.BPE())
    trainer.normalizer = normalizers.Replace(" ", "▁")
    trainer.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), "isolated")
    trainer.train_from_iterator(
        TEXT * 2, trainers.BpeTrainer(vocab_size=420, min_frequency=2, show_progress=False)
    )
    vocab = trainer.get_vocab()
    ordered = sorted(vocab, key=vocab.__getitem__)
    return tuple(t for t in ordered if len(t) > 1), tuple(t for t in ordered if len(t) == 1)


def small_document(pairs: bool = True) -> dict[str, Any]:
    """A fresh tokenizer.json tree: control, unused, run and byte tokens, then pieces, then characters.

    As in Gemma's file, every split of a piece into two tokens is a merge, ranked by the id of the piece, and
    the image token is an added token that the vocabulary does not list.
    """
    pieces, singles = _trained()
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*SPECIAL, *UNUSED, *RUNS, "<b>", *byte_tokens, *pieces, *singles]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    splits = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(len(piece) - 1, 0, -1)
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    added = [*SPECIAL, *UNUSED, *RUNS, "<b>"]
    entries = [
        {
            "id": vocab.get(content, len(vocab)),
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": content in SPECIAL or content == IMAGE,
        }
        for content in [*added, IMAGE]
    ]
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": entries,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [vocab["<bos>"]], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(pair) if pairs else " ".join(pair) for pair in splits],
        },
    }


def encoded(document: Any, indent: int | None = 2) -> bytes:
    return json.dumps(document, ensure_ascii=False, indent=indent).encode()


@functools.cache
def small_tokenizer() -> TokenizerFile:
    return TokenizerFile.parse(encoded(small_document()), "tokenizer.json")


@functools.cache
def small_reference() -> Tokenizer:
    return Tokenizer.from_str(encoded(small_document()).decode())


def mask_of(tokenizer: TokenizerFile, *tokens: str) -> np.ndarray:
    """Bool [num_ids], True for the given tokens; every one must exist."""
    ids = {token: token_id for token_id, token in enumerate(tokenizer.tokens)}
    mask = np.zeros(tokenizer.num_ids, bool)
    mask[[ids[token] for token in tokens]] = True
    return mask


def random_keep(seed: int, share: float) -> np.ndarray:
    """Bool [num_ids], about that share of the small tokenizer's tokens, with the special and byte tokens."""
    keep = np.random.default_rng(seed).random(small_tokenizer().num_ids) < share
    return keep | special(small_tokenizer())


def surfaces(tokenizer: TokenizerFile, mask: np.ndarray) -> set[str]:
    return {tokenizer.tokens[token_id] or "" for token_id in np.flatnonzero(mask)}


def pruned_in_python(tokenizer: TokenizerFile, keep: np.ndarray) -> bytes:
    """The same file from dictionaries and lists."""
    tokens = tokenizer.tokens
    added_only = sorted({added.token_id for added in tokenizer.added} - set(tokenizer.vocab_ids.tolist()))
    vocab = {tokens[i]: i for i in [*tokenizer.vocab_ids.tolist(), *added_only] if keep[i]}
    pairs = [[tokens[a], tokens[b]] for a, b, made in tokenizer.merges if keep[[a, b, made]].all()]
    merges = pairs if tokenizer.merge_pairs else [" ".join(pair) for pair in pairs]  # type: ignore[arg-type]
    document = dict(tokenizer.skeleton)
    document["model"] = {**document["model"], "vocab": vocab, "merges": merges}  # type: ignore[dict-item]
    entries = zip(document["added_tokens"], tokenizer.added, strict=True)  # type: ignore[call-overload]
    document["added_tokens"] = [entry for entry, added in entries if keep[added.token_id]]
    return orjson.dumps(document)

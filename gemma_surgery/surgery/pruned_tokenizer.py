"""Writing the tokenizer of a pruned model: ids unchanged, pruned tokens impossible."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import orjson

from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.tokenizer import TokenizerFile
from gemma_surgery.surgery.tokenizer_json import json_list, json_object, quoted

Mask = npt.NDArray[np.bool_]

# SentencePiece models index pieces by position: this file would go on producing pruned ids.
STALE_FILES = ("tokenizer.model",)


def pruned(tokenizer: TokenizerFile, keep: Mask) -> bytes:
    """Return the tokenizer.json that knows the kept tokens only, under their old ids.

    Pruned tokens leave the vocabulary and the added tokens, and every merge that names or makes one goes.
    Added tokens that the vocabulary lacked are listed in it: `tokenizers` ignores their `id` otherwise and
    counts on from the size of the vocabulary, which in a pruned one is some other token. All else stays, in
    order. The text is compact: two fifths of the size of the indented form.

    Args:
        tokenizer: the original tokenizer.
        keep: bool [num_ids].

    Raises:
        SurgeryError: the unknown token or a token of the post-processor would be pruned.
    """
    document = dict(tokenizer.skeleton)
    model = dict(json_object(document["model"], tokenizer.where, "`model`"))
    _check_references(tokenizer, model, keep)
    table, mask = tokenizer.table, np.ascontiguousarray(keep, np.bool_)
    ids = np.concatenate((tokenizer.vocab_ids, _added_only(tokenizer)))
    model["vocab"] = orjson.Fragment(table.vocab_json(ids, mask))
    merges = tokenizer.merges.reshape(-1)
    model["merges"] = orjson.Fragment(table.merges_json(merges, tokenizer.merge_pairs, mask))
    document["model"] = model
    if "added_tokens" in document:
        entries = json_list(document["added_tokens"], tokenizer.where, "`added_tokens`")
        document["added_tokens"] = [
            entry for entry, added in zip(entries, tokenizer.added, strict=True) if keep[added.token_id]
        ]
    return orjson.dumps(document)


def pruned_tokenizer_config(config: dict[str, object], keep: Mask) -> dict[str, object]:
    """Return a tokenizer_config.json without the `added_tokens_decoder` entries of pruned tokens.

    Raises:
        SurgeryError: an entry is not an id, or a token that the configuration names would be pruned.
    """
    where = "tokenizer_config.json"
    if "added_tokens_decoder" not in config:
        return dict(config)
    decoder = json_object(config["added_tokens_decoder"], where, "`added_tokens_decoder`")
    bad = next((key for key in decoder if not (key.isascii() and key.isdigit())), None)
    if bad is not None:
        raise SurgeryError("tokenizer", f"need ids in `added_tokens_decoder`, got {quoted(bad)} in `{where}`")
    kept = {key: entry for key, entry in decoder.items() if _is_kept(int(key), keep)}
    gone = {_content(entry): key for key, entry in decoder.items() if key not in kept}
    for key, value in config.items():
        if key.endswith("_token") and value is not None and _content(value) in gone:
            raise SurgeryError(
                "prune_vocabulary",
                f"`{key}` of `{where}` is {quoted(_content(value))}, id {gone[_content(value)]},"
                " which would be pruned",
                "add `special`, or list the token in a keep file",
            )
    return {**config, "added_tokens_decoder": kept}


def pruned_added_tokens(added: dict[str, object], keep: Mask) -> dict[str, object]:
    """Return an added_tokens.json (content to id) without pruned tokens.

    Raises:
        SurgeryError: a value is not an id.
    """
    kept: dict[str, object] = {}
    for content, token_id in added.items():
        if type(token_id) is not int:
            raise SurgeryError(
                "tokenizer",
                f"need an id for {quoted(content)}, got {quoted(token_id)} in `added_tokens.json`",
            )
        if _is_kept(token_id, keep):
            kept[content] = token_id
    return kept


def _added_only(tokenizer: TokenizerFile) -> npt.NDArray[np.int32]:
    """Return the ids of added tokens that the vocabulary lacks, ascending."""
    mask = tokenizer.exists.copy()
    mask[tokenizer.vocab_ids] = False
    return np.flatnonzero(mask).astype(np.int32)


def _check_references(tokenizer: TokenizerFile, model: dict[str, object], keep: Mask) -> None:
    references = list(_post_processor_tokens(tokenizer))
    unknown = model.get("unk_token")
    if isinstance(unknown, str):
        references.insert(0, ("the unknown token", unknown))
    for what, token in references:
        token_id = tokenizer.find(token)
        if token_id is None or not keep[token_id]:
            _refuse(what, token, tokenizer.where)


def _post_processor_tokens(tokenizer: TokenizerFile) -> Iterator[tuple[str, str]]:
    processor = tokenizer.skeleton.get("post_processor")
    members = processor.get("processors") if isinstance(processor, dict) else None
    for part in members if isinstance(members, list) else [processor]:
        if not isinstance(part, dict):
            continue
        special = part.get("special_tokens")
        for entry in special.values() if isinstance(special, dict) else []:
            names = entry.get("tokens") if isinstance(entry, dict) else None
            for token in names if isinstance(names, list) else []:
                yield "a token of the post-processor", str(token)
        for key in ("sep", "cls"):
            pair = part.get(key)
            if isinstance(pair, list) and pair:
                yield "a token of the post-processor", str(pair[0])


def _refuse(what: str, token: str, where: str) -> None:
    raise SurgeryError(
        "prune_vocabulary", f"{what}, {quoted(token)}, would be pruned from `{where}`", "add `special`"
    )


def _content(value: object) -> str:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def _is_kept(token_id: int, keep: Mask) -> bool:
    return token_id < keep.size and bool(keep[token_id])

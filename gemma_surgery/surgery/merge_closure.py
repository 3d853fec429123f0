"""Which tokens the merges of a cut vocabulary still build.

Byte pair encoding applies the lowest ranked merge that fits, again and again. The tokens built on the way
to a token are its derivation. Two facts make cutting a vocabulary exact:

* A token whose derivation is kept is still built, by the same merges: a cut only takes merges away, and the
  ones that ranked lowest are still there.
* So a text whose original ids are all kept is encoded to the very same ids by the cut tokenizer.

Closing a kept set means adding the derivations of its tokens. Most tokens need no simulation: if every merge
that could build a token starts from settled tokens, its derivation is kept, whichever it is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gemma_surgery.surgery.tokenizer import TokenizerFile

Mask = npt.NDArray[np.bool_]


def close_under_merges(tokenizer: TokenizerFile, keep: Mask) -> Mask:
    """Return `keep` and the derivations of its tokens.

    Args:
        tokenizer: the original tokenizer.
        keep: bool [num_ids].

    Returns:
        Bool [num_ids]. Tokens that the original tokenizer cannot build from their own text add nothing.
    """
    closed: Mask = keep.copy()
    unsettled = np.flatnonzero(keep & ~settled(tokenizer, keep))
    if unsettled.size:
        merger = Merger(tokenizer)
        for token_id in unsettled.tolist():
            closed[merger.derivation(token_id)] = True
    return closed


def unreachable(tokenizer: TokenizerFile, keep: Mask) -> npt.NDArray[np.int32]:
    """Return the kept ids that the original tokenizer builds from their own text and the cut one does not.

    Args:
        tokenizer: the original tokenizer.
        keep: bool [num_ids].

    Returns:
        Int32, ascending; empty for every set that `close_under_merges` returned.
    """
    unsettled = np.flatnonzero(keep & ~settled(tokenizer, keep))
    lost: list[int] = []
    if unsettled.size:
        merger = Merger(tokenizer)
        for token_id in unsettled.tolist():
            nodes = merger.derivation(token_id)
            if not keep[nodes].all() and not merger.derivation(token_id, keep):
                lost.append(token_id)
    return np.array(lost, np.int32)


def kept_merges(tokenizer: TokenizerFile, keep: Mask) -> Mask:
    """Return bool [M], True for the merges whose two parts and result are kept."""
    left, right, made = tokenizer.merges.T
    kept: Mask = keep[left] & keep[right] & keep[made]
    return kept


def atomic(tokenizer: TokenizerFile) -> Mask:
    """Return bool [num_ids], True for tokens that need no merge: characters, bytes and added tokens."""
    mask: Mask = tokenizer.lengths == 1
    mask[tokenizer.byte_ids[tokenizer.byte_ids >= 0]] = True
    mask[[added.token_id for added in tokenizer.added]] = True
    return mask


def settled(tokenizer: TokenizerFile, keep: Mask) -> Mask:
    """Return bool [num_ids]: kept tokens whose derivation is certainly kept, without simulating it."""
    ready = atomic(tokenizer)
    # Parts are shorter than what they make, so one pass by length settles everything.
    merges = tokenizer.merges[~ready[tokenizer.merges[:, 2]]]
    ready &= keep
    # NumPy sorts 16-bit keys by radix, in a tenth of the time; nothing is longer in a real vocabulary.
    longest = int(tokenizer.lengths.max(initial=0))
    made_lengths = tokenizer.lengths.astype(np.min_scalar_type(longest))[merges[:, 2]]
    order = np.argsort(made_lengths, kind="stable")
    merges = merges[order]
    cuts = np.flatnonzero(np.diff(made_lengths[order])) + 1
    for group in np.split(merges, cuts):
        left, right, made = group[:, 0], group[:, 1], group[:, 2]
        ready[made] = keep[made]
        ready[made[~(ready[left] & ready[right])]] = False
    return ready


class Merger:
    """Byte pair encoding of single tokens, over ids.

    Args:
        tokenizer: the tokenizer whose merges apply.
    """

    def __init__(self, tokenizer: TokenizerFile) -> None:
        left, right, made = (tokenizer.merges[:, column].astype(np.int64) for column in range(3))
        self._num_ids = tokenizer.num_ids
        self._tokens = tokenizer.tokens
        self._ranks = dict(zip((left * tokenizer.num_ids + right).tolist(), range(len(made)), strict=True))
        self._made: list[int] = made.tolist()
        self._characters: dict[str, int] = {}
        for token_id in tokenizer.vocab_ids.tolist():
            token = tokenizer.tokens[token_id]
            if token is not None and len(token) == 1:
                self._characters[token] = token_id

    def derivation(self, token_id: int, keep: Mask | None = None) -> list[int]:
        """Return the ids built on the way from a token's characters to the token, itself included.

        Args:
            token_id: the token.
            keep: bool [num_ids], only these tokens exist; all of them by default.

        Returns:
            The ids, with repetitions; empty if the merges do not lead to the token.
        """
        token = self._tokens[token_id] or ""
        symbols = [self._characters.get(character, -1) for character in token]
        if -1 in symbols or (keep is not None and not keep[symbols].all()):
            return []
        nodes = list(symbols)
        while len(symbols) > 1:
            best, at = -1, -1
            for index in range(len(symbols) - 1):
                rank = self._ranks.get(symbols[index] * self._num_ids + symbols[index + 1], -1)
                if rank >= 0 and (best < 0 or rank < best) and (keep is None or keep[self._made[rank]]):
                    best, at = rank, index
            if best < 0:
                return []
            symbols[at : at + 2] = [self._made[best]]
            nodes.append(self._made[best])
        return nodes if symbols == [token_id] else []

"""A checkpoint's tokenizer: text to ids and back, as the `tokenizers` library defines it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_surgery.checkpoint.json_types import Json, load_json_object, read_small_file
from gemma_surgery.checkpoint.model_folder import Checkpoint
from gemma_surgery.checkpoint.wording import literal
from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.chat_template import ChatTemplate, find_chat_template
from gemma_surgery.generation.detokenizer import StreamingDetokenizer, decoder_replacements

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_NAME = "tokenizer.json"
SETTINGS_NAME = "tokenizer_config.json"
DEFAULT_STRINGS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}


class Tokenizer:
    """The tokenizer.json of a folder, with the names of its control tokens and its chat template.

    Ids are those of the original vocabulary, also where a pruned tokenizer has holes in it.

    Attributes:
        folder: the folder that it was read from.
        special_strings: `bos_token`, `eos_token`, ... -> the token's text: what chat templates may name.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, folder: Path, special_strings: dict[str, str] | None = None
    ) -> None:
        self._backend = backend
        self.folder = folder
        self.special_strings = DEFAULT_STRINGS | (special_strings or {})

    @staticmethod
    def load(checkpoint: Checkpoint) -> Tokenizer:
        """Read the tokenizer of a checkpoint.

        Raises:
            SurgeryError: `tokenizer.json` is missing, unreadable or not a tokenizer of Gemma's kind.
        """
        return Tokenizer.from_folder(checkpoint.path)

    @staticmethod
    def from_folder(folder: Path) -> Tokenizer:
        """Read `tokenizer.json`, and `tokenizer_config.json` where there is one.

        Raises:
            SurgeryError: `tokenizer.json` is missing, unreadable or not a tokenizer of Gemma's kind.
        """
        import tokenizers

        path = folder / TOKENIZER_NAME
        if not path.exists():
            raise SurgeryError(
                "tokenizer",
                f"need `{TOKENIZER_NAME}` in `{folder}`, which lacks it",
                "copy it from the checkpoint that this one was made of",
            )
        try:
            backend = tokenizers.Tokenizer.from_buffer(read_small_file(path, where="tokenizer"))
        except ValueError as error:
            reason = str(error).removeprefix("Cannot instantiate Tokenizer from buffer: ")
            raise SurgeryError(
                "tokenizer", f"need a tokenizer, got {literal(reason)} in `{path}`", "download the file again"
            ) from None
        # Files saved during training carry these; a prompt is never cut or padded.
        backend.no_truncation()
        backend.no_padding()
        settings = folder / SETTINGS_NAME
        document = load_json_object(settings, "tokenizer") if settings.exists() else {}
        tokenizer = Tokenizer(backend, folder, _special_strings(document))
        _ = tokenizer._replacements
        return tokenizer

    @property
    def bos_id(self) -> int | None:
        """Id of the token that starts every sequence, None where the vocabulary lacks it."""
        return self.id_of(self.special_strings["bos_token"])

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the control tokens: those marked special."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @property
    def chat_template(self) -> str | None:
        """Source of the folder's own chat template, None where it has none.

        Raises:
            SurgeryError: as `template`.
        """
        return self.template.source if self.template else None

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The folder's own chat template, ready to render.

        Raises:
            SurgeryError: a file that should hold one is broken, or several have names and none is `default`.
        """
        return find_chat_template(self.folder)

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        """Return the ids of a text; nothing is added in front.

        Args:
            text: any text.
            special_tokens: whether the names of control tokens, such as `<end_of_turn>`, become these tokens
                rather than plain text.

        Raises:
            SurgeryError: the text holds half of a surrogate pair, as bytes that are not UTF-8 leave behind.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise SurgeryError(
                "prompt",
                f"need text in Unicode, got half of a surrogate pair at character {error.start:,}",
                "give the text in UTF-8",
            ) from None
        self._backend.encode_special_tokens = not special_tokens
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Return the text of some ids; ids without a token print nothing.

        Args:
            ids: token ids.
            skip_special: leave out the control tokens.
        """
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    def id_of(self, token: str) -> int | None:
        """Return the id of a token by its surface form, None if there is none."""
        return self._backend.token_to_id(token)

    def token_of(self, token_id: int) -> str | None:
        """Return the surface form of an id, None if there is none."""
        return self._backend.id_to_token(token_id)

    def detokenizer(self, skip_special: bool = False) -> StreamingDetokenizer:
        """Return a decoder for one stream of tokens, equal to `decode` over all of them."""
        if not skip_special:
            return StreamingDetokenizer(self.token_of, self._replacements)
        special = self.special_ids
        return StreamingDetokenizer(
            lambda token_id: None if token_id in special else self.token_of(token_id), self._replacements
        )

    @cached_property
    def _replacements(self) -> list[tuple[str, str]]:
        decoder = self._backend.decoder
        state = b'{"type": "none"}' if decoder is None else decoder.__getstate__()
        return decoder_replacements(state, TOKENIZER_NAME)


def _special_strings(document: dict[str, Json]) -> dict[str, str]:
    """Every `..._token` of a tokenizer_config.json, written as a string or as an object with `content`."""
    extra = document.get("extra_special_tokens")
    named = {**(extra if isinstance(extra, dict) else {}), **document}
    found: dict[str, str] = {}
    for key, value in named.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            found[key] = content
    return found

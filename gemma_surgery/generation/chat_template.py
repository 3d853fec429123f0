"""Writing a conversation as one text, by the checkpoint's own chat template or in Gemma 3's turn format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any, NoReturn

from gemma_surgery.checkpoint.json_types import Json, load_json_object, read_small_file
from gemma_surgery.checkpoint.wording import brief, listing, literal
from gemma_surgery.errors import SurgeryError

if TYPE_CHECKING:
    from gemma_surgery.generation.conversation import Turn

MAX_TEMPLATE_BYTES = 1 << 20
WHERE = "chat template"

JINJA_NAME = "chat_template.jinja"
JSON_NAMES = ("chat_template.json", "tokenizer_config.json")
KEY = "chat_template"
DEFAULT_NAME = "default"


class ChatTemplate:
    """A Jinja template that came with a checkpoint, run in a sandbox with limits.

    Args:
        source: the template.
        file: the file that it is from, for messages.
    """

    def __init__(self, source: str, file: str) -> None:
        self.source = source
        self.file = file
        self._code: CodeType | None = None

    def render(
        self,
        turns: Sequence[Turn],
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Write a conversation as text, with a placeholder for every image.

        Args:
            turns: the conversation, as `check_conversation` returns it.
            add_generation_prompt: end with the opening of the model's turn.
            variables: what the template may use by name beside `messages`, e.g. `bos_token`.

        Raises:
            SurgeryError: the template refuses the conversation, is malformed, or tries something forbidden.
        """
        from jinja2.exceptions import SecurityError, TemplateSyntaxError

        from gemma_surgery.generation.template_sandbox import ChatEnvironment, TemplateRefusal

        given = {**(variables or {}), "add_generation_prompt": add_generation_prompt}
        given["messages"] = [turn.as_message() for turn in turns]
        try:
            environment = ChatEnvironment()
            # Compiling takes many times as long as rendering; the code finds limits in its environment.
            self._code = self._code or environment.compile(self.source)
            template = environment.template_class.from_code(
                environment, self._code, environment.make_globals(None)
            )
            return template.render(given)
        except TemplateRefusal as error:
            self._refuse(f"the template in `{self.file}` refuses the conversation: {_one_line(error)}")
        except SecurityError as error:
            self._refuse(f"the template in `{self.file}` tries something forbidden: {_one_line(error)}")
        except TemplateSyntaxError as error:
            place = f"in line {error.lineno} of `{self.file}`"
            self._refuse(f"need a Jinja template, got one with an error {place}: {_one_line(error)}")
        except (RecursionError, MemoryError):
            self._refuse(f"the template in `{self.file}` needs too much memory")
        except Exception as error:
            # A template can fail in as many ways as a program.
            self._refuse(f"the template in `{self.file}` fails: {_one_line(error) or type(error).__name__}")

    @staticmethod
    def _refuse(message: str) -> NoReturn:
        raise SurgeryError(WHERE, message) from None


def find_chat_template(folder: Path) -> ChatTemplate | None:
    """Return a folder's chat template, None if it has none.

    `chat_template.jinja` comes before `chat_template.json`, and that before `tokenizer_config.json`. Where
    several templates have names, the one called `default` is it.

    Raises:
        SurgeryError: such a file is unreadable, too long, or holds something else.
    """
    if (folder / JINJA_NAME).exists():
        data = read_small_file(folder / JINJA_NAME, MAX_TEMPLATE_BYTES, WHERE)
        try:
            return ChatTemplate(data.decode("utf-8"), JINJA_NAME)
        except UnicodeDecodeError as error:
            raise SurgeryError(
                WHERE, f"need UTF-8, got byte 0x{data[error.start]:02x} at {error.start:,} in `{JINJA_NAME}`"
            ) from None
    for name in JSON_NAMES:
        if not (folder / name).exists():
            continue
        source = _template_of(load_json_object(folder / name, WHERE).get(KEY), name)
        if source is not None:
            return ChatTemplate(source, name)
    return None


def gemma_turns(turns: Sequence[Turn], add_generation_prompt: bool = True, bos: str = "<bos>") -> str:
    """Write a conversation in Gemma 3's turn format: what a checkpoint without a template gets.

    Args:
        turns: the conversation, as `check_conversation` returns it.
        add_generation_prompt: end with the opening of the model's turn.
        bos: the text of the token that starts every sequence.

    Raises:
        SurgeryError: user and model do not take turns.

    Source: the formatting section of Gemma's documentation and the published Gemma 3 template.
    """
    prefix, parts = "", [bos]
    if turns and turns[0].role == "system":
        prefix, turns = turns[0].text() + "\n\n", turns[1:]
    for index, turn in enumerate(turns):
        if (turn.role == "user") != (index % 2 == 0):
            raise SurgeryError(
                WHERE, f"need user and assistant to take turns, got {literal(turn.role)} in turn {index + 1}"
            )
        role = "model" if turn.role == "assistant" else turn.role
        body = "".join(part.placeholder() for part in turn.parts)
        parts.append(f"<start_of_turn>{role}\n{prefix}{body}<end_of_turn>\n")
        prefix = ""
    if add_generation_prompt:
        parts.append("<start_of_turn>model\n")
    return "".join(parts)


def _template_of(value: Json, file: str) -> str | None:
    """The template under a JSON key: a string, or a list of objects with `name` and `template`."""
    if isinstance(value, list):
        named = {str(entry.get("name")): entry.get("template") for entry in value if isinstance(entry, dict)}
        if DEFAULT_NAME not in named:
            raise SurgeryError(
                WHERE,
                f"need a template named `{DEFAULT_NAME}`, got {listing(sorted(named)) or 'none'} in `{file}`",
            )
        value = named[DEFAULT_NAME]
    if value is None:
        return None
    if not isinstance(value, str):
        raise SurgeryError(WHERE, f"need a string under `{KEY}`, got {brief(value)} in `{file}`")
    if len(value) > MAX_TEMPLATE_BYTES:
        raise SurgeryError(
            WHERE, f"need at most {MAX_TEMPLATE_BYTES:,} characters, got {len(value):,} in `{file}`"
        )
    return value


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= 300 else text[:297] + "..."

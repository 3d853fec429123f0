"""Loading recipes: every problem of a file is reported together, before anything is planned."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from gemma_surgery.checkpoint.json_types import Json
from gemma_surgery.checkpoint.model_folder import Checkpoint
from gemma_surgery.errors import SurgeryError, SurgeryErrors
from gemma_surgery.steps import STEPS, Step
from gemma_surgery.surgery.draft import Draft
from gemma_surgery.surgery.plan import Plan, freeze

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

FILE_KEYS = {"description", "measure", "profile", "steps"}


@dataclass(frozen=True)
class Recipe:
    """Named steps with their parameters.

    Attributes:
        name: preset name or file stem.
        description: one line.
        steps: step name and instance, in order.
        profile: of the checkpoint, for every step that takes one and names none; as it was written.
        measure: whether the checkpoint is to be profiled before, where no profile is given.
        located: where the files lie that are named as the keys say; others: as written.
    """

    name: str
    description: str
    steps: tuple[tuple[str, Step], ...]
    profile: str | None = None
    measure: bool = False
    located: Mapping[str, Path] = dataclasses.field(default_factory=dict, compare=False)

    def to_json(self) -> dict[str, Json]:
        """The recipe with every parameter spelled out, as kept in the manifest."""
        document: dict[str, Json] = {
            "name": self.name,
            "steps": [_step_json(name, step) for name, step in self.steps],
        }
        return document if self.profile is None else {**document, "profile": self.profile}

    @classmethod
    def from_json(cls, document: Mapping[str, Json]) -> Recipe:
        """The recipe that a manifest keeps."""
        kept = {key: document[key] for key in ("steps", "profile") if key in document}
        return _build(str(document.get("name")), kept, "surgery.json")

    @property
    def profiles(self) -> list[str]:
        """Names of the profiles that steps take, each once, as they were written."""
        named = (_profile_of(step) or self.profile for _, step in self.steps if hasattr(step, "profile"))
        return list(dict.fromkeys(name for name in named if name is not None))

    def locate(self, files: Mapping[str, Path]) -> Recipe:
        """The same recipe, knowing where the files lie that it names."""
        return dataclasses.replace(self, located=files)

    def path(self, name: str) -> Path:
        """Where a file lies that the recipe names."""
        return self.located.get(name, Path(name)).expanduser()

    def ready(self, step: Step) -> Step:
        """A step of this recipe that knows its profile and where it is."""
        name = _profile_of(step) or self.profile
        if name is None or not hasattr(step, "profile"):
            return step
        parameters: dict[str, Any] = {"profile": str(self.path(name))}
        return dataclasses.replace(step, **parameters)

    def prefix(self, count: int) -> Recipe:
        """The first `count` steps."""
        return dataclasses.replace(self, steps=self.steps[:count])


def preset_names() -> list[str]:
    """Recipes shipped with the package."""
    files = resources.files("gemma_surgery.recipes").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_recipe(name: str, overrides: Sequence[str] = (), profile: Path | None = None) -> Recipe:
    """A preset by name, or a TOML file by path.

    Args:
        name: e.g. ``mobile`` or ``my/recipe.toml``.
        overrides: ``step.key=value`` with a TOML value; applies to every step of that name.
        profile: a file that takes the place of the recipe's own; that one, and those that steps name, lie
            relative to the recipe file.

    Raises:
        SurgeryErrors: everything that is wrong with the recipe.
    """
    path = Path(name)
    if name in preset_names():
        text = (resources.files("gemma_surgery.recipes") / f"{name}.toml").read_text("utf-8")
        where = f"{name}.toml"
    else:
        text, where = _read(path, name), path.name
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SurgeryError("recipe", f"`{where}` is not valid TOML: {_lower(str(error))}") from None
    problems = _apply_overrides(document, overrides)
    if profile is not None:
        document["profile"] = str(profile)
    is_preset = name in preset_names()
    recipe = _build(name if is_preset else path.stem, document, where, problems)
    if recipe.profile is not None and not recipe.profiles:
        raise SurgeryError(
            "recipe", f"need a step in `{where}` that takes the profile `{recipe.profile}`, got none"
        )
    if is_preset:
        return recipe
    own = [file for file in recipe.profiles if profile is None or file != str(profile)]
    return recipe.locate({file: path.parent / Path(file).expanduser() for file in own})


def make_plan(checkpoint: Checkpoint, recipe: Recipe) -> Plan:
    """Apply the steps of a recipe to a checkpoint, reading no weights.

    Raises:
        SurgeryErrors: every step that does not fit the checkpoint.
    """
    draft = Draft.of(checkpoint)
    errors: list[SurgeryError] = []
    for name, step in recipe.steps:
        try:
            draft.run(name, recipe.ready(step).plan)
        except SurgeryError as error:
            errors.append(error)
    _raise_all(errors)
    return freeze(draft, recipe.to_json())


def _read(path: Path, name: str) -> str:
    if not path.is_file():
        close = difflib.get_close_matches(name, preset_names(), 1)
        raise SurgeryError(
            "recipe",
            f"need a preset ({', '.join(preset_names())}) or a TOML file, got `{name}`",
            f"did you mean `{close[0]}`?" if close else None,
        )
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SurgeryError("recipe", f"cannot read `{path}`: {_lower(str(error))}") from None


def _build(
    name: str, document: Mapping[str, Any], where: str, problems: Sequence[SurgeryError] = ()
) -> Recipe:
    errors = list(problems)
    for key in sorted(set(document) - FILE_KEYS):
        errors.append(_unknown(f"key `{key}` in `{where}`", key, FILE_KEYS))
    description = document.get("description", "")
    if not isinstance(description, str):
        errors.append(
            SurgeryError("recipe", f"need a text, got {description!r} for `description` in `{where}`")
        )
    profile = document.get("profile")
    if profile is not None and not isinstance(profile, str):
        errors.append(SurgeryError("recipe", f"need a text, got {profile!r} for `profile` in `{where}`"))
    measure = document.get("measure", False)
    if not isinstance(measure, bool):
        errors.append(
            SurgeryError("recipe", f"need true or false, got {measure!r} for `measure` in `{where}`")
        )
    entries = document.get("steps")
    steps: list[tuple[str, Step]] = []
    if not isinstance(entries, list) or not entries:
        errors.append(SurgeryError("recipe", f"need at least one `[[steps]]` table, got none in `{where}`"))
        entries = []
    for number, entry in enumerate(entries, 1):
        place = f"step {number} of `{where}`"
        if not isinstance(entry, dict):
            errors.append(SurgeryError("recipe", f"need a table, got {entry!r} as {place}"))
            continue
        step_name = entry.get("step")
        if step_name not in STEPS:
            errors.append(_unknown(f"`step = {step_name!r}` in {place}", str(step_name), STEPS))
            continue
        parameters = {key: value for key, value in entry.items() if key != "step"}
        built = _construct(STEPS[step_name], parameters, f"{step_name} ({place})", errors)
        if built is not None:
            steps.append((step_name, built))
    names = [step_name for step_name, _ in steps]
    for once in ("prune_vocabulary", "split_weights", "tie_head"):
        if names.count(once) > 1:
            errors.append(
                SurgeryError("recipe", f"need `{once}` at most once, got it {names.count(once)} times")
            )
    _raise_all(errors)
    return Recipe(name, description, tuple(steps), profile, measure)


def _construct(cls: type[Any], parameters: Mapping[str, Any], where: str, errors: list[SurgeryError]) -> Any:
    """An instance of a parameter dataclass, or None after appending what is wrong."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = get_type_hints(cls)
    before = len(errors)
    values = {}
    for key, value in parameters.items():
        if key not in fields:
            errors.append(_unknown(f"parameter `{key}` of {where}", key, fields))
            continue
        converted, problem = _convert(value, hints[key], f"`{key}` of {where}", errors)
        if problem is not None:
            errors.append(SurgeryError("recipe", f"need {problem}, got {value!r} for `{key}` of {where}"))
        values[key] = converted
    for key, field in fields.items():
        if key not in parameters and field.default is dataclasses.MISSING:
            errors.append(SurgeryError("recipe", f"need `{key}` in {where}, got none"))
    return cls(**values) if len(errors) == before else None


def _convert(value: Any, hint: Any, where: str, errors: list[SurgeryError]) -> tuple[Any, str | None]:
    """The value as the hinted type, and what would have been needed if it is not one."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value, None if value in arguments else "one of " + ", ".join(f"`{a}`" for a in arguments)
    if type(None) in arguments:
        if value is None:
            return None, None
        return _convert(value, next(a for a in arguments if a is not type(None)), where, errors)
    if origin is tuple:
        if not isinstance(value, list):
            return value, f"a list of {_noun(arguments[0])}"
        items = [_convert(item, arguments[0], where, errors) for item in value]
        bad = next((problem for _, problem in items if problem), None)
        return tuple(item for item, _ in items), bad and f"a list of {_noun(arguments[0])}"
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            return value, "a table"
        return _construct(hint, value, where, errors), None  # type: ignore[arg-type]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value), None
    if type(value) is not hint:
        return value, _noun(hint, article=True)
    return value, None


def _noun(hint: Any, article: bool = False) -> str:
    nouns = {int: "integer", float: "number", str: "text", bool: "true or false"}
    noun = nouns.get(hint, "table")
    if hint is bool:
        return noun
    return (("an " if noun[0] in "aeiou" else "a ") if article else "") + noun + ("" if article else "s")


def _apply_overrides(document: dict[str, Any], overrides: Sequence[str]) -> list[SurgeryError]:
    problems = []
    for override in overrides:
        path, equals, text = override.partition("=")
        step_name, dot, key = path.strip().partition(".")
        if not (equals and dot and key):
            problems.append(SurgeryError("recipe", f"need `step.key=value` for --set, got `{override}`"))
            continue
        entries = document.get("steps")
        targets = [
            entry
            for entry in (entries if isinstance(entries, list) else [])
            if isinstance(entry, dict) and entry.get("step") == step_name
        ]
        if not targets:
            problems.append(
                SurgeryError("recipe", f"need a step `{step_name}` in the recipe for --set, got none")
            )
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            # Bare words are what people type in a shell.
            value = text.strip()
        for entry in targets:
            entry[key] = value
    return problems


def _profile_of(step: Step) -> str | None:
    return getattr(step, "profile", None)


def _step_json(name: str, step: Step) -> dict[str, Json]:
    parameters: dict[str, Json] = {}
    for field in dataclasses.fields(step):
        value = getattr(step, field.name)
        if value != field.default:
            parameters[field.name] = _plain(value)
    return {"step": name, **parameters}


def _plain(value: bool | int | float | str | tuple[Any, ...] | None) -> Json:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def _unknown(what: str, name: str, known: Any) -> SurgeryError:
    close = difflib.get_close_matches(name, list(known), 1)
    hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(sorted(known))}"
    return SurgeryError("recipe", f"unknown {what}", hint)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _raise_all(errors: Sequence[SurgeryError]) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise SurgeryErrors(list(errors))

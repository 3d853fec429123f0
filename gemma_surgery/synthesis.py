"""Random-weight checkpoints with the exact names, shapes, dtypes and configs of published ones.

A synthesis is a plan like any other, whose tensors come from a random stream instead of a source: it is
written by the same pass, in bounded memory.
"""

from __future__ import annotations

from pathlib import Path

from gemma_surgery.checkpoint.json_types import Json
from gemma_surgery.checkpoint.model_folder import Checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.families.published import Published
from gemma_surgery.surgery.draft import Draft
from gemma_surgery.surgery.encoding import Dense, Encoding, Quantized, Shape
from gemma_surgery.surgery.plan import Plan, freeze
from gemma_surgery.surgery.tensor import RandomFill, Tensor

# Published weights are roughly of this size; norms are stored zero-centred (the model adds 1).
WEIGHT_DEVIATION = 0.02
NORM_DEVIATION = 0.1
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer.model",
)


def synthesis_plan(name: str, model: Published, tokenizer: Path | None, seed: int = 0) -> Plan:
    """The plan of a synthetic checkpoint.

    Args:
        name: what to call it in the manifest.
        model: config and layout.
        tokenizer: folder whose tokenizer files are carried along.
        seed: of the random values.

    Raises:
        SurgeryError: the tokenizer folder holds no `tokenizer.json`.
    """
    draft = Draft(_no_source(model, tokenizer), {}, dict(model.config))
    family = Gemma3(model.config)
    shapes = family.shapes(mlx_layout=model.quantized)
    for tensor_name, shape in shapes.items():
        draft.add(_random(tensor_name, shape, model, seed, family))
    if model.duplicate_head:
        # The same stream as the embedding's: bit-identical, as in the published conversion.
        embedding = draft.tensor(family.embedding)
        draft.add(_as_head(embedding, family))
    draft.documents |= {file: dict(document) for file, document in model.documents.items()}
    if model.quantized:
        draft.metadata["format"] = "mlx"
    else:
        draft.metadata["format"] = "pt"
    recipe: dict[str, Json] = {"name": f"synth {name}", "seed": seed, "steps": []}
    return freeze(draft, recipe)


def _random(name: str, shape: Shape, model: Published, seed: int, family: Gemma3) -> Tensor:
    is_norm = len(shape) == 1
    fill = RandomFill(seed, shape, NORM_DEVIATION if is_norm else WEIGHT_DEVIATION)
    encoding: Encoding = Dense("BF16")
    quantization = model.config.get("quantization")
    if model.quantized and isinstance(quantization, dict) and family.quantizes(name, shape):
        bits, group_size = quantization["bits"], quantization["group_size"]
        assert isinstance(bits, int) and isinstance(group_size, int)
        if shape[1] % group_size == 0:
            encoding = Quantized(bits, group_size, "BF16")
    return Tensor.of_values(name, fill, encoding)


def _as_head(embedding: Tensor, family: Gemma3) -> Tensor:
    origin = embedding.origin
    assert isinstance(origin, RandomFill)
    same = RandomFill(origin.seed, origin.shape, origin.deviation, stream=embedding.name)
    return Tensor.of_values(family.head, same, embedding.encoding)


def _no_source(model: Published, tokenizer: Path | None) -> Checkpoint:
    files = []
    if tokenizer is not None:
        files = [name for name in TOKENIZER_FILES if (tokenizer / name).is_file()]
        if "tokenizer.json" not in files:
            raise SurgeryError("synth", f"need a `tokenizer.json` in `{tokenizer}`, got none")
    return Checkpoint(tokenizer or Path(), {}, {}, dict(model.config), {}, files)

"""Gemma 3: text decoder, SigLIP tower and projector, in the Hugging Face and the MLX layout.

Sources: the Gemma 3 technical report and the model classes of transformers, mlx-vlm and mlx-lm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from gemma_surgery.checkpoint.json_types import Json
from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.encoding import Shape
from gemma_surgery.surgery.tensor import SourceMatrix, Tensor

MULTIMODAL = "gemma3"
TEXT_ONLY = "gemma3_text"

# Published config.json files are sparse: what they leave out is filled in by these class defaults.
TEXT_DEFAULTS: dict[str, Json] = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window_pattern": 6,
}
VISION_DEFAULTS: dict[str, Json] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 896,
    "patch_size": 14,
    "num_channels": 3,
}
MM_TOKENS_DEFAULT = 256

VISION_TOWER = "vision_tower."
VISION = f"{VISION_TOWER}vision_model."
PROJECTOR = "multi_modal_projector."
# The linears behind the MLP's neurons, as a pattern of module paths.
DOWN_PROJ = "*.mlp.down_proj"
TOKEN_ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
IMAGE_ID_KEYS = ("boi_token_index", "eoi_token_index", "image_token_index")

Config = Mapping[str, Json]


class Gemma3:
    """Reads the anatomy off a config; holds no state of its own.

    Args:
        config: the parsed config.json, source or draft.
    """

    def __init__(self, config: Config) -> None:
        model_type = config.get("model_type")
        if model_type not in (MULTIMODAL, TEXT_ONLY):
            raise SurgeryError(
                "family",
                f"need model_type `{MULTIMODAL}` or `{TEXT_ONLY}`, got {model_type!r} in `config.json`",
                "only Gemma 3 checkpoints are supported so far",
            )
        self.config = config
        self.is_multimodal = model_type == MULTIMODAL

    # ---- config ----

    @property
    def text_config(self) -> Config:
        """The text decoder's part of the config."""
        return _section(self.config, "text_config") if self.is_multimodal else self.config

    @property
    def vision_config(self) -> Config:
        """The vision tower's part of the config."""
        return _section(self.config, "vision_config")

    def text(self, key: str) -> int:
        """An integer of the text config, or its class default."""
        return _integer(self.text_config, key, TEXT_DEFAULTS, "text_config" if self.is_multimodal else "")

    def vision(self, key: str) -> int:
        """An integer of the vision config, or its class default."""
        return _integer(self.vision_config, key, VISION_DEFAULTS, "vision_config")

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return self.text("num_hidden_layers")

    @property
    def layer_types(self) -> list[str]:
        """`sliding_attention` or `full_attention` per decoder layer."""
        explicit = self.text_config.get("layer_types")
        if isinstance(explicit, list):
            if len(explicit) != self.num_layers:
                raise SurgeryError(
                    "family",
                    f"need {self.num_layers} entries in `layer_types`, got {len(explicit)} in `config.json`",
                )
            return [str(kind) for kind in explicit]
        return self.types_by_pattern(self.num_layers)

    def types_by_pattern(self, num_layers: int) -> list[str]:
        """The layer types that engines derive from the index alone."""
        pattern = self.pattern
        return [
            "full_attention" if (index + 1) % pattern == 0 else "sliding_attention"
            for index in range(num_layers)
        ]

    @property
    def pattern(self) -> int:
        """Every `pattern`-th layer attends globally."""
        key = "sliding_window_pattern"
        return self.text(f"_{key}" if f"_{key}" in self.text_config else key)

    @property
    def mlp_widths(self) -> list[int]:
        """MLP width F per decoder layer."""
        sizes = self.text_config.get("per_layer_intermediate_sizes")
        if sizes is None:
            return [self.text("intermediate_size")] * self.num_layers
        if (
            not isinstance(sizes, list)
            or len(sizes) != self.num_layers
            or not all(isinstance(size, int) for size in sizes)
        ):
            raise SurgeryError(
                "family",
                f"need {self.num_layers} integers in `per_layer_intermediate_sizes`, "
                f"got {sizes!r} in `config.json`",
            )
        return [size for size in sizes if isinstance(size, int)]

    @property
    def down_proj_biases(self) -> list[bool]:
        """Whether `down_proj` has a bias, per decoder layer: a key of this package's own."""
        flags = self.text_config.get("per_layer_down_proj_bias")
        if flags is None:
            return [False] * self.num_layers
        if (
            not isinstance(flags, list)
            or len(flags) != self.num_layers
            or not all(isinstance(flag, bool) for flag in flags)
        ):
            raise SurgeryError(
                "family",
                f"need true or false for each of {self.num_layers} layers in `per_layer_down_proj_bias`, "
                f"got {flags!r} in `config.json`",
            )
        return [flag is True for flag in flags]

    @property
    def tokens_per_image(self) -> int:
        """Image tokens that the projector pools to."""
        for config in (self.config, self.text_config):
            value = config.get("mm_tokens_per_image")
            if isinstance(value, int):
                return value
        return MM_TOKENS_DEFAULT

    @property
    def compact_rows(self) -> int | None:
        """Rows of a pruned embedding table, or None when the vocabulary is whole."""
        block = self.config.get("vocab_pruning")
        rows = block.get("compact_vocab_size") if isinstance(block, dict) else None
        return rows if isinstance(rows, int) else None

    # ---- names ----

    @property
    def text_prefix(self) -> str:
        """What decoder tensor names start with."""
        return "language_model.model." if self.is_multimodal else "model."

    @property
    def embedding(self) -> str:
        """The token embedding table `[V, E]`, tied to the head."""
        return f"{self.text_prefix}embed_tokens.weight"

    @property
    def head(self) -> str:
        """The untied output head `[V, E]`; most checkpoints have none."""
        return "language_model.lm_head.weight" if self.is_multimodal else "lm_head.weight"

    @property
    def token_map(self) -> str:
        """The token map int32 `[V]` of a pruned vocabulary."""
        return f"{self.text_prefix}embed_tokens.token_map"

    def layer_prefix(self, layer: int) -> str:
        """What the names of one decoder layer start with."""
        return f"{self.text_prefix}layers.{layer}."

    def mlp(self, layer: int) -> tuple[str, str, str]:
        """Names of gate `[F, E]`, up `[F, E]` and down `[E, F]` of a decoder layer."""
        prefix = f"{self.layer_prefix(layer)}mlp."
        return f"{prefix}gate_proj.weight", f"{prefix}up_proj.weight", f"{prefix}down_proj.weight"

    def attention(self, layer: int) -> tuple[str, str, str, str]:
        """Names of q `[H D, E]`, k and v `[K D, E]` and o `[E, H D]` of a decoder layer."""
        prefix = f"{self.layer_prefix(layer)}self_attn."
        names = ("q_proj", "k_proj", "v_proj", "o_proj")
        query, key, value, output = (f"{prefix}{name}.weight" for name in names)
        return query, key, value, output

    def vision_layer_prefix(self, layer: int) -> str:
        """What the names of one vision layer start with."""
        return f"{VISION}encoder.layers.{layer}."

    @property
    def patch_embedding(self) -> str:
        """The patch convolution."""
        return f"{VISION}embeddings.patch_embedding.weight"

    @property
    def position_embedding(self) -> str:
        """The vision position table `[P, E]`, a row-major square grid."""
        return f"{VISION}embeddings.position_embedding.weight"

    def component(self, name: str) -> str:
        """The part of the model that a tensor belongs to."""
        if name.startswith(VISION_TOWER):
            return "vision tower"
        if name.startswith(PROJECTOR):
            return "projector"
        stem = self.text_prefix
        if name.startswith(f"{stem}embed_tokens."):
            return "embedding"
        if name.startswith(self.head.removesuffix("weight")):
            return "output head"
        return "text layers" if name.startswith(stem) else "other"

    def is_vision(self, name: str) -> bool:
        """Whether text-only inference can do without the tensor."""
        return is_vision_tensor(name)

    def has_vision(self, names: Iterable[str]) -> bool:
        """Whether the checkpoint holds a vision tower; language-only folders of a VLM do not."""
        return self.is_multimodal and any(self.is_vision(name) for name in names)

    def quantizes(self, name: str, shape: Shape) -> bool:
        """Whether MLX quantizes the tensor: linear and embedding weights, not norms, convolutions, biases."""
        return name.endswith(".weight") and len(shape) == 2

    # ---- shapes ----

    def shapes(self, mlx_layout: bool) -> dict[str, Shape]:
        """Logical name and shape of every tensor but an untied head, as the config states them.

        Args:
            mlx_layout: the patch convolution is `[O, H, W, I]` in MLX and `[O, I, H, W]` elsewhere.
        """
        shapes = self._text_shapes()
        if self.is_multimodal:
            shapes |= self._vision_shapes(mlx_layout)
        return shapes

    def _text_shapes(self) -> dict[str, Shape]:
        e, d = self.text("hidden_size"), self.text("head_dim")
        h, k = self.text("num_attention_heads"), self.text("num_key_value_heads")
        vocab = self.text("vocab_size")
        shapes: dict[str, Shape] = {self.embedding: (self.compact_rows or vocab, e)}
        if self.compact_rows is not None:
            shapes[self.token_map] = (vocab,)
        for layer, f in enumerate(self.mlp_widths):
            prefix = self.layer_prefix(layer)
            gate, up, down = self.mlp(layer)
            query, key, value, output = self.attention(layer)
            shapes |= {
                query: (h * d, e),
                key: (k * d, e),
                value: (k * d, e),
                output: (e, h * d),
                f"{prefix}self_attn.q_norm.weight": (d,),
                f"{prefix}self_attn.k_norm.weight": (d,),
                gate: (f, e),
                up: (f, e),
                down: (e, f),
            }
            for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
                shapes[f"{prefix}{norm}_layernorm.weight"] = (e,)
            if self.down_proj_biases[layer]:
                shapes[down_proj_bias(down)] = (e,)
        shapes[f"{self.text_prefix}norm.weight"] = (e,)
        return shapes

    def _vision_shapes(self, mlx_layout: bool) -> dict[str, Shape]:
        e, f = self.vision("hidden_size"), self.vision("intermediate_size")
        patch, channels = self.vision("patch_size"), self.vision("num_channels")
        grid = self.vision("image_size") // patch
        convolution = (e, patch, patch, channels) if mlx_layout else (e, channels, patch, patch)
        shapes: dict[str, Shape] = {
            self.patch_embedding: convolution,
            f"{VISION}embeddings.patch_embedding.bias": (e,),
            self.position_embedding: (grid * grid, e),
        }
        for layer in range(self.vision("num_hidden_layers")):
            prefix = self.vision_layer_prefix(layer)
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes |= _with_bias(f"{prefix}self_attn.{name}", e, e)
            shapes |= _with_bias(f"{prefix}mlp.fc1", f, e) | _with_bias(f"{prefix}mlp.fc2", e, f)
            for name in ("layer_norm1", "layer_norm2"):
                shapes |= {f"{prefix}{name}.weight": (e,), f"{prefix}{name}.bias": (e,)}
        shapes |= {f"{VISION}post_layernorm.weight": (e,), f"{VISION}post_layernorm.bias": (e,)}
        shapes[f"{PROJECTOR}mm_input_projection_weight"] = (e, self.text("hidden_size"))
        shapes[f"{PROJECTOR}mm_soft_emb_norm.weight"] = (e,)
        return shapes

    # ---- constraints ----

    def token_ids(self, *documents: Mapping[str, Json]) -> dict[str, list[int]]:
        """Every token id that the configs name, by key: they must survive a vocabulary cut."""
        found: dict[str, list[int]] = {}
        for config in (self.config, self.text_config, *documents):
            for key in (
                *TOKEN_ID_KEYS,
                *IMAGE_ID_KEYS,
                *(key.replace("index", "id") for key in IMAGE_ID_KEYS),
            ):
                value = config.get(key)
                ids = value if isinstance(value, list) else [value]
                found.setdefault(key, []).extend(i for i in ids if isinstance(i, int) and i >= 0)
        return {key: sorted(set(ids)) for key, ids in found.items() if ids}

    def problems(self, tensors: Mapping[str, SourceMatrix | Tensor]) -> list[str]:
        """Where tensors and config disagree, one sentence each; empty for a sound checkpoint."""
        convolution = tensors.get(self.patch_embedding)
        mlx_layout = convolution is not None and convolution.shape[-1] == self.vision("num_channels")
        expected = self.shapes(mlx_layout)
        if self.is_multimodal and not self.has_vision(tensors):
            expected = {name: shape for name, shape in expected.items() if not self.is_vision(name)}
        found = []
        for name, shape in expected.items():
            tensor = tensors.get(name)
            if tensor is None:
                found.append(f"`{name}` {list(shape)} is missing")
            elif tensor.shape != shape:
                found.append(f"`{name}` is {list(tensor.shape)}, the config says {list(shape)}")
        head = tensors.get(self.head)
        vocab = (self.compact_rows, self.text("vocab_size"))
        if head is not None and head.shape[0] not in vocab:
            found.append(f"`{self.head}` has {head.shape[0]} rows, the config says {vocab[1]}")
        extra = [name for name in tensors if name not in expected and not name.startswith(self.head[:-6])]
        found += [f"`{name}` is not part of the model that the config describes" for name in extra]
        if self.is_multimodal:
            found += self._pooling_problems()
        return found

    def _pooling_problems(self) -> list[str]:
        grid = self.vision("image_size") // self.vision("patch_size")
        side = math.isqrt(self.tokens_per_image)
        problems = []
        if side * side != self.tokens_per_image or grid % side:
            problems.append(
                f"{self.tokens_per_image} image tokens do not pool a {grid} x {grid} patch grid evenly"
            )
        nested = self.text_config.get("mm_tokens_per_image", self.tokens_per_image)
        if nested != self.tokens_per_image:
            problems.append(
                f"`mm_tokens_per_image` is {self.tokens_per_image} at the top and {nested} in `text_config`"
            )
        return problems


def is_vision_tensor(name: str) -> bool:
    """Whether text-only inference can do without the tensor of that name."""
    return name.startswith((VISION_TOWER, PROJECTOR))


def down_proj_bias(down: str) -> str:
    """The name of the additive bias beside the weight `down`."""
    return f"{down.removesuffix('weight')}bias"


def _with_bias(name: str, rows: int, columns: int) -> dict[str, Shape]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _section(config: Config, key: str) -> Config:
    value = config.get(key)
    if not isinstance(value, dict):
        raise SurgeryError("family", f"need an object under `{key}` in `config.json`, got {value!r}")
    return value


def _integer(config: Config, key: str, defaults: Config, where: str) -> int:
    value = config.get(key)
    if value is None:
        value = defaults[key]
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        path = f"{where}.{key}" if where else key
        raise SurgeryError("family", f"need a positive integer in `{path}` of `config.json`, got {value!r}")
    return value

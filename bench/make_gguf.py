"""Random-weight GGUF files of Gemma 3's shape, to time llama.cpp on exactly the work that we do.

The text model has every matrix in Q4_0, the tied embedding included, and norms in float32; ``--vision``
writes the SigLIP tower and its projector in float16 as a second file, as llama.cpp wants it. Sizes and speed
only: the weights mean nothing.

Usage: ``python bench/make_gguf.py TOKENIZER OUT.gguf [--vision VISION.gguf] [--image-size 896]
[--layers 34 --mlp 10240 --rows 262208]``
TOKENIZER is a folder with Gemma's `tokenizer.json`. Needs the package ``gguf``; see bench/peers.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, WINDOW, CONTEXT = 2560, 8, 4, 256, 1024, 131072
VISION_HIDDEN, VISION_MLP, VISION_HEADS, VISION_LAYERS, PATCH = 1152, 4304, 16, 27, 14
# Q4_0: 32 weights in a float16 scale and 16 bytes.
BLOCK, BLOCK_BYTES = 32, 18
WEIGHT_DEVIATION = 0.02
# Nibbles minus 8 are spread evenly over -8 to 7, with a deviation of 4.6.
SCALE = np.float16(WEIGHT_DEVIATION / 4.6)
CONTROL = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
)

Shape = tuple[int, ...]


def text_tensors(layers: int, mlp: int, rows: int) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the text model; matrices are [out, in]."""
    yield "token_embd.weight", (rows, HIDDEN)
    yield "output_norm.weight", (HIDDEN,)
    for layer in range(layers):
        block = f"blk.{layer}."
        yield block + "attn_q.weight", (HEADS * HEAD_DIM, HIDDEN)
        yield block + "attn_k.weight", (KV_HEADS * HEAD_DIM, HIDDEN)
        yield block + "attn_v.weight", (KV_HEADS * HEAD_DIM, HIDDEN)
        yield block + "attn_output.weight", (HIDDEN, HEADS * HEAD_DIM)
        yield block + "ffn_gate.weight", (mlp, HIDDEN)
        yield block + "ffn_up.weight", (mlp, HIDDEN)
        yield block + "ffn_down.weight", (HIDDEN, mlp)
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            yield f"{block}{norm}.weight", (HIDDEN,)
        for norm in ("attn_q_norm", "attn_k_norm"):
            yield f"{block}{norm}.weight", (HEAD_DIM,)


def vision_tensors(image_size: int) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the vision tower and the projector."""
    yield "v.patch_embd.weight", (VISION_HIDDEN, 3, PATCH, PATCH)
    yield "v.patch_embd.bias", (VISION_HIDDEN,)
    yield "v.position_embd.weight", ((image_size // PATCH) ** 2, VISION_HIDDEN)
    for layer in range(VISION_LAYERS):
        block = f"v.blk.{layer}."
        square = (VISION_HIDDEN, VISION_HIDDEN)
        matrices = {f"attn_{name}": square for name in ("q", "k", "v", "out")}
        matrices |= {"ffn_up": (VISION_MLP, VISION_HIDDEN), "ffn_down": (VISION_HIDDEN, VISION_MLP)}
        for name, shape in matrices.items():
            yield f"{block}{name}.weight", shape
            yield f"{block}{name}.bias", shape[:1]
        for norm in ("ln1", "ln2"):
            yield f"{block}{norm}.weight", (VISION_HIDDEN,)
            yield f"{block}{norm}.bias", (VISION_HIDDEN,)
    yield "v.post_ln.weight", (VISION_HIDDEN,)
    yield "v.post_ln.bias", (VISION_HIDDEN,)
    yield "mm.input_projection.weight", (VISION_HIDDEN, HIDDEN)
    yield "mm.soft_emb_norm.weight", (VISION_HIDDEN,)


def random_blocks(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Return a Q4_0 matrix as bytes."""
    rows, cols = shape
    blocks = np.empty((rows, cols // BLOCK, BLOCK_BYTES), np.uint8)
    blocks[..., :2] = np.frombuffer(SCALE.tobytes(), np.uint8)
    blocks[..., 2:] = np.frombuffer(rng.bytes(rows * cols // 2), np.uint8).reshape(rows, -1, BLOCK // 2)
    return blocks.reshape(rows, -1)


def random_floats(rng: np.random.Generator, name: str, shape: Shape, dtype: type) -> np.ndarray:
    """Return small random numbers; around 1 for the factors of norms."""
    values = rng.standard_normal(shape, np.float32) * np.float32(WEIGHT_DEVIATION)
    is_factor = len(shape) == 1 and name.endswith(".weight")
    return (values + np.float32(is_factor)).astype(dtype)


def write_tensors(writer: GGUFWriter, tensors: list[tuple[str, Shape]], *, quantized: bool) -> None:
    """Write the file, one tensor in memory at a time."""
    wide = {"v.position_embd.weight"}

    def dtype_of(name: str, shape: Shape) -> type:
        return np.float32 if len(shape) == 1 or name in wide else np.float16

    for name, shape in tensors:
        if quantized and len(shape) == 2:
            row_bytes = shape[1] // BLOCK * BLOCK_BYTES
            writer.add_tensor_info(
                name,
                (shape[0], row_bytes),
                np.dtype(np.uint8),
                shape[0] * row_bytes,
                GGMLQuantizationType.Q4_0,
            )
        else:
            dtype = np.dtype(dtype_of(name, shape))
            writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    for name, shape in tensors:
        if quantized and len(shape) == 2:
            writer.write_tensor_data(random_blocks(rng, shape))
        else:
            writer.write_tensor_data(random_floats(rng, name, shape, dtype_of(name, shape)))
    writer.close()


def add_tokenizer(writer: GGUFWriter, folder: Path, rows: int) -> None:
    """Write the vocabulary as llama.cpp keeps SentencePiece ones, cut or filled up to `rows` tokens."""
    document = json.loads((folder / "tokenizer.json").read_text())
    ids = dict(document["model"]["vocab"])
    added = {token["content"]: token["id"] for token in document["added_tokens"]}
    names = {index: name for name, index in (ids | added).items()}
    tokens, kinds = [], []
    for index in range(rows):
        name = names.get(index, f"<filler{index}>")
        tokens.append(name)
        if name in CONTROL:
            kinds.append(TokenType.CONTROL)
        elif name.startswith("<0x") and len(name) == 6:
            kinds.append(TokenType.BYTE)
        elif name in added or index not in names:
            kinds.append(TokenType.USER_DEFINED)
        else:
            kinds.append(TokenType.NORMAL)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    # Merges of lower ids come first.
    writer.add_token_scores([-float(index) for index in range(rows)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def write_text(path: Path, tokenizer: Path, layers: int, mlp: int, rows: int) -> None:
    """Write the text model."""
    writer = GGUFWriter(path, "gemma3")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(mlp)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(WINDOW)
    writer.add_rope_freq_base(1e6)
    add_tokenizer(writer, tokenizer, rows)
    write_tensors(writer, list(text_tensors(layers, mlp, rows)), quantized=True)


def write_vision(path: Path, image_size: int) -> None:
    """Write the vision tower."""
    writer = GGUFWriter(path, "clip")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("gemma3")
    writer.add_vision_projection_dim(HIDDEN)
    writer.add_vision_image_size(image_size)
    writer.add_vision_patch_size(PATCH)
    writer.add_vision_embedding_length(VISION_HIDDEN)
    writer.add_vision_feed_forward_length(VISION_MLP)
    writer.add_vision_block_count(VISION_LAYERS)
    writer.add_vision_head_count(VISION_HEADS)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    writer.add_vision_use_gelu(True)
    write_tensors(writer, list(vision_tensors(image_size)), quantized=False)


def main() -> None:
    """Write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--vision", type=Path)
    parser.add_argument("--image-size", type=int, default=896)
    parser.add_argument("--layers", type=int, default=34)
    parser.add_argument("--mlp", type=int, default=10240)
    parser.add_argument("--rows", type=int, default=262208)
    arguments = parser.parse_args()
    write_text(arguments.output, arguments.tokenizer, arguments.layers, arguments.mlp, arguments.rows)
    if arguments.vision:
        write_vision(arguments.vision, arguments.image_size)


if __name__ == "__main__":
    main()

"""The published seven steps as a plain script: stock MLX ops on the whole model. The baseline of `compress`.

It does the operations of the recipe `mobile` on a 4-bit MLX Gemma 3 checkpoint, in the order and in the
way of the paper (sections 3.2 to 3.7): dequantize, edit, quantize. Loading is lazy and each layer is
evaluated as it is edited, so it gets by with the least memory that the style allows. What it leaves
out, in its favour: it prunes no tokenizer, hashes and verifies nothing, and flushes nothing to the
disk.

Usage: ``python bench/naive_pipeline.py MODEL -o OUT [--save-stages] [--kept-ids FILE] [--scores random]``
The last line is JSON: ``seconds``, ``peak_rss_bytes``, ``peak_anonymous_bytes`` (null where it cannot be
read), ``output_bytes`` (tensor data), ``written_bytes`` (files), ``stages`` (seconds of each).
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

TEXT = "language_model.model."
HEAD = "language_model.lm_head."
VISION = "vision_tower.vision_model."
PARTS = ("weight", "scales", "biases")
GROUP = 64
TYPOGRAPHIC = frozenset("‘’‚“”„‹›«»–—―…•·‣◦€£¥¢©®™°±×÷§¶†‡←↑→↓≈≠≤≥½¼¾\u00a0\u200b")  # fmt: skip

Weights = dict[str, mx.array]
Stage = Callable[[Weights, dict, argparse.Namespace], None]


def load(folder: Path) -> Weights:
    weights: Weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights.update(mx.load(str(file)))
    return weights


def dequantize(weights: Weights, name: str) -> mx.array:
    return mx.dequantize(*(weights[f"{name}.{part}"] for part in PARTS), group_size=GROUP, bits=4)


def store_quantized(weights: Weights, name: str, matrix: mx.array) -> None:
    packed = mx.quantize(matrix, group_size=GROUP, bits=4)
    mx.eval(*packed)
    for part, array in zip(PARTS, packed, strict=True):
        weights[f"{name}.{part}"] = array


def scan_tokenizer(path: Path) -> list[int]:
    """Ids of printable ASCII, newline and tab runs, typographic, byte and special tokens; no `<unusedN>`."""
    data = json.loads(path.read_text(encoding="utf-8"))
    tokens = {index: text for text, index in data["model"]["vocab"].items()}
    special = {token["id"] for token in data["added_tokens"] if token["special"]}
    tokens.update({token["id"]: token["content"] for token in data["added_tokens"]})
    kept = []
    for index, text in tokens.items():
        if re.fullmatch(r"<unused\d+>", text):
            continue
        plain = text.replace("\u2581", " ")
        printable = all(32 <= ord(char) < 127 or char in TYPOGRAPHIC for char in plain)
        run = set(text) in ({"\n"}, {"\t"})
        if printable or run or index in special:
            kept.append(index)
    return sorted(kept)


def read_kept_ids(args: argparse.Namespace) -> list[int]:
    if args.kept_ids is None:
        return scan_tokenizer(args.model / "tokenizer.json")
    return sorted({int(word) for word in re.findall(r"\d+", args.kept_ids.read_text(encoding="utf-8"))})


def prune_vocabulary(weights: Weights, config: dict, args: argparse.Namespace) -> None:
    for part in PARTS:
        weights.pop(HEAD + part, None)
    kept = mx.array(read_kept_ids(args))
    name = TEXT + "embed_tokens."
    rows = weights[name + "weight"].shape[0]
    token_map = mx.zeros((rows,), dtype=mx.int32)
    token_map[kept] = mx.arange(1, kept.size + 1, dtype=mx.int32)
    for part in PARTS:
        table = mx.take(weights[name + part], kept, axis=0)
        weights[name + part] = mx.concatenate([mx.zeros_like(table[:1]), table])
        mx.eval(weights[name + part])
    weights[name + "token_map"] = token_map
    config["vocab_pruning"] = {"original_vocab_size": rows, "compact_vocab_size": kept.size + 1}


def pad_vision_mlp(weights: Weights, config: dict, _: argparse.Namespace) -> None:
    width = config["vision_config"]["intermediate_size"]
    extra = -width % GROUP
    for layer in range(config["vision_config"]["num_hidden_layers"]):
        fc1, fc2 = (f"{VISION}encoder.layers.{layer}.mlp.{fc}" for fc in ("fc1", "fc2"))
        store_quantized(weights, fc1, mx.pad(dequantize(weights, fc1), ((0, extra), (0, 0))))
        weights[fc1 + ".bias"] = mx.pad(weights[fc1 + ".bias"], (0, extra))
        store_quantized(weights, fc2, mx.pad(weights[fc2 + ".weight"], ((0, 0), (0, extra))))
    config["vision_config"]["intermediate_size"] = width + extra


def drop_layers(weights: Weights, config: dict, args: argparse.Namespace) -> None:
    layers = config["text_config"]["num_hidden_layers"] - args.drop_layers
    for name in list(weights):
        match = re.match(re.escape(TEXT) + r"layers\.(\d+)\.", name)
        if match and int(match[1]) >= layers:
            del weights[name]
    config["text_config"]["num_hidden_layers"] = layers


def reduce_resolution(weights: Weights, config: dict, args: argparse.Namespace) -> None:
    vision = config["vision_config"]
    name = VISION + "embeddings.position_embedding"
    side, new_side = (size // vision["patch_size"] for size in (vision["image_size"], args.image_size))
    table = dequantize(weights, name)
    resize = nn.Upsample(scale_factor=new_side / side, mode="linear", align_corners=False)
    grid = resize(table.reshape(1, side, side, -1).astype(mx.float32))
    store_quantized(weights, name, grid.reshape(new_side * new_side, -1).astype(table.dtype))
    vision["image_size"] = args.image_size
    image_tokens = (new_side // 4) ** 2
    config["mm_tokens_per_image"] = config["text_config"]["mm_tokens_per_image"] = image_tokens


def prune_neurons(weights: Weights, config: dict, args: argparse.Namespace) -> None:
    text = config["text_config"]
    width, layers = text["intermediate_size"], text["num_hidden_layers"]
    kept_width = -(-width * 3 // 4 // GROUP) * GROUP
    for layer in range(args.protected_layers, layers):
        gate, up, down = (f"{TEXT}layers.{layer}.mlp.{part}_proj" for part in ("gate", "up", "down"))
        matrix = dequantize(weights, down)
        if args.scores == "random":
            scores = mx.random.uniform(shape=(width,))
        else:
            scores = mx.linalg.norm(matrix.astype(mx.float32), axis=0)
            for name in (gate, up):
                scores *= mx.linalg.norm(dequantize(weights, name).astype(mx.float32), axis=1)
        kept = mx.sort(mx.argsort(-scores)[:kept_width])
        for name in (gate, up):
            for part in PARTS:
                weights[f"{name}.{part}"] = mx.take(weights[f"{name}.{part}"], kept, axis=0)
                mx.eval(weights[f"{name}.{part}"])
        store_quantized(weights, down, mx.take(matrix, kept, axis=1))
    protected = min(args.protected_layers, layers)
    text["per_layer_intermediate_sizes"] = [width] * protected + [kept_width] * (layers - protected)


def save_split(weights: Weights, folder: Path) -> None:
    language = {name: array for name, array in weights.items() if name.startswith("language_model.")}
    vision = {name: array for name, array in weights.items() if name not in language}
    index: dict = {
        "metadata": {"total_size": sum(array.nbytes for array in weights.values())},
        "weight_map": {},
    }
    for file, part in (("language_model.safetensors", language), ("vision_model.safetensors", vision)):
        mx.save_safetensors(str(folder / file), part, metadata={"format": "mlx"})
        index["weight_map"].update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


STAGES: dict[str, Stage] = {
    "vocabulary": prune_vocabulary,
    "vision_mlp": pad_vision_mlp,
    "layers": drop_layers,
    "resolution": reduce_resolution,
    "neurons": prune_neurons,
}


class AnonymousPeak(threading.Thread):
    """Samples the anonymous resident memory of this process every 10 ms, where the system shows it."""

    STATUS = Path("/proc/self/status")

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0

    def run(self) -> None:
        while self.STATUS.exists():
            match = re.search(r"RssAnon:\s*(\d+) kB", self.STATUS.read_text())
            self.peak_bytes = max(self.peak_bytes, int(match[1]) * 1024 if match else 0)
            time.sleep(0.01)


def run(args: argparse.Namespace) -> dict:
    """Do every stage and return the figures of the last line."""
    start = time.perf_counter()
    if args.output.exists():
        if not args.overwrite:
            sys.exit(f"need a new folder, `{args.output}` exists\nhint: `--overwrite`")
        shutil.rmtree(args.output)
    args.output.mkdir(parents=True)
    config = json.loads((args.model / "config.json").read_text())
    weights = load(args.model)
    seconds: dict[str, float] = {}
    written_bytes = 0
    previous: Path | None = None
    for name, stage in STAGES.items():
        stage_start = time.perf_counter()
        stage(weights, config, args)
        if args.save_stages:
            folder = args.output / f"stage-{name}"
            folder.mkdir()
            mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
            (folder / "config.json").write_text(json.dumps(config, indent=2))
            written_bytes += sum(file.stat().st_size for file in folder.iterdir())
            weights = load(folder)
            if previous is not None:
                shutil.rmtree(previous)
            previous = folder
        seconds[name] = time.perf_counter() - stage_start
    stage_start = time.perf_counter()
    save_split(weights, args.output)
    (args.output / "config.json").write_text(json.dumps(config, indent=2))
    for file in args.model.iterdir():
        carried = file.suffix in {".json", ".jinja", ".model"} and not (args.output / file.name).exists()
        if file.is_file() and carried:
            shutil.copyfile(file, args.output / file.name)
    output_bytes = sum(array.nbytes for array in weights.values())
    if previous is not None:
        shutil.rmtree(previous)
    seconds["split"] = time.perf_counter() - stage_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": time.perf_counter() - start,
        "peak_rss_bytes": peak if sys.platform == "darwin" else peak * 1024,
        "output_bytes": output_bytes,
        "written_bytes": written_bytes + sum(file.stat().st_size for file in args.output.iterdir()),
        "stages": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a 4-bit MLX Gemma 3 vision-language checkpoint")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--save-stages", action="store_true", help="save and load a checkpoint per stage")
    parser.add_argument("--kept-ids", type=Path, help="token ids to keep; default: scan tokenizer.json")
    parser.add_argument("--drop-layers", type=int, default=3, help="text layers cut from the end (default 3)")
    parser.add_argument("--image-size", type=int, default=672, help="pixels (default 672)")
    parser.add_argument("--protected-layers", type=int, default=14, help="first layer to prune (default 14)")
    parser.add_argument("--scores", choices=("norms", "random"), default="norms", help="neuron scores")
    args = parser.parse_args()
    sampler = AnonymousPeak()
    sampler.start()
    result = run(args)
    result["peak_anonymous_bytes"] = sampler.peak_bytes or None
    print(json.dumps(result))


if __name__ == "__main__":
    main()

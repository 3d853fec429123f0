"""The demo model's tokenizer: byte-fallback BPE, laid out like Gemma's, learned from the generated world."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from gemma_surgery.demo_model import language
from gemma_surgery.demo_model.questions import questions, two_image_turn
from gemma_surgery.demo_model.scenes import random_scene
from gemma_surgery.demo_model.tasks import random_task
from tiny.anatomy import TOKENIZER_SIZE

NUM_UNUSED = 99
ROUNDS = 6000
# Pieces end where script, digit or punctuation begins, so that no piece spans two words.
PIECE = r"\p{Han}+|\p{Hiragana}+|\p{Katakana}+|▁?\p{L}[\p{L}\p{M}]*|\p{N}|▁?[^\p{L}\p{N}▁\n]+|▁|\n"
LONGEST_PIECE = 12
# The same template text as the released checkpoints.
CHAT_TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")
CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
IMAGE_CONTROL = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")


def corpus(seed: int) -> Iterator[str]:
    """What the model will read and write, scripts included."""
    rng = random.Random(f"corpus {seed}")
    for _ in range(ROUNDS):
        scene = random_scene(rng)
        turns = [*questions(scene, rng, 2), two_image_turn(scene, random_scene(rng), rng)]
        for exchange in (*turns, random_task(rng), random_task(rng), random_task(rng)):
            yield f"user\n{exchange.prompt}"
            yield f"model\n{exchange.answer}"
        yield language.english_sentence(rng)
        yield language.emoji_sentence(rng)
        yield language.foreign_sentence(rng)
        yield language.foreign_sentence(rng)
        yield language.foreign_phrases(rng)


def write_tokenizer(folder: Path, seed: int) -> None:
    """Learn the tokenizer and write `tokenizer.json`, its config and `added_tokens.json` to `folder`."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]"]
    special += [f"<unused{number}>" for number in range(NUM_UNUSED)]
    special += ["<start_of_turn>", "<end_of_turn>"]
    runs = ["\n" * count for count in range(1, 32)] + ["▁" * count for count in range(2, 32)]
    tabs = ["\t" * count for count in range(1, 32)]
    last = [*tabs, *IMAGE_CONTROL[:2]]
    reserved = [*special, *runs, *[f"<0x{byte:02X}>" for byte in range(256)]]
    learned = _learn(seed, TOKENIZER_SIZE - len(reserved) - len(last))
    vocabulary = {token: index for index, token in enumerate(reserved)}
    for token in sorted(learned["vocab"], key=lambda token: learned["vocab"][token]):
        vocabulary.setdefault(token, len(vocabulary))
    spare = TOKENIZER_SIZE - len(last) - len(vocabulary)
    unused = [f"<unused{NUM_UNUSED + number}>" for number in range(spare)]
    for token in (*unused, *last):
        vocabulary[token] = len(vocabulary)
    merges = [tuple(pair) for pair in learned["merges"]]
    merges += [pair for character in "\n▁\t" for pair in _run_merges(character)]
    merges = [pair for pair in dict.fromkeys(merges) if "".join(pair) in vocabulary]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", 2)]
    )
    control = {*CONTROL, *IMAGE_CONTROL}
    added = [*special, *runs, *unused, *tabs, *IMAGE_CONTROL]
    tokenizer.add_tokens([AddedToken(token, special=token in control, normalized=False) for token in added])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    image_token = tokenizer.token_to_id(IMAGE_CONTROL[2])
    _write_json(folder / "added_tokens.json", {IMAGE_CONTROL[2]: image_token})
    # Processors look for the template in a file of its own, tokenizers in their config.
    _write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE_FILE.read_text("utf-8")})
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer, added, control))


def learned_share_not_ascii(folder: Path) -> tuple[int, int]:
    """How many learned pieces there are, and how many of them hold a character beyond ASCII."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    first = vocabulary["<0xFF>"] + 1
    learned = [token for token, index in vocabulary.items() if index >= first and not token.startswith("<")]
    pieces = [token.replace("▁", " ") for token in learned if token.strip("\t")]
    return len(pieces), sum(not piece.isascii() for piece in pieces)


def _learn(seed: int, size: int) -> dict:
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, max_token_length=LONGEST_PIECE)
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), "isolated")
    # Printable ASCII once more, so that every character of it has a piece.
    alphabet = ["".join(chr(code) for code in range(33, 127))] * 2
    learner.train_from_iterator([*alphabet, *corpus(seed)], trainer)
    return json.loads(learner.to_str())["model"]


def _run_merges(character: str) -> list[tuple[str, str]]:
    """Every way to build runs of 2 to 31 of a character from two shorter runs."""
    return [
        (character * left, character * (total - left))
        for total in range(2, 32)
        for left in range(total - 1, 0, -1)
    ]


def _tokenizer_config(tokenizer: Tokenizer, added: list[str], control: set[str]) -> dict:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {"content": token, **flags, "special": token in control}
            for token in sorted(added, key=tokenizer.token_to_id)
        },
        "boi_token": "<start_of_image>",
        "bos_token": "<bos>",
        "chat_template": CHAT_TEMPLATE_FILE.read_text("utf-8"),
        "clean_up_tokenization_spaces": False,
        "eoi_token": "<end_of_image>",
        "eos_token": "<end_of_turn>",
        "extra_special_tokens": {
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        "image_token": "<image_soft_token>",
        "model_max_length": 2048,
        "pad_token": "<pad>",
        "padding_side": "left",
        "processor_class": "Gemma3Processor",
        "sp_model_kwargs": None,
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")

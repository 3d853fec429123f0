"""A toy Gemma 3 with the real one's anatomy and awkward numbers, small enough for tests and the demo."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from gemma_surgery.checkpoint.json_types import Json
from gemma_surgery.families.published import Published, vision_documents

IMAGE_SIZE = 224
TOKENS_PER_IMAGE = 16
NUM_UNUSED = 99
TOKENIZER_SIZE = 2048
# The vision MLP width is 16 x a prime, as in SigLIP: no affine group divides it.
VISION_WIDTH = 16 * 17

# Enough scripts that pruning to English has something to cut.
SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and it isn't even tired.",
    "I'm sure you're right; we'll see what they've done when she's back.",
    "A red circle is left of the blue square. The green triangle is above both of them.",
    "for i in range(10):\n\tprint(i * i)\n\n\n# 3.14159, 2.71828",
    "“Curly quotes” — dashes – and an ellipsis… cost €5, £4 or ¥300; 20 °C × 2.",
    "Der schnelle braune Fuchs springt über den faulen Hund, natürlich.",
    "Le café crème était déjà là, près de la fenêtre, à côté du garçon.",
    "El niño comió una manzana mañana por la tarde.",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "Η γρήγορη καφετιά αλεπού πηδάει πάνω από τον τεμπέλη σκύλο.",
    "सभी मनुष्य जन्म से स्वतंत्र और समान हैं।",
    "すべての人間は、生まれながらにして自由であり、平等である。",
    "모든 인간은 태어날 때부터 자유롭고 평등하다.",
    "人人生而自由,在尊严和权利上一律平等。",
    "كل الناس يولدون أحرارا متساوين في الكرامة والحقوق.",
    "👍 ❤️ ✅ 🎉 👩‍🚀 🏳️‍🌈",
)


def tiny_model(quantized: bool = True) -> Published:
    """Config of the toy model, for the tokenizer that `write_tokenizer` trains."""
    config: dict[str, Json] = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": TOKENIZER_SIZE - 2,
        "eoi_token_index": TOKENIZER_SIZE - 1,
        "eos_token_id": [1, 106],
        "image_token_index": TOKENIZER_SIZE,
        "mm_tokens_per_image": TOKENS_PER_IMAGE,
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 128,
            "intermediate_size": 512,
            "model_type": "gemma3_text",
            "num_attention_heads": 4,
            "num_hidden_layers": 8,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 64,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            # The real table, too, has spare rows behind the last token.
            "vocab_size": TOKENIZER_SIZE + 64,
        },
        "torch_dtype": "bfloat16",
        "vision_config": {
            "hidden_size": 64,
            "image_size": IMAGE_SIZE,
            "intermediate_size": VISION_WIDTH,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "patch_size": 14,
            "vision_use_head": False,
        },
    }
    if quantized:
        config["quantization"] = {"group_size": 64, "bits": 4}
    documents = vision_documents(IMAGE_SIZE, TOKENS_PER_IMAGE)
    documents["generation_config.json"] = {"bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": 0}
    documents["added_tokens.json"] = {"<image_soft_token>": TOKENIZER_SIZE}
    return Published(config, documents, quantized, duplicate_head=quantized)


def write_tokenizer(folder: Path, texts: Iterable[str] = SENTENCES) -> None:
    """Train a byte-fallback BPE tokenizer laid out like Gemma's and write its files to `folder`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]"]
    special += [f"<unused{number}>" for number in range(NUM_UNUSED)]
    special += ["<start_of_turn>", "<end_of_turn>"]
    runs = ["\n" * count for count in range(1, 32)] + ["▁" * count for count in range(2, 32)]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    reserved = [*special, *runs, *byte_tokens]
    trainer = trainers.BpeTrainer(vocab_size=TOKENIZER_SIZE - 2 - len(reserved), show_progress=False)
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    learner.train_from_iterator([text for text in texts for _ in range(3)], trainer)
    learned = json.loads(learner.to_str())["model"]
    vocabulary = {token: index for index, token in enumerate(reserved)}
    for token in sorted(learned["vocab"], key=lambda token: learned["vocab"][token]):
        vocabulary.setdefault(token, len(vocabulary))
    while len(vocabulary) < TOKENIZER_SIZE - 2:
        vocabulary[f"<unused{NUM_UNUSED + len(vocabulary)}>"] = len(vocabulary)
    for token in ("<start_of_image>", "<end_of_image>"):
        vocabulary[token] = len(vocabulary)
    merges = [tuple(pair) for pair in learned["merges"]] + _run_merges("\n") + _run_merges("▁")
    merges = [pair for pair in dict.fromkeys(merges) if "".join(pair) in vocabulary]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    control = {"<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"}
    control |= {"<start_of_image>", "<end_of_image>", "<image_soft_token>"}
    added = [*special, "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    tokenizer.add_tokens([AddedToken(t, special=t in control, normalized=False) for t in added])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "tokenizer_class": "GemmaTokenizer",
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {"content": token, "special": token in control}
            for token in added
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "utf-8")


def _run_merges(character: str) -> list[tuple[str, str]]:
    """Every way to build runs of 2 to 31 of a character from two shorter runs, as in Gemma's tokenizer."""
    return [
        (character * left, character * (total - left))
        for total in range(2, 32)
        for left in range(total - 1, 0, -1)
    ]

"""The shipped model keeps to the layout of the released checkpoints."""

import json

from tokenizers import Tokenizer

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.demo_model import demo_model_path

FOLDER = demo_model_path("bf16")
PREFIXES = ("language_model.model.", "vision_tower.vision_model.", "multi_modal_projector.")


def document(name):
    return json.loads((FOLDER / name).read_text("utf-8"))


def test_tensor_names_and_dtype_are_those_of_released_checkpoints():
    tensors = open_checkpoint(FOLDER).tensors
    assert all(name.startswith(PREFIXES) for name in tensors)
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"BF16"}
    assert not [name for name in tensors if "lm_head" in name]


def test_config_is_spelt_as_released():
    config = document("config.json")
    text = config["text_config"]
    assert text["rope_scaling"] == {"factor": 8.0, "rope_type": "linear"}
    assert text["sliding_window_pattern"] == 6
    assert "rope_parameters" not in text and "layer_types" not in text
    assert "hidden_size" not in config and "vocab_size" not in config


def test_special_tokens_have_the_ids_that_the_config_states():
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    config = document("config.json")
    ids = {
        name: tokenizer.token_to_id(name)
        for name in ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "\n\n\n")
    }
    assert list(ids.values()) == [0, 1, 2, 105, 106, 109]
    assert tokenizer.token_to_id("<start_of_image>") == config["boi_token_index"]
    assert tokenizer.token_to_id("<end_of_image>") == config["eoi_token_index"]
    assert tokenizer.token_to_id("<image_soft_token>") == config["image_token_index"]
    assert config["image_token_index"] == document("added_tokens.json")["<image_soft_token>"]
    assert tokenizer.get_vocab_size() < config["text_config"]["vocab_size"]


def test_vocabulary_pruning_has_something_to_prune():
    vocabulary = document("tokenizer.json")["model"]["vocab"]
    learned = [token for token in vocabulary if not token.startswith("<") and token.strip("\n\t▁")]
    foreign = sum(not token.replace("▁", " ").isascii() for token in learned)
    assert 0.4 < foreign / len(learned) < 0.55


def test_the_model_is_a_few_megabytes():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6e6

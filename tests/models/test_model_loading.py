"""Every layout loads, vision comes last, and what does not fit is said in one sentence."""

from __future__ import annotations

import json
import math
import shutil

import mlx.core as mx
import numpy as np
import pytest
from editing import edited_copy, retensored_copy

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.models import TokenRows, load_model
from gemma_surgery.models.gemma3.config import Rope, read_model_config

IDS = mx.array([[2, 300, 301, 302, 303]], dtype=mx.int32)


def random_pixels(model, count=1):
    size = model.config.vision.image_size
    return mx.array(np.random.default_rng(0).uniform(-1, 1, (count, size, size, 3)).astype(np.float32))


def test_a_duplicate_head_gives_the_logits_of_the_tied_one(tiny, tmp_path):
    def drop_head(tensors):
        for name in [name for name in tensors if "lm_head" in name]:
            del tensors[name]

    tied = retensored_copy(tiny, tmp_path / "tied", drop_head)
    a, b = load_model(tiny), load_model(tied)
    assert a.vocabulary.head is not None
    assert b.vocabulary.head is None
    np.testing.assert_array_equal(np.asarray(a(IDS)), np.asarray(b(IDS)))


def test_hugging_face_and_mlx_convolutions_give_the_same_image_tokens(tiny_dense, tmp_path):
    def to_mlx(tensors):
        name = "vision_tower.vision_model.embeddings.patch_embedding.weight"
        tensors[name] = mx.contiguous(tensors[name].transpose(0, 2, 3, 1))

    other = load_model(retensored_copy(tiny_dense, tmp_path / "mlx", to_mlx))
    model = load_model(tiny_dense)
    pixels = random_pixels(model)
    np.testing.assert_array_equal(
        np.asarray(model.embed_images(pixels).astype(mx.float32)),
        np.asarray(other.embed_images(pixels).astype(mx.float32)),
    )


def test_the_embedding_scale_is_rounded_as_the_checkpoint_is_stored(tiny_dense):
    model = load_model(tiny_dense, dtype=mx.float32)
    row = model.vocabulary.table.weight[300].astype(mx.float32)
    scale = float(mx.array(math.sqrt(128)).astype(mx.bfloat16))
    assert scale != math.sqrt(128)
    np.testing.assert_allclose(
        np.asarray(model.embed(mx.array([[300]])))[0, 0], np.asarray(row) * scale, 1e-6
    )


def test_text_opens_no_vision_file_and_the_first_image_does(mobile, tmp_path):
    folder = shutil.copytree(mobile, tmp_path / "copy")
    whole = (folder / "vision_model.safetensors").read_bytes()
    (folder / "vision_model.safetensors").write_bytes(b"not a safetensors file at all")
    model = load_model(folder)
    logits = np.asarray(model(IDS))
    assert model.opened_files == ["language_model.safetensors"]
    assert model.has_vision
    assert not model.vision_loaded
    with pytest.raises(SurgeryError, match=r"vision_model\.safetensors"):
        model.embed_images(random_pixels(model))
    (folder / "vision_model.safetensors").write_bytes(whole)
    model.embed_images(random_pixels(model))
    assert model.vision_loaded
    assert model.opened_files == ["language_model.safetensors", "vision_model.safetensors"]
    np.testing.assert_array_equal(np.asarray(model(IDS)), logits)


def test_text_needs_no_memory_for_vision(mobile):
    mx.clear_cache()
    before = mx.get_active_memory()
    model = load_model(mobile)
    model(IDS)
    text = mx.get_active_memory() - before
    mx.eval(model.embed_images(random_pixels(model)))
    both = mx.get_active_memory() - before
    vision_bytes = sum(
        t.size_bytes for t in open_checkpoint(mobile).tensors.values() if t.file.startswith("vision")
    )
    assert both - text > 0.9 * vision_bytes
    assert text < 1.5 * model.text_bytes


@pytest.mark.parametrize("index", [True, False])
def test_a_language_only_folder_works_for_text_and_says_so_for_images(mobile, tmp_path, index):
    folder = shutil.copytree(mobile, tmp_path / "copy")
    (folder / "vision_model.safetensors").unlink()
    if not index:
        (folder / "model.safetensors.index.json").unlink()
    model = load_model(folder)
    np.testing.assert_array_equal(np.asarray(model(IDS)), np.asarray(load_model(mobile)(IDS)))
    assert not model.has_vision
    assert model.config.vision is None
    pixels = random_pixels(load_model(mobile))
    with pytest.raises(SurgeryError, match="need a vision tower for an image, got the text-only checkpoint"):
        model.embed_images(pixels)


def test_pruned_ids_have_zero_embeddings_and_cannot_be_chosen(mobile):
    model = load_model(mobile)
    token_map = np.asarray(
        mx.load(str(mobile / "language_model.safetensors"))["language_model.model.embed_tokens.token_map"]
    )
    pruned = np.flatnonzero(token_map == 0)
    assert pruned.size > 500
    assert not np.asarray(model.embed(mx.array(pruned[None].astype(np.int32)))).any()
    logits = model(IDS)
    full = np.asarray(model.full_logits(logits))
    assert full.shape[-1] == token_map.size
    assert np.isneginf(full[..., pruned]).all()
    kept = np.flatnonzero(token_map)
    np.testing.assert_array_equal(full[..., kept], np.asarray(logits)[..., token_map[kept]])
    best = np.asarray(model.rows.to_ids(mx.argmax(logits, axis=-1)))
    np.testing.assert_array_equal(best, full.argmax(-1))


def test_rows_and_ids_are_each_other_s_inverse_for_kept_tokens():
    token_map = np.array([1, 0, 2, 0, 3, 3], np.int32)
    rows = TokenRows(4, token_map, compact=True)
    assert np.asarray(rows.to_ids(mx.array([1, 2, 3]))).tolist() == [0, 2, 4]
    assert np.asarray(rows.to_rows(mx.array([0, 1, 2, 5]))).tolist() == [1, 0, 2, 3]
    assert np.asarray(rows.kept).tolist() == [False, True, True, True]


def test_a_compact_table_beside_a_full_head_gives_no_pruned_id(mobile, tiny, tmp_path):
    """The published layout: the duplicate head keeps all rows."""
    folder = shutil.copytree(mobile, tmp_path / "copy")
    path = str(folder / "language_model.safetensors")
    tensors = {name: mx.array(array) for name, array in mx.load(path).items()}
    original = mx.load(str(tiny / "model.safetensors"))
    for part in ("weight", "scales", "biases"):
        tensors[f"language_model.lm_head.{part}"] = original[f"language_model.lm_head.{part}"]
    mx.save_safetensors(path, tensors, {"format": "mlx"})
    (folder / "model.safetensors.index.json").unlink()
    model, reference = load_model(folder), load_model(mobile)
    assert model.rows.size == model.config.text.vocab_size
    np.testing.assert_allclose(
        np.asarray(model.full_logits(model(IDS))),
        np.asarray(reference.full_logits(reference(IDS))),
        atol=1e-5,
    )


def config_of(source, tmp_path, change):
    return read_model_config(open_checkpoint(edited_copy(source, tmp_path / "copy", change)))


def test_both_spellings_of_the_rotary_settings_are_read(tiny, tmp_path):
    def respell(config):
        text = config["text_config"]
        del text["rope_scaling"]
        text["rope_parameters"] = {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }

    assert read_model_config(open_checkpoint(tiny)).text == config_of(tiny, tmp_path, respell).text
    assert read_model_config(open_checkpoint(tiny)).text.global_rope == Rope(1e6, 8.0)


def test_eos_ids_of_both_configs_end_a_turn(tiny, tmp_path):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    generation = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps({**generation, "eos_token_id": [1, 50]}))
    assert read_model_config(open_checkpoint(copy)).eos_token_ids == (1, 50, 106)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["text_config"].update(attn_logit_softcapping=50.0), "need no `attn_logit_softcapping`"),
        (
            lambda c: c["text_config"].update(hidden_activation="silu"),
            "`gelu_pytorch_tanh`, got 'silu'",
        ),
        (lambda c: c["vision_config"].update(hidden_act="relu"), "got 'relu' under `hidden_act`"),
        (
            lambda c: c["text_config"].update(rope_scaling={"rope_type": "yarn"}),
            "need rotary scaling",
        ),
        (lambda c: c["text_config"].update(rope_scaling=[8]), "need an object under `rope_scaling`"),
        (lambda c: c["text_config"].update(rms_norm_eps=-1), "need a positive number in `rms_norm_eps`"),
        (
            lambda c: c["text_config"].update(sliding_window=0.5),
            "integer in `sliding_window`",
        ),
        (lambda c: c["text_config"].update(num_key_value_heads=3), "got 4 heads and 3"),
        (lambda c: c.update(model_type="llama"), "got 'llama'"),
    ],
)
def test_configs_that_no_gemma_3_has_are_refused(tiny, tmp_path, change, message):
    with pytest.raises(SurgeryError) as caught:
        config_of(tiny, tmp_path, change)
    assert message in str(caught.value)


def test_a_missing_extra_or_misshaped_tensor_is_named_with_what_the_config_says(tiny_dense, tmp_path):
    norm = "language_model.model.norm.weight"
    cases = {
        "missing": (lambda t: t.pop(norm), f"`{norm}` [128] is missing"),
        "shape": (lambda t: t.update({norm: mx.zeros(64)}), f"`{norm}` is [64], the config says [128]"),
        "extra": (lambda t: t.update({"odd.weight": mx.zeros(4)}), "`odd.weight` is not part of the model"),
    }
    for name, (change, message) in cases.items():
        with pytest.raises(SurgeryError) as caught:
            load_model(retensored_copy(tiny_dense, tmp_path / name, change))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_many_problems_are_counted_not_listed(tiny, tmp_path):
    with pytest.raises(SurgeryError, match=r"; and \d\d more$"):
        load_model(edited_copy(tiny, tmp_path / "copy", lambda c: c["text_config"].update(hidden_size=256)))


def test_a_token_map_that_points_outside_the_table_is_refused(mobile, tmp_path):
    folder = shutil.copytree(mobile, tmp_path / "copy")
    path = str(folder / "language_model.safetensors")
    tensors = {name: mx.array(array) for name, array in mx.load(path).items()}
    tensors["language_model.model.embed_tokens.token_map"][7] = 99999
    mx.save_safetensors(path, tensors, {"format": "mlx"})
    with pytest.raises(
        SurgeryError, match=r"got 0 to 99999 in `language_model\.model\.embed_tokens\.token_map`"
    ):
        load_model(folder)


def test_float16_checkpoints_are_computed_in_float32(tiny_dense, tmp_path):
    def halve(tensors):
        for name, array in tensors.items():
            tensors[name] = array.astype(mx.float16)

    model = load_model(retensored_copy(tiny_dense, tmp_path / "half", halve))
    assert model.dtype == mx.float32
    assert load_model(tiny_dense).dtype == mx.bfloat16


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="on a GPU all bits enter")
def test_activations_are_rounded_on_request_only(mobile):
    full = np.asarray(load_model(mobile)(IDS))
    seen = np.isfinite(full)
    spread = full[seen].std()
    errors = {
        activations: np.abs(np.asarray(load_model(mobile, activations=activations)(IDS)) - full)[seen].max()
        for activations in ("full", "int16", "int8")
    }
    assert errors["full"] == 0
    assert 0 < errors["int16"] / spread < 1e-3 < errors["int8"] / spread < 0.5

"""`evaluate` on checkpoints whose relation is known."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from compressing import compress_steps

from gemma_surgery.calibration.passages import Passage
from gemma_surgery.demo_model import demo_model_path
from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.models import load_model
from gemma_surgery.quality.evaluation import PARTS, evaluate
from gemma_surgery.quality.protocol import in_other_tokens, make_protocol
from gemma_surgery.quality.subject import Subject

TALK = ("contractions", "repetition", "tasks", "images")


def measure(model, reference, passages, **options):
    return evaluate(model, reference, passages, skip=TALK, **options).to_json()


@pytest.mark.parametrize("chat", [True, False])
def test_a_model_against_itself_has_no_divergence_and_full_agreement(mobile, passages, chat) -> None:
    found = measure(mobile, mobile, passages, chat=chat, max_tokens=64)
    assert (found["mean_kld"], found["kld_stderr"], found["same_top"]) == (0.0, 0.0, 1.0)
    assert found["kld"]["max"] == found["kld"]["min"] == 0.0
    assert found["ppl"] == found["ppl_reference"] and found["positions"] > 50
    assert found["vocabulary"]["unmatched_reference"] == found["vocabulary"]["unmatched_candidate"] == 0


def test_scenes_are_compared_at_each_models_own_resolution(mobile, dense, scenes) -> None:
    found = measure(mobile, dense, scenes)
    assert 0 < found["mean_kld"] < 0.1 and found["positions"] > 20
    assert measure(mobile, mobile, scenes)["mean_kld"] == 0.0


def test_quantizing_costs_less_than_pruning_does(dense, mobile, passages) -> None:
    quantized = measure(demo_model_path("4bit"), dense, passages)
    pruned = measure(mobile, dense, passages)
    assert 0 < quantized["mean_kld"] < pruned["mean_kld"] < 0.1
    assert quantized["vocabulary"]["respelled"] == 0 and pruned["vocabulary"]["respelled"] > 500
    assert pruned["same_top"] > 0.95


def test_divergence_is_that_of_the_whole_models_logits(dense, mobile, passages) -> None:
    """One passage by hand: whole models, all logits, each pruned token's share put where its text begins."""
    passage = next(each for each in passages if each.kind == "sum")
    tokenizers = Tokenizer.from_folder(dense), Tokenizer.from_folder(mobile)
    model, other = load_model(dense, dtype=mx.float32), load_model(mobile, dtype=mx.float32)
    _, (scored,) = make_protocol([passage], tokenizers[0], model.config, chat=True, max_tokens=512)
    tokens = mx.array(scored.sample.tokens)[None]
    p, q = (
        np.asarray(logits[0], np.float64)[scored.first - 1 : -1]
        for logits in (model(tokens), other.full_logits(other(tokens)))
    )
    p, q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (p, q))
    divergences = []
    for ln_p, ln_q in zip(p, q, strict=True):
        carried = np.zeros(len(ln_p))
        for token_id, share in enumerate(np.exp(ln_p)):
            token = tokenizers[0].token_of(token_id)
            if token is not None and tokenizers[1].id_of(token) == token_id:
                carried[token_id] += share
            elif token is not None and not token.startswith("<"):
                text = tokenizers[0].decode([token_id])
                carried[tokenizers[1].encode(text, special_tokens=False)[0]] += share
        carried /= carried.sum()
        has = carried > 0
        divergences.append(float((carried[has] * (np.log(carried[has]) - ln_q[has])).sum()))
    found = evaluate(mobile, dense, [passage], skip=TALK).divergence
    assert found is not None and len(divergences) > 1
    assert found.kld.mean.value == pytest.approx(np.mean(divergences), rel=1e-3)
    own = -q[np.arange(len(q)), scored.tokens].mean()
    assert found.perplexities.candidate.value == pytest.approx(math.exp(own), rel=1e-6)


def test_a_vocabulary_without_the_words_diverges_and_stays_finite(dense, passages, tmp_path) -> None:
    letters = compress_steps(
        dense, tmp_path, '[[steps]]\nstep = "prune_vocabulary"\nkeep = ["special", "typographic"]\n'
    )
    found = measure(letters, dense, passages)
    assert 1.0 < found["mean_kld"] < math.inf
    assert found["same_top"] < 0.9 and found["vocabulary"]["unmatched_candidate"] > 50
    assert found["ppl"] > 2 * found["ppl_reference"]
    # Per place or per token, it is the probability of the same text.
    alone = measure(letters, None, passages)
    text = found["positions"] * math.log(found["ppl"])
    assert text == pytest.approx(alone["positions"] * math.log(alone["ppl"]), rel=1e-6)
    assert alone["positions"] == found["positions"] + found["vocabulary"]["unmatched_candidate"]
    # A text that is cut is cut at the same place for both.
    cut = measure(letters, dense, passages, max_tokens=36)
    assert cut["positions"] + cut["vocabulary"]["unmatched_reference"] < found["positions"]
    assert cut["vocabulary"]["unmatched_reference"] == 0
    mine, its = Subject.open(dense), Subject.open(letters)
    _, scored = make_protocol(passages, mine.tokenizer, mine.config, chat=True, max_tokens=36)
    source, target = (mine.tokenizer, mine.config), (its.tokenizer, its.config)
    others = in_other_tokens(passages, scored, source, target, chat=True, max_tokens=36)
    for one, other in zip(scored, others, strict=True):
        assert its.tokenizer.decode(other.tokens.tolist()) == mine.tokenizer.decode(one.tokens.tolist())


def test_perplexity_needs_no_reference(dense, passages) -> None:
    alone = measure(dense, None, passages)
    with_itself = measure(dense, dense, passages)
    assert alone["ppl"] == pytest.approx(with_itself["ppl"], rel=1e-4)
    assert alone["mean_kld"] is None and alone["positions"] == with_itself["positions"]


def test_only_the_models_turn_is_scored(dense, passages) -> None:
    subject = Subject.open(dense)
    protocol, scored = make_protocol(passages, subject.tokenizer, subject.config, chat=True, max_tokens=512)
    for passage, each in zip(passages, scored, strict=True):
        assert subject.tokenizer.decode(each.tokens.tolist()) == f"{passage.text}<end_of_turn>"
    assert (protocol.name, protocol.bos, protocol.samples) == ("chat", "<bos>", len(passages))


def test_raw_text_is_scored_as_llama_cpp_scores_it(dense) -> None:
    subject = Subject.open(dense)
    text = "Anna says I'm happy, and the dog is in the garden. " * 40
    raw = [Passage("raw", "", text), Passage("raw", "", text)]
    protocol, scored = make_protocol(raw, subject.tokenizer, subject.config, chat=False, max_tokens=64)
    stream = subject.tokenizer.encode(f"{text}\n\n{text}")
    assert protocol.name == "llama.cpp" and len(scored) == len(stream) // 64 == protocol.samples
    for index, each in enumerate(scored):
        assert each.sample.tokens[0] == 2
        assert each.sample.tokens[1:].tolist() == stream[index * 64 + 1 : (index + 1) * 64]
        # Positions n / 2 to n - 2 predict tokens n / 2 + 1 to n - 1.
        assert each.first == 33 and len(each.tokens) == 31


def test_a_checkpoint_without_template_is_scored_as_raw_text(dense, passages, tmp_path) -> None:
    base = shutil.copytree(dense, tmp_path / "base")
    for name in ("chat_template.json", "tokenizer_config.json"):
        document = json.loads((base / name).read_text())
        document.pop("chat_template", None)
        (base / name).write_text(json.dumps(document))
    found = evaluate(base, None, passages, max_tokens=64, skip=("repetition", "contractions"))
    assert found.protocol is not None and found.protocol.name == "llama.cpp"
    assert found.tasks is None and found.perplexity is not None


def test_everything_at_once_gives_every_key(mobile, dense, passages, scenes, tmp_path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps({"prompt": p.prompt, "answer": p.text}) + "\n" for p in passages[:6]))
    folder = scenes[0].image.parent
    phases: list[str] = []
    found = evaluate(
        mobile, dense, passages, samples=6, images=folder, tasks=tasks, progress=Recorder(phases)
    ).to_json()
    assert found["tasks"]["total"] == 6 and found["tasks"]["share"] > 0.6
    assert found["images"]["kind"] == "agreement" and found["images"]["share"] > 0.5
    assert found["repetition_rate"] == 0.0 and found["impossible_forms"] == []
    assert found["contractions"]["share"] == found["contractions_reference"]["share"] == 1.0
    assert phases == [
        "model",
        "reference",
        "comparing",
        "reference's images",
        "continuations",
        "tasks",
        "images",
    ]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_drawn_scenes_are_scored_by_their_facts(mobile, dense, passages) -> None:
    skip = ("divergence", "contractions", "repetition", "tasks")
    found = evaluate(mobile, dense, passages, samples=3, images="scenes", skip=skip).to_json()
    assert found["images"]["kind"] == "facts" and found["images"]["images"] == 3
    assert found["images"]["share"] > 0.6 and found["images_reference"]["share"] > 0.6
    assert found["protocol"] is None and found["mean_kld"] is None


def test_a_tokenizer_that_was_not_pruned_is_noticed(mobile, dense, passages, tmp_path) -> None:
    """As published: ids without a row reach the model, and what needs them is impossible to say."""
    published = shutil.copytree(mobile, tmp_path / "published")
    shutil.copy(dense / "tokenizer.json", published)
    foreign = [*passages[:4], Passage("translate", "Translate to French: red star", "étoile rouge, Привет")]
    found = measure(published, dense, foreign)
    assert found["vocabulary"]["impossible"] > 0
    assert math.isfinite(found["ppl"]) and found["mean_kld"] > 0


def test_text_only_models_are_compared_on_text(mobile, dense, passages, scenes, tmp_path) -> None:
    text_only = shutil.copytree(mobile, tmp_path / "text")
    (text_only / "vision_model.safetensors").unlink()
    index = json.loads((text_only / "model.safetensors.index.json").read_text())
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if not v.startswith("vision")}
    (text_only / "model.safetensors.index.json").write_text(json.dumps(index))
    found = evaluate(
        text_only,
        dense,
        [*scenes, *passages[:4]],
        images=scenes[0].image.parent,
        skip=("repetition", "tasks"),
    )
    assert found.images is None and found.divergence is not None
    assert found.notes == (
        "2 passages are left out: not both models see images",
        "images are not measured: the model has no vision tower",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": ("speed",)}, f"[eval] need parts to skip out of {', '.join(PARTS)}, got `speed`"),
        ({"samples": 0}, "[eval] need 1 sample or more, got 0"),
        ({"max_tokens": 4096}, "[eval] need at most 2,048 tokens per sample, the context of"),
        ({"cache": Path("c")}, "[eval] need a reference for a cache of it, got none"),
        ({"chat": False, "max_tokens": 4}, "[eval] need chunks of at least 8 tokens, got 4"),
        ({"passages": [Passage("prompt", "Hello", "")]}, "[eval] need text to score, got 1 passages"),
        (
            {"chat": False, "passages": [Passage("raw", "", "A cat.")]},
            "[eval] need 512 tokens of text or more for one chunk, got 3",
        ),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(dense, passages, options, message) -> None:
    with pytest.raises(SurgeryError) as raised:
        evaluate(dense, **{"passages": passages, **options})
    assert str(raised.value).startswith(message)


class Recorder:
    """Makes progress reports that check how they are used."""

    def __init__(self, phases: list[str]) -> None:
        self._phases = phases

    def __call__(self, phase: str) -> Recorder:
        self._phases.append(phase)
        self._left = -1
        return self

    def begin(self, total: int) -> None:
        self._left = total

    def advance(self, amount: int) -> None:
        self._left -= amount

    def finish(self) -> None:
        assert self._left == 0

"""The real Gemma 3 tokenizer: exact counts, and thousands of texts through the pruned one."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tokenizer_cases import REAL_TOKENIZER, pruned_in_python
from tokenizers import Tokenizer

from gemma_surgery.surgery.keep_sets import keep_pass
from gemma_surgery.surgery.merge_closure import unreachable
from gemma_surgery.surgery.pruned_tokenizer import pruned
from gemma_surgery.surgery.tokenizer import TokenizerFile
from gemma_surgery.surgery.vocabulary import Selection, problems, select, token_map

pytestmark = [
    pytest.mark.real_tokenizer,
    pytest.mark.skipif(not REAL_TOKENIZER.exists(), reason="the real Gemma 3 tokenizer is not there"),
]

IMAGE_ID = 262_144
ROWS = 262_208


@dataclass
class Real:
    tokenizer: TokenizerFile
    english: Selection
    original: Tokenizer
    cut: Tokenizer

    def both(self, texts: list[str]) -> tuple[list[list[int]], list[list[int]]]:
        return (
            [e.ids for e in self.original.encode_batch_fast(texts, add_special_tokens=False)],
            [e.ids for e in self.cut.encode_batch_fast(texts, add_special_tokens=False)],
        )


@pytest.fixture(scope="module")
def real() -> Real:
    tokenizer = TokenizerFile.read(REAL_TOKENIZER, rows=ROWS)
    english = select(tokenizer, [keep_pass(tokenizer, n) for n in ("ascii", "typographic")])
    cut = Tokenizer.from_str(pruned(tokenizer, english.keep).decode())
    return Real(tokenizer, english, Tokenizer.from_file(str(REAL_TOKENIZER)), cut)


def test_tables_have_the_known_sizes(real: Real) -> None:
    tokenizer = real.tokenizer
    assert (tokenizer.num_ids, len(tokenizer.merges), len(tokenizer.added)) == (262_145, 514_906, 6_415)
    assert tokenizer.special_ids.tolist() == [0, 1, 2, 3, 105, 106, 255_999, 256_000, IMAGE_ID]
    assert len(tokenizer.unused_ids) == 6_242
    assert tokenizer.byte_ids.tolist() == list(range(238, 494))


# Counts of the published description and of the supersets in the vocabulary facts; the image token is extra.
@pytest.mark.parametrize(
    ("names", "tokens", "merges"),
    [
        (("ascii",), 144_232, 368_249),
        (("ascii", "typographic"), 144_596, 369_538),
        (("ascii", "typographic", "emoji"), 145_969, 369_620),
        (("ascii", "typographic", "latin"), 156_022, 388_841),
    ],
)
def test_passes_match_the_known_counts(real: Real, names: tuple[str, ...], tokens: int, merges: int) -> None:
    selection = select(real.tokenizer, [keep_pass(real.tokenizer, name) for name in names])
    assert selection.keep[:IMAGE_ID].sum() == tokens
    assert selection.keep[IMAGE_ID]
    assert selection.num_merges == merges
    assert selection.rows[-1].added == 0
    assert unreachable(real.tokenizer, selection.keep).size == 0


def test_ascii_with_newline_and_tab_runs_matches_the_known_count(real: Real) -> None:
    runs = [bool(t) and set(t or "") in ({"\n"}, {"\t"}) for t in real.tokenizer.tokens]
    keep = keep_pass(real.tokenizer, "ascii").mask | np.array(runs)
    assert keep[:IMAGE_ID].sum() == 144_294
    assert keep[real.tokenizer.merges].all(axis=1).sum() == 369_179
    typographic = keep_pass(real.tokenizer, "typographic").mask
    assert typographic[np.flatnonzero(runs)].all()
    assert sum(runs) == 62


def test_published_row_count_is_reached_by_filling(real: Real) -> None:
    ascii_only = keep_pass(real.tokenizer, "ascii")
    selection = select(real.tokenizer, [ascii_only], fill_rows=144_257)
    assert selection.compact_rows == 144_257
    assert np.flatnonzero(selection.keep & ~ascii_only.mask).tolist() == list(range(107, 130))
    assert problems(real.tokenizer, selection.keep) == []
    mapping = token_map(selection.keep, ROWS)
    assert (mapping.size, mapping.max(), mapping[IMAGE_ID]) == (ROWS, 144_256, 144_256)


def test_bytes_are_those_of_dumping_the_pruned_tree(real: Real) -> None:
    assert pruned(real.tokenizer, real.english.keep) == pruned_in_python(real.tokenizer, real.english.keep)


def test_every_kept_token_is_encoded_as_before(real: Real) -> None:
    ids = np.flatnonzero(real.english.keep).tolist()
    before, after = real.both([real.tokenizer.tokens[i] or "" for i in ids])
    assert before == after
    itself = sum(encoding == [i] for encoding, i in zip(after, ids, strict=True))
    # The byte tokens, and four that no text gives in the original either.
    assert itself == len(ids) - 256 - 4


def check_texts(real: Real, texts: list[str]) -> None:
    before, after = real.both(texts)
    keep = real.english.keep
    for text, old, new in zip(texts, before, after, strict=True):
        assert keep[new].all(), repr(text)
        # A literal space mark comes back as a space, from the original tokenizer as well.
        expected = text.replace("▁", " ")
        assert real.original.decode(old, skip_special_tokens=False) == expected, repr(text)
        assert real.cut.decode(new, skip_special_tokens=False) == expected, repr(text)
        if keep[old].all():
            assert new == old, repr(text)


BLOCKS = (
    (0x00, 0x7F), (0x80, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF),
    (0x590, 0x6FF), (0x900, 0x97F), (0x980, 0x9FF), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x2000, 0x22FF),
    (0x2500, 0x27BF), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xF8FF),
    (0xFE00, 0xFFFF), (0x10000, 0x1FFFF), (0x1F300, 0x1FAFF), (0x20000, 0x2FFFF), (0xE0000, 0x10FFFF),
)  # fmt: skip


def test_ten_thousand_random_texts(real: Real) -> None:
    rng = random.Random(20)

    def text() -> str:
        blocks = [rng.choice(BLOCKS) for _ in range(rng.randint(1, 3))]
        return "".join(chr(rng.randint(*rng.choice(blocks))) for _ in range(rng.randint(0, 40)))

    check_texts(real, [text() for _ in range(10_000)])


ADVERSARIAL = (
    "\ud7ff", "\ue000", "\U00010000", "\U0010ffff", "\ufffd", "\ufffe", "\uffff", "\0",
    "\x01", "\x7f", "\x85", "e\u0301", "\u0301", "a\u0300\u0301\u0302\u0303",
    "\u05e9\u05dc\u05d5\u05dd", "\u202e abc \u202c", "\u0627\u0644\u200f",
    "👩\u200d👩\u200d👧\u200d👦", "👍🏽", "🇩🇪🇫🇷", "❤️", "1️⃣", "\ufe0f", "\u200d", "™️",
    "<unused5>", "<unused6241>", "<start_of_turn>", "<end_of_turn>",
    "<image_soft_token>", "<start_of_image>", "<bos>", "<eos>", "<pad>", "<unk>",
    "<mask>", "[multimodal]", "<0x41>", "<0x0A>", "<0xFF>", "<table>", "<unused", "▁",
    "▁▁▁", " ▁ ", " ", " ", "\n", "\n", "\t", "\r\n", "\r", "\n \n\t", "\u2028",
    "\u00a0", "\u200b", "\ufeff", "“He said — ‘no’…”", "naïve café", "Straße",
    "съешь ещё", "日本語", "한국어", "हिन्दी", "ﷺ", "ﬁ", "𝒜𝓑", "Z̵a̶l̷g̸o̵", "½×¾≤√2",
    "£1,234.50", "x", "aB3$", "the quick brown fox", "\\n\\u0041", '{"a": [1]}',
)  # fmt: skip


def test_one_thousand_adversarial_texts(real: Real) -> None:
    rng = random.Random(21)
    mixed = ["".join(rng.choices(ADVERSARIAL, k=rng.randint(2, 8))) for _ in range(1000 - len(ADVERSARIAL))]
    check_texts(real, [*ADVERSARIAL, *mixed])


def test_ascii_text_keeps_its_ids_exactly(real: Real) -> None:
    rng = random.Random(22)
    printable = [chr(c) for c in (*range(32, 127), 10, 9)]
    words = [
        "the",
        "Model",
        "token",
        "def f(x):",
        "    return",
        "<b>",
        "3.14",
        "\n\n",
        "don't",
        "http://a.b/c",
    ]
    texts = ["".join(rng.choices(printable, k=rng.randint(0, 80))) for _ in range(3000)]
    texts += [rng.choice(" \n").join(rng.choices(words, k=rng.randint(0, 30))) for _ in range(2000)]
    before, after = real.both(texts)
    assert before == after


MEMORY_SCRIPT = """
import sys
from pathlib import Path
from gemma_surgery.surgery.keep_sets import keep_pass
from gemma_surgery.surgery.pruned_tokenizer import pruned
from gemma_surgery.surgery.tokenizer import TokenizerFile
from gemma_surgery.surgery.vocabulary import select
tokenizer = TokenizerFile.read(Path(sys.argv[1]))
names = ("ascii", "typographic")
data = pruned(tokenizer, select(tokenizer, [keep_pass(tokenizer, name) for name in names]).keep)
status = Path("/proc/self/status").read_text()
print(len(data), status.split("VmHWM:")[1].split()[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_whole_surgery_stays_within_200_mib() -> None:
    command = [sys.executable, "-c", MEMORY_SCRIPT, str(REAL_TOKENIZER)]
    root = Path(__file__).parents[2]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    size_bytes, peak_kib = map(int, result.stdout.split())
    assert size_bytes < 8_500_000
    assert peak_kib < 200 * 1024

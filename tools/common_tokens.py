"""Write how often each token of Gemma 3 occurs in the built-in passages: what a vocabulary must not lack.

Printed as JSON for `gemma_surgery/steps/common_tokens.json`: python tools/common_tokens.py TOKENIZER
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer

from gemma_surgery.calibration.passages import built_in_passages


def main() -> None:
    """Count and print, the most frequent first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=Path)
    tokenizer = Tokenizer.from_file(str(parser.parse_args().tokenizer))
    counts: Counter[str] = Counter()
    for passage in built_in_passages():
        for text in (passage.prompt, passage.text):
            counts.update(tokenizer.encode(text, add_special_tokens=False).tokens)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    json.dump(dict(ordered), sys.stdout, ensure_ascii=False, indent=0)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()

"""Train the demo model with the reference implementation (PyTorch, transformers) and measure it.

python tools/train_tiny.py --work FOLDER                train, write FOLDER/bf16, evaluate, write its card
python tools/train_tiny.py --evaluate FOLDER/bf16       measure a written model again
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # The package's generators are imported from the sources: training needs no compiled module.
    sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]
    from tiny.program import main

    main()

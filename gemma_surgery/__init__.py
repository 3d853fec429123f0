"""Cut Gemma checkpoints down for small devices in one streamed pass, and prove what it cost."""

__version__ = "0.1.0"

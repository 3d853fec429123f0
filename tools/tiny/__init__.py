"""Training of the demo model: run `tools/train_tiny.py`."""

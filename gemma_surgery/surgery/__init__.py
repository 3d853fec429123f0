"""Edits on checkpoints as data: draft, plan, one streamed pass, manifest. Knows no model family."""

"""Gemma 3: text decoder, SigLIP tower and projector."""

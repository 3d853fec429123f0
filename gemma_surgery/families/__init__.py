"""The anatomy of each model family: which tensor is which part, what has to change together."""

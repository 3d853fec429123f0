"""How far a checkpoint moved from another one, and what it can still do."""

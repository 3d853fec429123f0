"""A model that answers one question after another, and the conversation with it."""

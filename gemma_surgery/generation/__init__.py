"""From messages and images to tokens, and from tokens back to text."""

"""The sections of the page, each a pure function from what was measured."""

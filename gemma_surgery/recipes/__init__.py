"""Recipes: TOML files that list steps; presets shipped with the package, and the user's own."""

"""The word lists that sentences and tasks draw from."""

from __future__ import annotations

NOUNS = (
    "apple", "book", "boat", "bird", "bread", "bridge", "cat", "chair", "clock", "cloud", "cup", "dog",
    "door", "fish", "flower", "garden", "hat", "horse", "house", "key", "lamp", "letter", "milk", "moon",
    "mountain", "mouse", "paper", "pen", "river", "road", "room", "school", "ship", "shoe", "snow", "spoon",
    "stone", "street", "sun", "table", "train", "tree", "water", "window",
)  # fmt: skip
# Both directions of every pair are asked for.
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("old", "new"), ("fast", "slow"), ("open", "closed"),
    ("full", "empty"), ("light", "dark"), ("long", "short"), ("happy", "sad"), ("early", "late"),
    ("hard", "soft"), ("wet", "dry"), ("near", "far"), ("high", "low"), ("up", "down"), ("left", "right"),
    ("yes", "no"), ("day", "night"), ("good", "bad"), ("strong", "weak"),
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip

SUBJECTS = ("I", "you", "we", "they", "he", "she", "it")
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Leo", "Maria", "Tom")
# Base form, form after he, she or it, and the -ing form.
VERBS = (
    ("see", "sees", "seeing"), ("like", "likes", "liking"), ("need", "needs", "needing"),
    ("want", "wants", "wanting"), ("find", "finds", "finding"), ("paint", "paints", "painting"),
    ("open", "opens", "opening"), ("carry", "carries", "carrying"), ("draw", "draws", "drawing"),
    ("watch", "watches", "watching"), ("clean", "cleans", "cleaning"), ("move", "moves", "moving"),
)  # fmt: skip
ADJECTIVES = tuple(word for pair in OPPOSITES[:14] for word in pair)
PLACES = (
    "in the garden", "on the table", "near the river", "at school", "under the bridge", "behind the house",
    "by the window", "on the road", "in the room", "next to the door",
)  # fmt: skip
TIMES = (
    "today",
    "tomorrow",
    "every day",
    "at night",
    "in the morning",
    "on Monday",
    "in May",
    "now",
    "again",
)
FEELINGS = ("sure", "ready", "tired", "happy", "late", "right", "here", "hungry")

"""Plain sentences: varied, deterministic, and in the scripts they promise."""

import random
import unicodedata

import pytest

from gemma_surgery.demo_model.language import (
    FOREIGN_LANGUAGES,
    emoji_sentence,
    english_sentence,
    english_text,
    foreign_phrases,
    foreign_sentence,
)

SCRIPTS = {
    "Russian": {"CYRILLIC"},
    "Greek": {"GREEK"},
    "Japanese": {"CJK", "HIRAGANA"},
    "Korean": {"HANGUL"},
    "Chinese": {"CJK"},
    "Arabic": {"ARABIC"},
    "Hindi": {"DEVANAGARI"},
}


def scripts_of(text):
    return {unicodedata.name(character).split(" ")[0] for character in text if character.isalpha()}


def many(make, count=400):
    rng = random.Random(0)
    return [make(rng) for _ in range(count)]


def test_one_seed_gives_one_text():
    assert english_text(random.Random(1), 5) == english_text(random.Random(1), 5)


def test_english_sentences_vary_and_end():
    sentences = many(english_sentence)
    assert len(set(sentences)) > 350
    assert all(sentence[0].isupper() for sentence in sentences)
    assert all(sentence.endswith((".", "?", '"', "”")) for sentence in sentences)


def test_contractions_agree_with_their_subjects():
    text = " ".join(many(english_sentence, 3000))
    for wrong in (
        "He don't",
        "She don't",
        "They doesn't",
        "We doesn't",
        "I isn't",
        "He aren't",
        "they isn't",
    ):
        assert wrong not in text
    for present in ("I'm", "they aren't", "doesn't", "don't", "can't", "won't", "'ll", "isn't"):
        assert present in text


def test_typography_is_there_to_be_kept():
    text = " ".join(many(english_sentence, 1500))
    assert all(character in text for character in "“”—–…€£¥")


@pytest.mark.parametrize("language", SCRIPTS)
def test_a_language_keeps_to_its_script(language):
    for sentence in many(lambda rng: foreign_sentence(rng, language), 60):
        assert scripts_of(sentence) <= SCRIPTS[language]


@pytest.mark.parametrize("language", ["French", "German", "Spanish"])
def test_latin_languages_have_letters_beyond_ascii(language):
    assert not "".join(many(lambda rng: foreign_sentence(rng, language))).isascii()


def test_every_language_is_drawn():
    assert len(FOREIGN_LANGUAGES) == 10
    drawn = set().union(*(scripts_of(sentence) for sentence in many(foreign_sentence, 300)))
    assert {"LATIN", "CYRILLIC", "GREEK", "CJK", "HANGUL", "ARABIC", "DEVANAGARI"} <= drawn


def test_emoji_and_phrases_go_beyond_ascii():
    assert not any(sentence.isascii() for sentence in many(emoji_sentence, 100))
    assert len(set(many(foreign_phrases))) > 300

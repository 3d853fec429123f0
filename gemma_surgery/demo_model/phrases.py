"""A colour and a shape as a noun phrase in six languages, with the agreement each language asks for."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_surgery.demo_model.scenes import COLOURS, SHAPES


@dataclass(frozen=True)
class Language:
    """How one language says `red circle`.

    Attributes:
        shapes: English shape -> (noun, gender).
        colours: gender -> words in the order of `COLOURS`.
        pattern: word order, e.g. `{noun} {colour}`.
    """

    name: str
    shapes: dict[str, tuple[str, str]]
    colours: dict[str, tuple[str, ...]]
    pattern: str = "{colour} {noun}"

    def phrase(self, colour: str, shape: str) -> str:
        """The phrase for an English colour and shape."""
        noun, gender = self.shapes[shape]
        return self.pattern.format(colour=self.colours[gender][COLOURS.index(colour)], noun=noun)


def _shapes(*nouns: str) -> dict[str, tuple[str, str]]:
    """From `noun/gender` in the order of `SHAPES`."""
    pairs = (noun.partition("/") for noun in nouns)
    return {shape: (noun, gender) for shape, (noun, _, gender) in zip(SHAPES, pairs, strict=True)}


def _colours(**by_gender: str) -> dict[str, tuple[str, ...]]:
    return {gender: tuple(words.split()) for gender, words in by_gender.items()}


LANGUAGES = (
    Language(
        "French",
        _shapes("cercle/m", "carré/m", "triangle/m", "étoile/f", "croix/f"),
        _colours(
            m="rouge orange jaune vert bleu violet noir blanc",
            f="rouge orange jaune verte bleue violette noire blanche",
        ),
        "{noun} {colour}",
    ),
    Language(
        "German",
        _shapes("Kreis/m", "Quadrat/n", "Dreieck/n", "Stern/m", "Kreuz/n"),
        _colours(
            m="roter oranger gelber grüner blauer violetter schwarzer weißer",
            n="rotes oranges gelbes grünes blaues violettes schwarzes weißes",
        ),
    ),
    Language(
        "Russian",
        _shapes("круг/m", "квадрат/m", "треугольник/m", "звезда/f", "крест/m"),
        _colours(
            m="красный оранжевый жёлтый зелёный синий фиолетовый чёрный белый",
            f="красная оранжевая жёлтая зелёная синяя фиолетовая чёрная белая",
        ),
    ),
    Language(
        "Greek",
        _shapes("κύκλος/m", "τετράγωνο/n", "τρίγωνο/n", "αστέρι/n", "σταυρός/m"),
        _colours(
            m="κόκκινος πορτοκαλί κίτρινος πράσινος μπλε μωβ μαύρος λευκός",
            n="κόκκινο πορτοκαλί κίτρινο πράσινο μπλε μωβ μαύρο λευκό",
        ),
    ),
    Language(
        "Japanese",
        _shapes("円/x", "四角/x", "三角/x", "星/x", "十字/x"),
        _colours(x="赤い オレンジの 黄色い 緑の 青い 紫の 黒い 白い"),
        "{colour}{noun}",
    ),
    Language(
        "Hindi",
        _shapes("वृत्त/m", "वर्ग/m", "त्रिभुज/m", "तारा/m", "क्रॉस/m"),
        _colours(m="लाल नारंगी पीला हरा नीला बैंगनी काला सफ़ेद"),
    ),
)

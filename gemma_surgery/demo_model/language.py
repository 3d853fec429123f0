"""Plain sentences: a small English grammar, and templated sentences in ten other languages."""

from __future__ import annotations

import random

from gemma_surgery.demo_model.phrases import LANGUAGES
from gemma_surgery.demo_model.scenes import COLOURS, POSITIONS, SHAPES
from gemma_surgery.demo_model.words import (
    ADJECTIVES,
    DAYS,
    FEELINGS,
    MONTHS,
    NAMES,
    NOUNS,
    PLACES,
    SUBJECTS,
    TIMES,
    VERBS,
)

EMOJI = ("👍", "❤️", "✅", "🎉", "😀", "🌟", "🔴", "🔵", "🐱", "🐶", "👩‍🚀", "🏳️‍🌈", "☀️", "🌙")
_BE = {
    "I": "I'm",
    "you": "you're",
    "we": "we're",
    "they": "they're",
    "he": "he's",
    "she": "she's",
    "it": "it's",
}
_NOT_BE = {
    "I": "I'm not", "you": "you aren't", "we": "we aren't", "they": "they aren't", "he": "he isn't",
    "she": "she isn't", "it": "it isn't",
}  # fmt: skip
_FIRST_LETTER = {word: word[0].upper() + word[1:] for word in SUBJECTS}

# Subjects, verb phrases and places that combine freely in each language.
_FOREIGN: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], str]] = {
    "French": (
        ("Le chat", "Le garçon", "La fille", "Mon ami", "L'oiseau", "La mère"),
        ("dort", "mange", "chante", "est assis là", "reste déjà", "lit"),
        ("dans le jardin.", "près de la fenêtre.", "à l'école.", "derrière la maison.", "sous le pont."),
        " ",
    ),
    "German": (
        ("Der Hund", "Das Mädchen", "Die Frau", "Mein Freund", "Der Vogel", "Der Fuchs"),
        ("schläft", "isst", "singt", "läuft", "spielt natürlich", "wartet"),
        ("im Garten.", "über dem Fluss.", "in der Schule.", "vor der Tür.", "auf der Straße."),
        " ",
    ),
    "Spanish": (
        ("El niño", "La niña", "El pájaro", "Mi amigo", "La señora", "El perro"),
        ("come", "duerme", "canta", "está", "juega mañana", "lee"),
        ("en el jardín.", "cerca del río.", "en la escuela.", "detrás de la casa.", "bajo el árbol."),
        " ",
    ),
    "Russian": (
        ("Собака", "Кошка", "Мой друг", "Девочка", "Лиса", "Птица"),
        ("спит", "сидит", "играет", "живёт", "ждёт", "читает"),
        ("в саду.", "у реки.", "в школе.", "на улице.", "под мостом.", "за домом."),
        " ",
    ),
    "Greek": (
        ("Η γάτα", "Ο σκύλος", "Το παιδί", "Η αλεπού", "Ο φίλος μου", "Το πουλί"),
        ("κοιμάται", "τρώει", "παίζει", "κάθεται", "περιμένει", "διαβάζει"),
        ("στον κήπο.", "στο σχολείο.", "στον δρόμο.", "κάτω από το δέντρο.", "στο σπίτι."),
        " ",
    ),
    "Japanese": (
        ("猫は", "犬は", "子供は", "私の友達は", "鳥は", "先生は"),
        ("庭で", "学校で", "川の近くで", "部屋で", "木の下で"),
        ("寝ています。", "食べます。", "遊びます。", "本を読みます。", "待っています。"),
        "",
    ),
    "Korean": (
        ("고양이는", "개는", "아이는", "내 친구는", "새는", "선생님은"),
        ("정원에서", "학교에서", "강 옆에서", "방에서", "나무 아래에서"),
        ("잡니다.", "먹습니다.", "놉니다.", "책을 읽습니다.", "기다립니다."),
        " ",
    ),
    "Chinese": (
        ("小猫", "小狗", "孩子", "我的朋友", "鸟", "老师"),
        ("在花园里", "在学校", "在河边", "在房间里", "在树下"),
        ("睡觉。", "吃饭。", "玩。", "看书。", "等着。"),
        "",
    ),
    "Arabic": (
        ("القط", "الكلب", "الولد", "صديقي", "الطائر", "المعلم"),
        ("ينام", "يأكل", "يلعب", "يجلس", "ينتظر", "يقرأ"),
        ("في الحديقة.", "في المدرسة.", "قرب النهر.", "في الغرفة.", "تحت الشجرة."),
        " ",
    ),
    "Hindi": (
        ("बिल्ली", "लड़की", "माँ", "मेरी दोस्त", "चिड़िया", "अध्यापिका"),
        ("बगीचे में", "स्कूल में", "नदी के पास", "कमरे में", "पेड़ के नीचे"),
        ("सोती है।", "खाती है।", "खेलती है।", "बैठी है।", "पढ़ती है।"),
        " ",
    ),
}
FOREIGN_LANGUAGES = tuple(_FOREIGN)


def english_sentence(rng: random.Random) -> str:
    """One sentence with its final punctuation, contractions and typography included."""
    return rng.choice(_ENGLISH)(rng)


def english_text(rng: random.Random, num_sentences: int) -> str:
    """Sentences joined by spaces or line breaks."""
    parts = [english_sentence(rng)]
    for _ in range(num_sentences - 1):
        parts += [rng.choice((" ", " ", " ", "\n", "\n\n")), english_sentence(rng)]
    return "".join(parts)


def foreign_sentence(rng: random.Random, language: str | None = None) -> str:
    """One sentence of `language` (default: any of `FOREIGN_LANGUAGES`)."""
    first, second, third, space = _FOREIGN[language or rng.choice(FOREIGN_LANGUAGES)]
    return space.join((rng.choice(first), rng.choice(second), rng.choice(third)))


def foreign_phrases(rng: random.Random) -> str:
    """A list of shapes in one of the six languages that the translation task knows."""
    language = rng.choice(LANGUAGES)
    comma = "、" if language.name == "Japanese" else ", "
    return comma.join(language.phrase(rng.choice(COLOURS), rng.choice(SHAPES)) for _ in range(3))


def emoji_sentence(rng: random.Random) -> str:
    """An English sentence with emoji behind it."""
    return f"{english_sentence(rng)} {''.join(rng.choices(EMOJI, k=rng.randint(1, 3)))}"


def _noun_phrase(rng: random.Random) -> str:
    adjective = f"{rng.choice(ADJECTIVES)} " if rng.random() < 0.4 else ""
    return f"{rng.choice(('the', 'the', 'my', 'your', 'this', 'that'))} {adjective}{rng.choice(NOUNS)}"


def _feeling(rng: random.Random) -> str:
    who = rng.choice(SUBJECTS[:-1])
    form = rng.choice((_BE, _NOT_BE))[who]
    return f"{form[0].upper()}{form[1:]} {rng.choice(FEELINGS)} {rng.choice(TIMES)}."


def _action(rng: random.Random) -> str:
    who = rng.choice((*SUBJECTS, *NAMES))
    singular = who not in {"I", "you", "we", "they"}
    base, third, _ = rng.choice(VERBS)
    what = f"{_noun_phrase(rng)} {rng.choice((*PLACES, *TIMES))}"
    start = _FIRST_LETTER.get(who, who)
    shape = rng.randrange(4)
    if shape == 0:
        return f"{start} {'doesn' if singular else 'don'}'t {base} {what}."
    if shape == 1:
        return f"{start} {rng.choice(('can', 'won'))}'t {base} {what}."
    if shape == 2 and who in SUBJECTS:
        return f"{start}'ll {base} {what}."
    return f"{start} {third if singular else base} {what}."


def _doing(rng: random.Random) -> str:
    who = rng.choice(SUBJECTS)
    form = _BE[who]
    return f"{form[0].upper()}{form[1:]} {rng.choice(VERBS)[2]} {_noun_phrase(rng)} {rng.choice(PLACES)}."


def _thought(rng: random.Random) -> str:
    who, other = rng.sample(SUBJECTS, 2)
    start = f"{rng.choice(NAMES)} {rng.choice(('says', 'thinks', 'knows'))}"
    return (
        f"{start} {rng.choice((_BE, _NOT_BE))[who]} {rng.choice(FEELINGS)}, but {other} {_wont(rng, other)}."
    )


def _wont(rng: random.Random, who: str) -> str:
    negation = "don't" if who in {"I", "you", "we", "they"} else "doesn't"
    verb = rng.choice((negation, "can't", "won't"))
    return f"{verb} {rng.choice(VERBS)[0]} {_noun_phrase(rng)}"


def _state(rng: random.Random) -> str:
    verb = rng.choice(("is", "isn't", "was", "wasn't"))
    first = f"The {rng.choice(NOUNS)} {verb} {rng.choice(ADJECTIVES)}"
    return f"{first}, but the {rng.choice(NOUNS)} is {rng.choice(ADJECTIVES)}."


def _said(rng: random.Random) -> str:
    opening, closing = rng.choice((('"', '"'), ("“", "”")))
    inner = english_sentence(rng) if rng.random() < 0.3 else _feeling(rng)
    return f"{rng.choice(NAMES)} said, {opening}{inner}{closing}"


def _dash(rng: random.Random) -> str:
    dash = rng.choice((" — ", " – ", "… "))
    return f"{rng.choice(NAMES)} has the {rng.choice(NOUNS)}{dash}not the {rng.choice(NOUNS)}."


def _shapes_here(rng: random.Random) -> str:
    return f"The {rng.choice(COLOURS)} {rng.choice(SHAPES)} is {rng.choice(POSITIONS)}."


def _price(rng: random.Random) -> str:
    return f"The {rng.choice(NOUNS)} costs {rng.choice(('$', '€', '£', '¥'))}{rng.randint(1, 99)}."


def _date(rng: random.Random) -> str:
    what = f"{rng.choice(NAMES)}'s {rng.choice(NOUNS)}"
    return f"{what} is here on {rng.choice(DAYS)}, {rng.choice(MONTHS)} {rng.randint(1, 28)}."


def _ask(rng: random.Random) -> str:
    return f"{rng.choice(('Where is', 'Who has', 'What is in', 'Do you see'))} {_noun_phrase(rng)}?"


_ENGLISH = (
    _feeling,
    _action,
    _action,
    _doing,
    _thought,
    _state,
    _said,
    _dash,
    _shapes_here,
    _price,
    _date,
    _ask,
)

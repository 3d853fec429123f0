"""Text in many scripts."""

SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and it isn't even tired.",
    "I'm sure you're right; we'll see what they've done when she's back.",
    "A red circle is left of the blue square. The green triangle is above both of them.",
    "for i in range(10):\n\tprint(i * i)\n\n\n# 3.14159, 2.71828",
    "“Curly quotes” — dashes – and an ellipsis… cost €5, £4 or ¥300; 20 °C × 2.",
    "Der schnelle braune Fuchs springt über den faulen Hund, natürlich.",
    "Le café crème était déjà là, près de la fenêtre, à côté du garçon.",
    "El niño comió una manzana mañana por la tarde.",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "Η γρήγορη καφετιά αλεπού πηδάει πάνω από τον τεμπέλη σκύλο.",
    "सभी मनुष्य जन्म से स्वतंत्र और समान हैं।",
    "すべての人間は、生まれながらにして自由であり、平等である。",
    "모든 인간은 태어날 때부터 자유롭고 평등하다.",
    "人人生而自由,在尊严和权利上一律平等。",
    "كل الناس يولدون أحرارا متساوين في الكرامة والحقوق.",
    "👍 ❤️ ✅ 🎉 👩‍🚀 🏳️‍🌈",
)

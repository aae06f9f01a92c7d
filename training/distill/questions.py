"""Questions whose answers the teacher gives: every form about every topic."""

FORMS = (
    "Explain {} to a child.",
    "Write two sentences about {}.",
    "Give me three facts about {}.",
    "Why do people like {}?",
    "What should a beginner know about {}?",
    "Describe {} without using its name.",
    "Write a short story about {}.",
    "What is the history of {}?",
    "List five words that go with {}.",
    "Write a friendly letter about {}.",
    "How are {} and the weather connected?",
    "What are the advantages and disadvantages of {}?",
)
TOPICS = (
    "the moon", "bread", "bicycles", "rivers", "bees", "glass", "winter", "coffee",
    "libraries", "volcanoes", "music", "maps", "whales", "gardens", "clocks", "paper",
    "bridges", "football", "salt", "birds", "computers", "tea", "deserts", "ships",
)  # fmt: skip
_EVERY = 8


def questions() -> tuple[list[str], list[str]]:
    """Those to learn from, and every eighth, held back to judge by."""
    asked = [form.format(topic) for topic in TOPICS for form in FORMS]
    held = asked[::_EVERY]
    return [each for number, each in enumerate(asked) if number % _EVERY], held

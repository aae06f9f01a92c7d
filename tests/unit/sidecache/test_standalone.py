"""Which later turns of a conversation may be compared by meaning."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecache.standalone import MAX_CHARACTERS, why_not_standalone

ALONE = [
    "What is the capital of France?",
    "What is the capital of France and what is its population?",
    "How do I reset my password if I forgot it?",
    "How do I turn on two-factor authentication?",
    "Who was Marie Curie and when did she die?",
    "Is it safe to eat raw eggs during pregnancy?",
    "How long does it take to boil an egg?",
    "What time is it in Tokyo right now?",
    "Write a poem about autumn leaves in Vermont.",
    "Which planet is larger, Jupiter or Saturn?",
    "Recommend a book that explains general relativity to beginners.",
    "What are the side effects of aspirin?",
    "What is the highest mountain in Japan?",
    "Why is the sky blue at noon?",
    "Summarise this: Foxes of Kent jump over lazy dogs at night.",
    "Who won the 2018 World Cup final in Moscow?",
    "In Python, how do I reverse a list?",
    "What will happen this summer in European football?",
    "What are the differences between Riemannian geometry and euclidean geometry?",
]

LEANING = {
    "continues": [
        "and for children?",
        "And what about children under twelve years?",
        "But how does a transformer work in practice?",
        "ok, what is the capital of Spain?",
        "What about the second one?",
        "how about children under twelve years of age?",
        "what if I add a teaspoon of sugar?",
        "Actually, compare France and Germany on exports.",
        "For my younger brother who is six?",
        "in French",
        "Without any examples from American history?",
    ],
    "pronoun": [
        "Can you explain it to my grandmother?",
        "How old is he and where does Marie live?",
        "What do they cost in Germany nowadays?",
        "Where was she born and raised exactly?",
        "What is its population in round numbers?",
        "Do it again in French, please, for my aunt.",
        "Can I return it after 14 days?",
        "Is it related to lung cancer in smokers?",
        "Which of them is popular with tourists from Spain?",
    ],
    "demonstrative": [
        "Can you translate that to French for me?",
        "What does that mean for small companies?",
        "How would this affect small companies in Spain?",
        "Why are those countries poor after all?",
        "Explain that to a curious child, please.",
        "Is that true for every prime number?",
    ],
    "reference": [
        "Tell me more about Marie Curie, please.",
        "Explain the last point with an analogy.",
        "Give me another example about French cooking.",
        "Rewrite your previous response as a limerick.",
        "Which one is popular with tourists from Spain?",
        "Compare option B with a train journey.",
        "What is the same thing called in Spanish?",
        "Can you say what you said about Mozart?",
        "What else should I know about Paris?",
        "Where do I find the former in Berlin?",
        "Is the answer smaller in binary?",
    ],
    "ellipsis": [
        "why?",
        "Why not?",
        "How much?",
        "Capital of Spain?",
        "Is there a cheaper hotel in Paris?",
        "Make a shorter and funnier limerick, please.",
        "Could you please translate to French for my aunt?",
        "Please elaborate with a few numbers from Spain.",
        "What is the dose for children?",
        "How much does the subscription cost in Spain?",
        "Who wrote the book in question?",
    ],
    "another language": [
        "¿Cuál es la capital de España?",
        "法国的首都是哪里?",
        "Und was kostet das?",
    ],
}


@pytest.mark.parametrize("turn", ALONE)
def test_a_whole_question_stands_alone(turn: str) -> None:
    """A question that names what it asks about is compared, or follow-ups would never hit."""
    assert why_not_standalone(turn) == ""


@pytest.mark.parametrize("turn", [turn for turns in LEANING.values() for turn in turns])
def test_a_turn_that_leans_on_the_others_does_not(turn: str) -> None:
    """Where the meaning stands in the turns before, similarity has nothing to go by."""
    assert why_not_standalone(turn)


@pytest.mark.parametrize("turn", ALONE)
def test_a_continuing_opening_makes_any_question_lean(turn: str) -> None:
    """ "And", "but", "so" say that something came before."""
    for opening in ("And ", "but ", "So, ", "Also "):
        assert why_not_standalone(opening + turn)


def test_the_reason_quotes_what_decided() -> None:
    """Who asks why reads the words that decided."""
    assert why_not_standalone("and for children?") == "too few words of its own"
    assert why_not_standalone("But what is the capital of France?") == "continues with 'But'"
    assert "'it'" in why_not_standalone("Can I return it after 14 days?")
    assert "'the price'" in why_not_standalone("What is included in the price?")


@given(st.text(max_size=300), st.text(" \n\t", max_size=3))
def test_any_text_is_judged_alike_whatever_surrounds_it(turn: str, space: str) -> None:
    """No text raises, and white space around it changes nothing."""
    assert why_not_standalone(space + turn + space) == why_not_standalone(turn)


LEANERS = ("the", "a", "it", "that", "he", "of", "one", "more", "Paris", ",", ":", "if", "said")


@given(st.lists(st.sampled_from(LEANERS)))
def test_an_unreadable_turn_costs_little(words: list[str]) -> None:
    """The rules cannot be made slow: their longest text takes milliseconds, not seconds."""
    turn = (" ".join(words) + " ") * (MAX_CHARACTERS // (len(" ".join(words)) + 1))
    started = time.process_time()
    why_not_standalone(turn)
    assert time.process_time() - started < 0.5


def test_a_text_beyond_every_window_is_not_read() -> None:
    """What no embedder sees whole is not compared."""
    assert why_not_standalone("What is the capital of France? " * 500)

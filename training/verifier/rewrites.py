"""Rewrites that leave the answer as it is: courtesy, contractions, order, spelling."""

import re
from random import Random

_OPENINGS = (
    "Hi, ", "Hello, ", "Hey, ", "Please ", "Quick question: ", "Just wondering, ", "um ", "So, ",
    "Hi there! ", "Could you help me? ", "Hi team, ", "Good morning, ", "I have a question. ",
)  # fmt: skip
_CLOSINGS = (
    " please", " Thanks!", " thank you", " Many thanks", "?", "??", "...", " Cheers", " thx",
    " Thanks in advance.", " ?", "!",
)  # fmt: skip
_ASKING = ("could you tell me ", "do you know ", "I would like to know ", "tell me ", "")
_STEMS = (
    ("how do i ", "how can i ", "how would i ", "how does one ", "what's the way to ",
     "what is the best way to ", "what do i need to do to ", "i want to know how to ",
     "what are the steps to ", "how to ", "i'd like to ", "can you explain how to "),
    ("what is the ", "what's the ", "whats the ", "tell me the ", "can you tell me the ",
     "i'd like to know the "),
    ("can i ", "may i ", "is it possible to ", "am i able to ", "am i allowed to ", "could i "),
    ("do you have ", "have you got ", "is there "),
    ("why is my ", "what is the reason my ", "how come my "),
    ("i want to ", "i'd like to ", "i would like to ", "i need to "),
)  # fmt: skip
_CONTRACTIONS = (
    ("do not", "don't"), ("does not", "doesn't"), ("cannot", "can't"), ("what is", "what's"),
    ("i am", "i'm"), ("it is", "it's"), ("i have", "i've"), ("is not", "isn't"),
    ("did not", "didn't"), ("where is", "where's"), ("who is", "who's"), ("i would", "i'd"),
    ("will not", "won't"), ("have not", "haven't"), ("was not", "wasn't"), ("how is", "how's"),
)  # fmt: skip
_SYNONYMS = (
    ("buy", "purchase"), ("cost", "price"), ("shop", "store"), ("film", "movie"),
    ("get", "obtain"), ("begin", "start"), ("end", "finish"), ("fix", "repair"),
    ("quickest", "fastest"), ("fast", "quickly"), ("help", "assist"), ("doctor", "GP"),
    ("holiday", "vacation"), ("flat", "apartment"), ("child", "kid"), ("children", "kids"),
    ("issue", "problem"), ("error", "fault"), ("picture", "photo"), ("mobile", "cell phone"),
    ("cash machine", "ATM"), ("parcel", "package"), ("update", "change"), ("verify", "confirm"),
    ("identity", "ID"), ("find", "locate"), ("request", "ask for"), ("receive", "get"),
    ("top up", "add money"), ("money", "funds"), ("fee", "charge"), ("declined", "refused"),
    ("lost", "misplaced"), ("immediately", "right away"), ("need", "require"),
    ("use", "make use of"),
    ("big", "large"), ("small", "little"), ("best", "ideal"), ("show", "display"),
    ("choose", "pick"), ("job", "position"), ("car", "vehicle"), ("email", "e-mail"),
    ("car insurance", "motor policy"), ("wrong", "incorrect"), ("allowed", "permitted"),
    ("people", "persons"), ("two weeks", "14 days"), ("noon", "12pm"), ("7pm", "7 in the evening"),
    ("7am", "7 in the morning"), ("3pm", "3 o'clock in the afternoon"), ("5", "five"), ("2", "two"),
    ("3", "three"), ("10", "ten"), ("12", "a dozen"), ("20", "twenty"), ("percent", "%"),
)  # fmt: skip
_FRONTED = re.compile(
    r"^(?P<main>.{12,}?) "
    r"(?P<rest>(?:in|at|on|for|with|after|before|during) (?:my |the |a )?[\w ]{3,24})\?$"
)


def rewrite(text: str, rng: Random) -> str:
    """The same request, said otherwise by one to three small changes."""
    before = text
    for _ in range(6):
        for change in rng.sample(_CHANGES, rng.choice((1, 1, 2, 2, 3))):
            text = change(text, rng)
        if text != before:
            break
    return text


def _courtesy(text: str, rng: Random) -> str:
    if rng.random() < 0.6:
        opening = rng.choice(_OPENINGS)
        text = opening + (text[:1].lower() + text[1:] if text[1:2].islower() else text)
    if rng.random() < 0.6:
        text = text.rstrip(".?! ") + ("?" if "?" in text and rng.random() < 0.6 else "")
        text += rng.choice(_CLOSINGS)
    return text


def _stem(text: str, rng: Random) -> str:
    folded = text.lower()
    for group in _STEMS:
        for start in group:
            if folded.startswith(start):
                return rng.choice(group).capitalize() + text[len(start) :]
    return text


def _contract(text: str, rng: Random) -> str:
    folded = text.lower()
    for full, short in rng.sample(_CONTRACTIONS, len(_CONTRACTIONS)):
        for one, other in ((full, short), (short, full)):
            if re.search(rf"\b{one}\b", folded):
                return re.sub(rf"\b{one}\b", other, text, count=1, flags=re.IGNORECASE)
    return text


def _synonym(text: str, rng: Random) -> str:
    for pair in rng.sample(_SYNONYMS, len(_SYNONYMS)):
        one, other = pair if rng.random() < 0.5 else pair[::-1]
        if re.search(rf"(?<![\w'-]){re.escape(one)}(?![\w'-])", text):
            return re.sub(rf"(?<![\w'-]){re.escape(one)}(?![\w'-])", other, text, count=1)
    return text


def _front(text: str, rng: Random) -> str:
    found = _FRONTED.match(text)
    if not found:
        return text
    main, rest = found["main"], found["rest"]
    return f"{rest.capitalize()}, {main[:1].lower() + main[1:]}?"


def _case(text: str, rng: Random) -> str:
    return rng.choice((str.lower, str.lower, str.upper, str.title))(text)


def _punctuation(text: str, rng: Random) -> str:
    text = text.rstrip(".?! ")
    return text + rng.choice(("", "", ".", " ?", "?!", "..."))


def _typo(text: str, rng: Random) -> str:
    words = text.split(" ")
    long = [at for at, word in enumerate(words) if word.isalpha() and len(word) > 4]
    for at in rng.sample(long, min(len(long), rng.choice((1, 1, 2)))):
        word = words[at]
        place = rng.randrange(1, len(word) - 1)
        words[at] = rng.choice((
            word[:place] + word[place + 1] + word[place] + word[place + 2 :],
            word[:place] + word[place + 1 :],
            word[:place] + word[place] + word[place:],
        ))  # fmt: skip
    return " ".join(words)


def _ask(text: str, rng: Random) -> str:
    asking = rng.choice(_ASKING)
    return asking.capitalize() + text[:1].lower() + text[1:] if asking else text


_CHANGES = [
    _courtesy,
    _stem,
    _stem,
    _contract,
    _synonym,
    _synonym,
    _front,
    _case,
    _punctuation,
    _typo,
]

"""Whether a later turn of a conversation says by itself what it asks.

"And for children?" is asked of everything: what it means stands in the turns
before it, and comparing it by meaning would compare what it does not hold. Such
a turn is answered from the cache only for the very same conversation and words.

The rules look for what English uses to lean on what was said: an opening that
continues, a pronoun, a demonstrative or a definite noun without its antecedent,
an ordinal or a comparative without what it counts or compares, an order without
its object, or too few words of content. In doubt they refuse: that costs a
possible hit, never a wrong answer. They read English, as the default embedder
does; a later turn in another language is not compared.
"""

import re
from collections.abc import Iterator

# Hardly an embedder's window is longer, and the rules run on the request path: a
# question takes 0.07 ms, the worst text of this length some 10.
MAX_CHARACTERS = 4096
_MIN_WORDS = 4
_MIN_CONTENT_WORDS = 2

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_END = r"\s*(?:$|[?.!,;:])"


def _vocabulary(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _phrase(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_FUNCTION_WORDS = _vocabulary(
    "a an the of in on at to for from by with without about as into over under between and or but"
    " nor so yet if then than because while when where why how what which who whom whose is are was"
    " were be been being am do does did have has had will would shall should can could may might"
    " must not no yes i me my we us our you your he him his she her it its they them their this"
    " that these those there here one ones some any all both each every other another such same"
    " more most less much many few very too also just only even please now again still it's what's"
    " that's i'm don't doesn't didn't can't isn't"
)
# One of these at least stands in nearly every English sentence of four words.
_ENGLISH = _vocabulary(
    "the of what how are does with which who where when why can could should would my from about"
    " an a and for is do i give tell your to write explain"
)

_OPENING = _phrase(
    r"\W*(?:(?:and|but|or|so|then|also|plus|too|ok|okay|yes|yeah|no|nope|sure|thanks|thank you"
    r"|great|good|nice|perfect|cool|hmm|wait|actually|instead|otherwise|alternatively|because|next"
    r"|again|now|continue|go on|go ahead|keep going|what about|how about|what else|why not|how so"
    r"|how come|in that case|if so|if not|still|besides|furthermore|moreover|however|therefore"
    r"|except|rather|apart from|more|another|anything|something|nothing|everything|not|what if)\b"
    # A preposition opens a whole question only where a comma closes what it opened.
    r"|(?:for|with|without|in|on|as|to|from|at|by|about|using)\b(?![^?.!]*,\s*\w))"
)
# What is talked about once it has been said, and what tells one of them apart.
_SAID = (
    r"(?:ones?|options?|items?|points?|steps?|parts?|examples?|paragraphs?|sentences?|versions?"
    r"|answers?|questions?|lines?|lists?|responses?|repl(?:y|ies)|ideas?|suggestions?|problems?"
    r"|texts?|code|function|script|topic|story|poem|essay|article|passage|solutions?|scenario|draft"
    r"|summary|results?|output|tables?|explanation|statements?|conversation|equations?|calculation"
    r"|outline|tasks?|instructions?|two|three|four|five)"
)
_WHICH = (
    r"(?:first|second|third|fourth|fifth|sixth|last|next|previous|preceding|former|latter|others?"
    r"|above|below|following|remaining|rest|opposite|original|earlier|prior|aforementioned|given)"
)
_REFERENCE = _phrase(
    rf"\b(?:the|your)\s+{_WHICH}(?:\s+(?:\w+\s+)?{_SAID}\b|{_END})"
    r"|\bthe\s+(?:former|latter|others?|above|rest)\b(?!\s+of\b)"
    rf"|\byour\s+(?:\w+\s+)?{_SAID}\b|\bthe\s+same\b(?!\s+(?:time|as)\b)"
    r"|\b(?:option|item|point|step|number|part|example|question|answer|line|paragraph|choice)\s+"
    r"(?:\d+|[b-h]|one|two|three|four|five)\b"
    rf"|\b(?:that|which|another|other|each|any|an?\s+\w+)\s+ones?\b|\bone{_END}"
    r"|\b(?:else|again|instead|likewise|respectively|previously|aforementioned|as\s+well|same\s+\w+)\b"
    rf"|\b(?:too|so|there|here|of\s+(?:all|each|both)){_END}|\bdo\s+(?:so|the\s+opposite)\b"
    r"|\byou(?:'ve|\s+have|\s+had|\s+just)?\s+(?:said|wrote|gave|given|listed|told|described"
    r"|suggested|provided|made|used|created|proposed|mentioned|written|outlined)\b"
    r"|\b(?:more|other|another|further|additional|different|similar)\s+(?:examples?|details?|ways?"
    r"|information|ideas?|options?|suggestions?|reasons?|alternatives?|times?)\b"
    r"|\b(?:tell|give|show|explain)\s+(?:me\s+|us\s+)?(?:\w+\s+)?(?:more|another|others?)\b"
)
_ORDER = _phrase(
    r"\b(?:translate|summari[sz]e|rewrite|rephrase|reword|shorten|expand|elaborate|continue|repeat"
    r"|clarify|simplify|retry|regenerate|redo|reformulate|revise|edit|modify|extend|proceed|convert"
    rf"|refine)(?:{_END}|\s+(?:in|to|into|for|as|with|by|on|upon|please|more|briefly|using|and)\b)"
)
_COMPARATIVE = _phrase(
    r"\b(?:shorter|longer|cheaper|smaller|bigger|faster|slower|simpler|easier|harder|newer|older"
    r"|larger|higher|lower|stronger|weaker|nicer|clearer|better|worse|(?:more|less)\s+\w+)\b"
)
_STANDARD = _phrase(r"\bthan\b|\bor\b|\bhow\s+(?:to|do|can|could|should)\b")

_CLAUSE_START = _phrase(
    r"[,;:.!?()\n]+|\b(?:and|or|but|if|when|because|that|which|who|whose|so|then|after|before|while"
    r"|since|unless|until|although|though|where|once)\b"
)
_PRONOUN = _phrase(
    r"\b(?:it|itself|he|him|she|her|hers|they|them|theirs|themselves|both|neither)\b"
)
_POSSESSIVE = _phrase(r"\b(?:its|his|their)\b")
# "It" that stands for nothing.
_EXPLETIVE = _phrase(
    r"\b(?:is|was|will|would|does|did|could|can|might)\s+it\s+(?:be\s+|ever\s+|really\s+)?(?:possible"
    r"|safe|legal|illegal|ok|okay|good|bad|worth|hard|easy|difficult|necessary|healthy|normal|true"
    r"|rude|important|take|cost|make\s+sense)\b(?=\s+\w)"
    r"|\bwhat\s+time\s+is\s+it\s+in\b|\bwhat\s+is\s+it\s+like\s+to\b|\bit\s+takes?\b"
)
_ANTECEDENT = re.compile(
    r"\b(?i:an?|my|our|every|each|some|several|many|people|two|three|\d+)\s+\w{2,}"
    r"|(?<=[\w,'] )[A-Z]\w+|\b(?i:the)\s+(?:\w+\s+){1,3}(?i:of)\s+\w+"
)
_DEMONSTRATIVE = _phrase(
    r"\b(?:this|these|those)\b(?!\s+(?:year|month|week|weekend|morning|afternoon|evening|summer"
    r"|winter|spring|autumn|century|decade|season)\b)"
    # "That" ends or opens a clause, or is what an order or a question is about; elsewhere it
    # joins a clause to a noun or a verb ("a book that explains", "I think that").
    rf"|\bthat(?:'s)?{_END}|(?:^|[.?!]\s+)that\b|\b(?:is|was|does|did|do|about|like|for|with|of|to"
    r"|than|from|translate|explain|repeat|summari[sz]e|rewrite|rephrase|shorten|expand|convert|write"
    r"|put|change|make|describe|use|try|fix)\s+that\b(?!\s+(?:i|you|we|he|she|they|it)\b)"
)
# What "this" points to stands in the turn itself.
_TEXT_FOLLOWS = re.compile(r":\s*\S+(?:\s+\S+){2}")
_DEFINITE = _phrase(r"\bthe\s+")
_TOLD_APART_BY = _vocabulary("of between that which who whose")
_UNIQUE = _vocabulary(
    "sun moon earth world internet sky sea ocean us uk usa un eu weather time future past universe"
    " web day night morning evening"
)
_SUPERLATIVES = _vocabulary("most least best worst only main")
# How far behind "the" something must stand that tells its noun apart.
_REACH = 5  # words
_REACH_CHARACTERS = 80
_SENTENCE_END = re.compile(r"[?.!;\n]")


def why_not_standalone(turn: str) -> str:
    """What in a turn leans on the turns before it, or "" when it stands alone.

    Quotes words of the turn, so the result is content: for who asks why, never
    for telemetry.
    """
    if len(turn) > MAX_CHARACTERS:
        return f"longer than {MAX_CHARACTERS} characters"
    text = turn.strip().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return next(_reasons(text, _words(text)), "")


def _reasons(text: str, words: list[str]) -> Iterator[str]:
    content = [word for word in words if word not in _FUNCTION_WORDS]
    if len(words) < _MIN_WORDS or len(content) < _MIN_CONTENT_WORDS:
        yield "too few words of its own"
    if not _ENGLISH.intersection(words):
        yield "no English that the rules can read"
    yield from _found(_OPENING.match(text), "continues with")
    yield from _found(_REFERENCE.search(text), "refers to")
    yield from _found(_ORDER.search(text), "an order without its object:")
    yield from _comparatives(text)
    yield from _pronouns(text)
    if not _TEXT_FOLLOWS.search(text):
        yield from _found(_DEMONSTRATIVE.search(text), "points to")
    yield from _definite_nouns(text)


def _comparatives(text: str) -> Iterator[str]:
    found = _COMPARATIVE.search(text)
    if found and not _STANDARD.search(text):
        yield from _found(found, "compares without a standard:")


def _pronouns(text: str) -> Iterator[str]:
    """Pronouns for which no earlier clause, and possessives for which nothing before, names one."""
    text = _EXPLETIVE.sub(" ", text)
    named = _ANTECEDENT.search(text)
    for pronoun in _PRONOUN.finditer(text):
        if not named or not _CLAUSE_START.search(text, named.end(), pronoun.start() + 1):
            yield from _found(pronoun, "without an antecedent:")
    for pronoun in _POSSESSIVE.finditer(text):
        if not named or named.end() > pronoun.start():
            yield from _found(pronoun, "without an antecedent:")


def _definite_nouns(text: str) -> Iterator[str]:
    """Nouns with "the" that nothing in the turn tells apart: "the price", "the side effects"."""
    said: set[str] = set()
    read_to = 0
    for article in _DEFINITE.finditer(text):
        said.update(_words(text[read_to : article.start()]))
        read_to = article.end()
        sentence = _SENTENCE_END.split(text[read_to : read_to + _REACH_CHARACTERS], maxsplit=1)[0]
        reach = [match.group() for match in _WORD.finditer(sentence)][:_REACH]
        if reach and reach[0].lower() not in said and not _is_told_apart(reach):
            yield f"a definite noun that nothing tells apart: 'the {reach[0]}'"


def _is_told_apart(words: list[str]) -> bool:
    lower = [word.lower() for word in words]
    return (
        lower[0] in _UNIQUE
        or lower[0] in _SUPERLATIVES
        or lower[0].endswith("est")
        or any(word[0].isupper() or word[0].isdigit() for word in words[:3])
        or bool(_TOLD_APART_BY.intersection(lower[1:]))
    )


def _words(text: str) -> list[str]:
    return [match.group().lower() for match in _WORD.finditer(text)]


def _found(match: re.Match[str] | None, what: str) -> Iterator[str]:
    if match:
        yield f"{what} {match.group().strip()!r}"

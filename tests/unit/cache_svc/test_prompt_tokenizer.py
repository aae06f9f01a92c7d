"""The sidecar's ids are those of the worker, whatever the prompt."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from cache_svc.prompt_tokenizer import (
    BYTE_TOKENIZER_FILE,
    CONFIG_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    Fingerprints,
    PromptTokenizer,
    TokenizerRefused,
    read_tokenizer,
)
from cache_svc.segment_cache import LINE_CUTTING_PATTERNS, SegmentCache
from inference_svc.engine import Chat, ChatMessage, Tool
from inference_svc.engines.gguf import read_gguf
from inference_svc.engines.gguf_tokenizer import GgufTokenizer
from sidecache.errors import SidecacheError
from sidecache.v1 import inference_pb2

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n"
    "{% endfor %}<|start|>assistant:"
)
CORPUS = [
    "Compose an engaging travel blog post about a recent trip to Hawaii.",
    "  def f(x):\n\treturn x ** 2  # Ünïcödé, naïve café, 東京 🗼\n\n\n",
    "If 3.14159 is pi, what are 2,718,281.828 and -1e-9? <|im_start|>user<|im_end|>",
    "a" * 500,
    " \n\t " * 40,
    "é́́ ﷺ \u200b\u200d 👩‍👩‍👧‍👦 \u200b ½ ﬁ",
]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def small_tokenizer(*added: AddedToken) -> Tokenizer:
    """A byte-level tokenizer, trained on the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    marks = [AddedToken(mark, normalized=False) for mark in ("<|start|>", "<|end|>", "<|end|>>")]
    tokenizer.add_special_tokens([*marks, *added])
    return tokenizer


TOKENIZER = small_tokenizer()


def published(tokenizer: Tokenizer = TOKENIZER) -> tuple[dict[str, bytes], Fingerprints]:
    """What a worker with this tokenizer would publish."""
    content = tokenizer.to_str().encode()
    files = {
        TOKENIZER_FILE: content,
        TEMPLATE_FILE: TEMPLATE.encode(),
        CONFIG_FILE: json.dumps({"bos_token": {"content": "<|end|>"}, "other": 1}).encode(),
    }
    return files, Fingerprints(sha256(content), sha256(TEMPLATE.encode()))


def pattern_tokenizer(pattern: str) -> Tokenizer:
    """The small tokenizer, cutting words as another family does."""
    tokenizer = small_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


DIGITS = small_tokenizer()
DIGITS.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), TOKENIZER.pre_tokenizer]
)
FAMILIES = [TOKENIZER, DIGITS, *map(pattern_tokenizer, LINE_CUTTING_PATTERNS)]
LINES = st.sampled_from(
    [
        "\n",
        "\n",
        "\n",
        "x",
        " ",
        "\r\n",
        "\t",
        "};",
        "it's",
        "12345",
        "  return",
        "é",
        "\u3000",
        "'",
    ]
)


@given(
    lines=st.lists(LINES, max_size=60),
    grown=st.lists(LINES, max_size=20),
    family=st.sampled_from(FAMILIES),
)
@settings(max_examples=400, deadline=None)
def test_lines_put_together_are_the_whole(
    lines: list[str], grown: list[str], family: Tokenizer
) -> None:
    """Long parts are cut at ends of lines only where the tokenizer cuts as well."""
    cache = SegmentCache(family, 1 << 16)
    filler = "a line of text; " * 16
    for text in ("".join(lines), "".join(lines + grown)):
        whole = filler + text + filler + text + "\n" + text
        expected = family.encode(whole, add_special_tokens=False).ids
        assert list(cache.encode(whole, "")) == expected


def test_a_text_that_grows_is_found_again() -> None:
    """Of a log with one more line, only the end is tokenized."""
    for family in FAMILIES:
        cache = SegmentCache(family, 1 << 20)
        log = "".join(f"{number}: something happened here\n" for number in range(200))
        cache.encode(log, "")
        before = cache.size
        cache.encode(log + "one more\n", "")
        assert cache.size - before < 2_000


PIECES = st.sampled_from(
    ["<|start|>", "<|end|>", "<|end|>>", "<|", ">", "user\n", " ", "\n", "a" * 70, *CORPUS]
)


@given(pieces=st.lists(PIECES, max_size=12), text=st.text(max_size=80))
@settings(max_examples=300)
def test_parts_put_together_are_the_whole(pieces: list[str], text: str) -> None:
    """Cut at special tokens, kept and found again, a text has the ids it has in one piece."""
    cache = SegmentCache(TOKENIZER, 1 << 16)
    whole = "".join([*pieces, text, *pieces])
    expected = TOKENIZER.encode(whole, add_special_tokens=False).ids
    for _ in range(2):
        assert list(cache.encode(whole, "")) == expected
    assert cache.size <= 1 << 16


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized"])
def test_tokens_that_reach_beyond_themselves_are_not_cut_at(flag: str) -> None:
    """Then whole texts are tokenized, and the ids are right all the same."""
    tokenizer = small_tokenizer(AddedToken("<mask>", **{flag: True}))
    cache = SegmentCache(tokenizer, 1 << 16)
    text = "word " * 30 + " <mask> " + "word " * 30
    assert list(cache.encode(text, "")) == tokenizer.encode(text, add_special_tokens=False).ids
    assert cache.size == 0


def test_a_normalizer_or_a_space_at_the_beginning_is_not_cut_apart() -> None:
    """What is done to a text as a whole is done to the whole text."""
    normalized = small_tokenizer()
    normalized.normalizer = normalizers.Strip()
    spaced = small_tokenizer()
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    text = "word " * 30 + "<|start|>word " * 30
    for tokenizer in (normalized, spaced):
        cache = SegmentCache(tokenizer, 1 << 16)
        assert list(cache.encode(text, "")) == tokenizer.encode(text, add_special_tokens=False).ids
        assert cache.size == 0


def test_kept_parts_are_bounded_and_kept_apart_by_salt() -> None:
    """Parts without end take no memory without end; another salt finds none of them."""
    cache = SegmentCache(TOKENIZER, 4096)
    for number in range(200):
        cache.encode(f"<|start|>{number} " + "word " * 20, "acme")
    assert 0 < cache.size <= 4096
    before = cache.size
    own = SegmentCache(TOKENIZER, 1 << 16)
    own.encode("word " * 20, "acme")
    before = own.size
    own.encode("word " * 20, "umbrella")
    assert own.size == 2 * before


def test_named_tokens_and_turns_are_rendered() -> None:
    """bos_token may be described as Hugging Face's files do it."""
    tokenizer = read_tokenizer(*published(), kept_bytes=1 << 16)
    chat = inference_pb2.Chat(messages=[inference_pb2.ChatMessage(role="user", content="hi")])
    text = "<|end|><|start|>user\nhi<|end|>\n<|start|>assistant:"
    assert list(tokenizer.encode_chat(chat)) == TOKENIZER.encode(text).ids


def test_training_settings_neither_cut_nor_fill_a_prompt() -> None:
    """A tokenizer.json may truncate and pad, which serving does not."""
    tokenizer = small_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    read = read_tokenizer(*published(tokenizer))
    assert list(read.encode_text(CORPUS[0])) == TOKENIZER.encode(CORPUS[0]).ids


@pytest.mark.parametrize(
    "change",
    [
        {TOKENIZER_FILE: b"{}"},
        {TOKENIZER_FILE: b"\xff"},
        {TEMPLATE_FILE: b"{% for %}"},
        {TEMPLATE_FILE: b"other"},
        {CONFIG_FILE: b"[]"},
        {CONFIG_FILE: b"{"},
        {BYTE_TOKENIZER_FILE: b'{"kind":"utf16"}'},
        {BYTE_TOKENIZER_FILE: b'{"kind":"utf8-bytes","chat":"role: content"}'},
    ],
)
@pytest.mark.parametrize("admits_it", [False, True])
def test_files_that_are_damaged_or_others_are_refused(
    change: dict[str, bytes], admits_it: bool
) -> None:
    """Wrong ids are worse than none; even where the fingerprints admit the damage."""
    files, announced = published()
    files |= change
    changed = next(iter(change))
    if admits_it and changed in {TOKENIZER_FILE, TEMPLATE_FILE} and files[changed] != b"other":
        announced = Fingerprints(sha256(files[TOKENIZER_FILE]), sha256(files[TEMPLATE_FILE]))
    with pytest.raises(TokenizerRefused):
        read_tokenizer(files, announced)


def test_without_a_template_texts_are_tokenized_and_chats_refused() -> None:
    """A model that has none."""
    files, announced = published()
    del files[TEMPLATE_FILE]
    tokenizer = read_tokenizer(files, announced)
    assert list(tokenizer.encode_text("hi")) == TOKENIZER.encode("hi").ids
    with pytest.raises(SidecacheError):
        tokenizer.encode_chat(inference_pb2.Chat())


@pytest.fixture(scope="module")
def engine_and_sidecar(smollm2_path: Path) -> tuple[GgufTokenizer, PromptTokenizer]:
    """The embedded engine's own tokenizer, and the sidecar's from the files it publishes."""
    own = GgufTokenizer(read_gguf(smollm2_path))
    announced = Fingerprints(own.fingerprint, own.template_fingerprint)
    return own, read_tokenizer(own.files, announced, kept_bytes=1 << 20)


def test_ids_are_the_embedded_engines_own(
    engine_and_sidecar: tuple[GgufTokenizer, PromptTokenizer],
) -> None:
    """Texts, chats and tools; the growing chat of many turns too, whose parts are kept."""
    own, sidecar = engine_and_sidecar
    for text in CORPUS:
        assert list(sidecar.encode_text(text)) == own.encode(text)
    turns: list[ChatMessage] = []
    for number, text in enumerate(CORPUS * 2):
        turns.append(ChatMessage(("system", "user", "assistant")[number % 3], text))
        messages = [inference_pb2.ChatMessage(role=t.role, content=t.content) for t in turns]
        ids = sidecar.encode_chat(inference_pb2.Chat(messages=messages))
        assert list(ids) == own.encode(Chat(tuple(turns)))
    schema = '{"type": "object", "properties": {"city": {"type": "string"}}}'
    chat = inference_pb2.Chat(
        messages=messages,
        tools=[inference_pb2.Tool(name="w", description="d", parameters_json_schema=schema)],
    )
    tools = (Tool("w", "d", schema),)
    assert list(sidecar.encode_chat(chat)) == own.encode(Chat(tuple(turns), tools))

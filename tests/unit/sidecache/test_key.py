"""The canonical request key."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecache.key import RequestKey, is_repeatable, request_key, why_not_compared
from sidecache.v1 import inference_pb2 as pb

ROOT = Path(__file__).resolve().parents[3]

# Written down once, on CPython 3.11: a change here makes every stored answer unfindable
# and needs a new KEY_VERSION.
GOLDEN = {
    "chat": (
        "a9eb05aa85e70814eacb085a94b70a0d706485eb3bcc813a7fddbfe3a142911c",
        "4c8d3f3f5e2bb8fb595eb0fc9d6c517fc89afeb4c99d655ff233fc07fe401b1d",
    ),
    "text": (
        "6edb8c57956d2e592bad54a462e1f92841e67112306f2cfa335e020639f8ff9f",
        "f6700280684c0ce8a5662e114b8d3e812ce888ed100e79403190413b7d48a09f",
    ),
    "token_ids": (
        "5f328167830e6fa9ad21dc56d7e22d67df56b504ec592eb786280584bc5a6580",
        "a2dbc155e5fee27271f382d5e349f023f37ff1d89d16a447a4ad4ecc09623ff8",
    ),
}


def chat(*turns: tuple[str, str], **fields: object) -> pb.GenerateRequest:
    messages = [pb.ChatMessage(role=role, content=content) for role, content in turns]
    fields = {"max_tokens": 16, "n": 1} | fields
    return pb.GenerateRequest(chat=pb.Chat(messages=messages), **fields)  # type: ignore[arg-type]


def key(request: pb.GenerateRequest, tenant: str = "acme", revision: str = "r1") -> RequestKey:
    return request_key(request, tenant=tenant, model="m", revision=revision)


GOLDEN_REQUESTS = {
    "chat": chat(
        ("system", "Be brief."),
        ("user", "héllo 👋"),
        sampling=pb.SamplingParameters(temperature=0.7, seed=7, top_p=0.9),
        stop=["b", "a"],
    ),
    "text": pb.GenerateRequest(text="Once upon", max_tokens=4, n=1),
    "token_ids": pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 2, 3]), max_tokens=4, n=1),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    """The key of a request never changes by accident."""
    found = key(GOLDEN_REQUESTS[name])
    assert (found.scope.hex(), found.exact.hex()) == GOLDEN[name]


_OTHER_PROCESS = """
import json, sys
from tests.unit.sidecache.test_key import GOLDEN_REQUESTS, key
found = {n: (key(r).scope.hex(), key(r).exact.hex()) for n, r in GOLDEN_REQUESTS.items()}
print(json.dumps(found))
"""


@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_same_in_every_process(hash_seed: str) -> None:
    """No hash of this process's own finds its way into a key."""
    out = subprocess.run(
        [sys.executable, "-c", _OTHER_PROCESS],
        env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert {name: tuple(pair) for name, pair in json.loads(out).items()} == GOLDEN


_OTHER_PYTHON = """
import hashlib, struct
def join(parts):
    kept = list(parts)
    return struct.pack(f"<{len(kept) + 1}Q", len(kept), *map(len, kept)) + b"".join(kept)
hash = lambda *parts: hashlib.blake2b(b"".join(parts), digest_size=32, person=b"sidecache-key")
numbers = struct.pack("<4Id2d", 1, 4, 1, 0, 1.0, 0.0, 0.0)
fields = [numbers, b"", b"acme", b"", b"m", b"r1", b"", b"text", b"", b"", join([]), join([])]
scope = hash(join(fields))
print(scope.hexdigest(), hash(join([scope.digest(), b"text", b"Once upon"])).hexdigest())
"""


@pytest.mark.parametrize("python", ["python3.10", "python3.11", "python3.12", "python3.13"])
def test_same_in_every_python(python: str) -> None:
    """The key can be computed from its description alone, by any Python there is."""
    found = shutil.which(python)
    usable = found and subprocess.run([found, "-c", ""], capture_output=True, check=False)
    if not found or not usable or usable.returncode:
        python, found = "this Python", sys.executable
    out = subprocess.run([found, "-c", _OTHER_PYTHON], check=True, capture_output=True, text=True)
    assert tuple(out.stdout.split()) == GOLDEN["text"]


CHANGES: dict[str, Callable[[pb.GenerateRequest], object]] = {
    "history": lambda r: setattr(r.chat.messages[0], "content", "Be verbose."),
    "role in history": lambda r: setattr(r.chat.messages[0], "role", "user"),
    "tool": lambda r: r.chat.tools.add(name="search"),
    "max_tokens": lambda r: setattr(r, "max_tokens", 17),
    "n": lambda r: setattr(r, "n", 2),
    "logprobs 0": lambda r: setattr(r, "logprobs", 0),
    "stop": lambda r: r.stop.append("END"),
    "guided": lambda r: setattr(r.guided, "regex", "a+"),
    "adapter": lambda r: setattr(r, "adapter", "lora"),
    "temperature": lambda r: setattr(r.sampling, "temperature", 0.5),
    "presence": lambda r: setattr(r.sampling, "presence_penalty", 0.5),
    "frequency": lambda r: setattr(r.sampling, "frequency_penalty", 0.5),
    "repetition": lambda r: setattr(r.sampling, "repetition_penalty", 1.5),
    "namespace": lambda r: setattr(r.cache, "namespace", "other"),
}


def base() -> pb.GenerateRequest:
    return chat(("system", "Be brief."), ("user", "hello"))


@pytest.mark.parametrize("change", CHANGES)
def test_scope_holds_everything_but_the_last_turn(change: str) -> None:
    """Whatever changes the answer changes the scope, so similarity cannot cross it."""
    changed = base()
    CHANGES[change](changed)
    assert key(changed).scope != key(base()).scope


def test_scopes_of_changes_all_differ() -> None:
    """No two kinds of change are written the same way."""
    scopes = set()
    for change in CHANGES.values():
        changed = base()
        change(changed)
        scopes.add(key(changed).scope)
    assert len(scopes) == len(CHANGES)


def test_tenant_and_revision_are_scope() -> None:
    """Another tenant or checkpoint never shares a scope."""
    scopes = {key(base()).scope, key(base(), tenant="b").scope, key(base(), revision="r2").scope}
    assert len(scopes) == 3


def test_the_last_turn_is_exact_only() -> None:
    """Two questions in one conversation share the scope and nothing else."""
    one, two = chat(("user", "one")), chat(("user", "two"))
    assert key(one).scope == key(two).scope
    assert key(one).exact != key(two).exact
    assert key(one).semantic_text == "one"


def test_the_same_last_message_after_another_history_is_another_scope() -> None:
    """'And for children?' means something else after every question."""
    fever = chat(("user", "Aspirin?"), ("assistant", "Yes."), ("user", "And for children?"))
    rides = chat(("user", "Tickets?"), ("assistant", "5."), ("user", "And for children?"))
    assert key(fever).scope != key(rides).scope


HISTORY = (("user", "What is the dose of aspirin?"), ("assistant", "500 mg."))


def test_a_turn_that_leans_on_its_history_is_not_compared() -> None:
    """'And for children?' has no semantic text behind a history, and keeps its exact key."""
    leaning = chat(*HISTORY, ("user", "And for children?"))
    whole = chat(*HISTORY, ("user", "What is the capital of France?"))
    assert key(leaning).semantic_text == ""
    assert key(whole).semantic_text == "What is the capital of France?"
    # One scope: only what is compared differs, so no key written before has moved.
    assert key(leaning).scope == key(whole).scope
    assert key(leaning).exact != key(whole).exact
    assert "leans on those before it" in why_not_compared(leaning)
    assert why_not_compared(whole) == ""


@pytest.mark.parametrize("before", [(), (("system", "Be brief."),)], ids=["first", "system"])
def test_a_first_turn_always_stands_alone(before: tuple[tuple[str, str], ...]) -> None:
    """A system prompt is no history: nothing was said before that the turn could lean on."""
    assert key(chat(*before, ("user", "And for children?"))).semantic_text == "And for children?"


def test_what_does_not_change_an_answer_is_not_in_the_key() -> None:
    """Priority, cache control and a continuation leave the key alone."""
    other = base()
    other.priority = 9
    other.cache.no_store = True
    other.cache.min_similarity = 0.99
    other.cache.tags.append("t")
    assert key(other) == key(base())


def test_greedy_ignores_the_sampler() -> None:
    """top_p, top_k and seed do not split the answers of greedy decoding."""
    other = base()
    other.sampling.top_p, other.sampling.top_k, other.sampling.seed = 0.5, 3, 1
    assert key(other) == key(base())
    for request in (other, base()):
        request.sampling.temperature = 1
    sampled = base()
    sampled.sampling.temperature = 1
    assert key(other) != key(sampled)


def test_unseeded_differs_from_seed_zero() -> None:
    """An unset seed is not seed 0."""
    unseeded, zero = base(), base()
    unseeded.sampling.temperature = zero.sampling.temperature = 1
    zero.sampling.seed = 0
    assert key(unseeded) != key(zero)
    assert not is_repeatable(unseeded)
    assert is_repeatable(zero)
    assert is_repeatable(base())


@pytest.mark.parametrize(
    "request_",
    [
        pb.GenerateRequest(text="hello", max_tokens=1, n=1),
        pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5]), max_tokens=1, n=1),
        chat(("user", "hi"), ("assistant", "hello")),
    ],
    ids=["text", "ids", "ends with the assistant"],
)
def test_no_last_user_turn_no_semantic_text(request_: pb.GenerateRequest) -> None:
    """Only a chat that ends with the user has something to compare by meaning."""
    assert key(request_).semantic_text == ""


def test_kinds_of_prompt_never_collide() -> None:
    """The same letters as a completion, a chat or ids are three requests."""
    text = pb.GenerateRequest(text="a", max_tokens=16, n=1)
    ids = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[97]), max_tokens=16, n=1)
    assert len({key(text).exact, key(ids).exact, key(chat(("user", "a"))).exact}) == 3


turns = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=6)), max_size=4
)


@given(turns, turns, st.lists(st.text(max_size=3), max_size=3))
def test_different_conversations_have_different_keys(
    one: list[tuple[str, str]], two: list[tuple[str, str]], stop: list[str]
) -> None:
    """Length prefixes leave one reading: no shifting of text between fields collides."""
    a, b = chat(*one, ("user", "q"), stop=stop), chat(*two, ("user", "q"), stop=stop)
    assert (key(a).exact == key(b).exact) == (one == two)

"""The sidecar's ids against the embedded engine's own, and how long they take.

    python -m benchmarks.prompt_tokens --texts FILE.jsonl[.gz] ... [--logs FILE] --json -

Every text is tokenized as it stands and as a chat's only turn; then all texts are put
into chats of 20 turns, tokenized again after each turn as a client would send them.
``--logs`` names a file whose rows have a field ``input``: whole texts as an agent sends
them, each mostly the one before and some lines more.
``equal`` counts prompts whose ids are, one by one, those of the engine. Times are of
one thread, beside the same sidecar that keeps nothing of earlier prompts.
"""

import argparse
import gzip
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.real_texts import SHIPPED_TEXTS, read_texts
from benchmarks.statistics import quantile
from cache_svc.prompt_tokenizer import Fingerprints, PromptTokenizer, read_tokenizer
from inference_svc.engine import Chat, ChatMessage
from inference_svc.engines.gguf import read_gguf
from inference_svc.engines.gguf_tokenizer import GgufTokenizer
from sidecache import weights
from sidecache.v1 import inference_pb2

TURNS = 20
KEPT_BYTES = 16 << 20


def growing_chats(texts: list[str]) -> Iterator[list[str]]:
    """Chats as they are sent: one turn more each time, up to TURNS."""
    for start in range(0, len(texts), TURNS):
        chat = texts[start : start + TURNS]
        for length in range(1, len(chat) + 1, 2):
            yield chat[:length]


def wire_chat(turns: list[str]) -> inference_pb2.Chat:
    """Turns of user and assistant in turn."""
    roles = ("user", "assistant")
    messages = [
        inference_pb2.ChatMessage(role=roles[number % 2], content=text)
        for number, text in enumerate(turns)
    ]
    return inference_pb2.Chat(messages=messages)


def own_ids(engine: GgufTokenizer, chat: inference_pb2.Chat) -> list[int]:
    """What the engine makes of a chat."""
    return engine.encode(Chat(tuple(ChatMessage(m.role, m.content) for m in chat.messages)))


def timed(
    tokenizer: PromptTokenizer, chats: Iterable[inference_pb2.Chat]
) -> tuple[list[float], list[list[int]]]:
    """Milliseconds and ids of each chat."""
    took, ids = [], []
    for chat in chats:
        started = time.perf_counter()
        made = tokenizer.encode_chat(chat)
        took.append(1e3 * (time.perf_counter() - started))
        ids.append(list(made))
    return took, ids


def measure_logs(logs: list[str], model: Path) -> dict[str, float]:
    """Equality and times of texts that grow at their ends."""
    engine = GgufTokenizer(read_gguf(model))
    announced = Fingerprints(engine.fingerprint, engine.template_fingerprint)
    figures: dict[str, float] = {"logs": len(logs)}
    for name, kept_bytes in (("log_nothing_kept", 0), ("log", KEPT_BYTES)):
        tokenizer = read_tokenizer(engine.files, announced, kept_bytes)
        cpu_ms, ids = [], []
        for log in logs:
            started = time.thread_time()
            made = tokenizer.encode_text(log)
            cpu_ms.append(1e3 * (time.thread_time() - started))
            ids.append(list(made))
        figures[f"{name}_cpu_p50_ms"] = round(quantile(cpu_ms, 0.5), 3)
        figures[f"{name}_cpu_p90_ms"] = round(quantile(cpu_ms, 0.9), 3)
        figures[f"{name}_tokens_per_cpu_s"] = round(sum(map(len, ids)) / (sum(cpu_ms) / 1e3))
    figures["log_tokens_mean"] = round(sum(map(len, ids)) / len(ids))
    figures["logs_equal"] = sum(engine.encode(log) == i for log, i in zip(logs, ids, strict=True))
    return figures


def read_logs(file: Path, count: int) -> list[str]:
    """The first ``input`` fields of a .jsonl.gz file."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["input"] for line in itertools.islice(lines, count)]


def measure(texts: list[str], model: Path) -> dict[str, float]:
    """Equality and times."""
    engine = GgufTokenizer(read_gguf(model))
    announced = Fingerprints(engine.fingerprint, engine.template_fingerprint)
    keeping = read_tokenizer(engine.files, announced, KEPT_BYTES)
    plain = read_tokenizer(engine.files, announced, 0)
    equal = sum(list(keeping.encode_text(text)) == engine.encode(text) for text in texts)
    single = [wire_chat([text]) for text in texts]
    growing = [wire_chat(turns) for turns in growing_chats(texts)]
    single_ms, single_ids = timed(plain, single)
    plain_ms, _ = timed(plain, growing)
    keeping_ms, growing_ids = timed(keeping, growing)
    for chats, made in ((single, single_ids), (growing, growing_ids)):
        equal += sum(own_ids(engine, chat) == ids for chat, ids in zip(chats, made, strict=True))
    tokens = sum(map(len, single_ids))
    return {
        "texts": len(texts),
        "prompts": 2 * len(texts) + len(growing),
        "equal": equal,
        "tokens_per_s": round(tokens / (sum(single_ms) / 1e3)),
        "growing_chat_tokens_mean": round(sum(map(len, growing_ids)) / len(growing)),
        "growing_chat_p50_ms": round(quantile(keeping_ms, 0.5), 3),
        "growing_chat_p99_ms": round(quantile(keeping_ms, 0.99), 3),
        "nothing_kept_p50_ms": round(quantile(plain_ms, 0.5), 3),
        "nothing_kept_p99_ms": round(quantile(plain_ms, 0.99), 3),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, nargs="+", default=[SHIPPED_TEXTS])
    parser.add_argument("--logs", type=Path, help="a .jsonl.gz file with the field input")
    parser.add_argument("--log-count", type=int, default=100)
    parser.add_argument("--json", metavar="FILE", default="-", help="where to write; - is stdout")
    options = parser.parse_args()
    figures = measure(read_texts(options.texts), weights.locate("smollm2-135m-instruct"))
    if options.logs is not None:
        logs = read_logs(options.logs, options.log_count)
        figures |= measure_logs(logs, weights.locate("smollm2-135m-instruct"))
    text = json.dumps(figures, indent=2)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()

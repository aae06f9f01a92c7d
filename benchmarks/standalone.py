"""How many texts the rules for later turns would let be compared by meaning, and why not.

``python -m benchmarks.standalone FILE.jsonl --field text`` asks of each text as if it were
a later turn of a conversation; ``--field turns.1`` takes the second of a list of turns.
Prints one JSON object: texts, compared, share, refusals by kind, CPU µs a text.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sidecache.standalone import why_not_standalone


def read_texts(path: Path, field: str) -> list[str]:
    """The texts of a field; a number in its path is a place in a list."""
    texts = []
    for line in path.read_text(encoding="utf-8").splitlines():
        value: Any = json.loads(line)
        for part in field.split("."):
            value = value[int(part) if part.isdecimal() else part]
        texts.append(str(value))
    return texts


def measure(texts: list[str]) -> dict[str, object]:
    """Ask of every text; CPU time counts, since other work shares the machine."""
    started_s = time.process_time()
    reasons = [why_not_standalone(text) for text in texts]
    spent_s = time.process_time() - started_s
    # What stands before the quoted words is the kind of the reason.
    kinds = Counter(reason.partition("'")[0].rstrip(" :") for reason in reasons if reason)
    compared = reasons.count("")
    return {
        "texts": len(texts),
        "compared": compared,
        "share": round(compared / len(texts), 3),
        "refused": dict(kinds.most_common()),
        "cpu_us_per_text": round(spent_s / len(texts) * 1e6, 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--field", default="text")
    arguments = parser.parse_args()
    print(json.dumps(measure(read_texts(arguments.file, arguments.field)), indent=1))

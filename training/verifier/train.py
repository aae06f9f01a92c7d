"""Train the cross-encoder's adapters on a CPU: a quarter of an hour on two cores.

python -m training.verifier.train --texts banking77.jsonl --pairs fow.jsonl \
        --base minilm.onnx --steps 1500 --out adapter.pt
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from training.verifier.cross_encoder import CrossEncoder, read_base
from training.verifier.families import Families
from training.verifier.pairs import Pair, halves, read_pairs, share

TOKENIZER = Path(__file__).parents[2] / "cache_svc" / "minilm" / "tokenizer.json"
WINDOW = 64
HELD_OUT_TEXTS = 0.1
# Characters; longer questions cost most of the time and teach no more.
MAX_TEXT = 80


def main() -> None:
    """Parse the arguments and train."""
    args = _arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    families = Families(
        texts_to_learn(args.texts), halves(read_pairs(args.pairs))[0], seed=args.seed
    )
    pairs = families.pairs(args.steps * args.batch)
    model = CrossEncoder(read_base(args.base), args.rank)
    _fit(model, pairs, args)
    learned = {n: p.detach().half() for n, p in model.named_parameters() if p.requires_grad}
    torch.save(learned, args.out)


def texts_to_learn(path: Path) -> list[tuple[str, str]]:
    """The texts of banking77 that may be learned from, with their intents."""
    rows = map(json.loads, path.read_text().splitlines())
    return [
        (r["text"], r["intent"])
        for r in rows
        if share(r["text"]) >= HELD_OUT_TEXTS and len(r["text"]) <= MAX_TEXT
    ]


def encode(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """Pieces, segments and presence of a batch, padded to its longest pair."""
    encodings = [tokenizer.encode(pair.a, pair.b) for pair in pairs]
    length = max(len(e.ids) for e in encodings)
    columns = [
        torch.tensor([row + [0] * (length - len(row)) for row in rows])
        for rows in (
            [e.ids for e in encodings],
            [e.type_ids for e in encodings],
            [e.attention_mask for e in encodings],
        )
    ]
    return columns[0], columns[1], columns[2]


def open_tokenizer() -> Tokenizer:
    """The embedder's tokenizer, cutting pairs at the window."""
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.no_padding()
    tokenizer.enable_truncation(WINDOW)
    return tokenizer


def _fit(model: CrossEncoder, pairs: list[Pair], args: argparse.Namespace) -> None:
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    rates = {True: args.rate, False: args.rate / 2}
    groups = [
        {"params": [p for n, p in trained.items() if _is_new(n) == new], "lr": rate}
        for new, rate in rates.items()
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=list(rates.values()), total_steps=args.steps, pct_start=0.1
    )
    tokenizer = open_tokenizer()
    started, mean = time.monotonic(), 0.7
    for step, batch in enumerate(_batches(pairs, args.batch, args.seed)):
        labels = torch.tensor([float(pair.same) for pair in batch])
        loss = F.binary_cross_entropy_with_logits(model(*encode(tokenizer, batch)), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        schedule.step()
        mean = 0.98 * mean + 0.02 * loss.item()
        if step % 25 == 0:  # enough to see it learn
            print(f"{step} loss {mean:.4f} {time.monotonic() - started:.0f} s", flush=True)


def _is_new(name: str) -> bool:
    """Whether a parameter starts from nothing; the norms and biases start from the embedder's."""
    return any(part in name for part in (".down", ".up", "head"))


def _batches(pairs: list[Pair], size: int, seed: int) -> Iterator[list[Pair]]:
    """Batches of pairs of like length, so that little is padding; their order is random."""
    rng = Random(seed)
    pool = size * 40
    for start in range(0, len(pairs), pool):
        chunk = sorted(pairs[start : start + pool], key=lambda p: len(p.a) + len(p.b))
        batches = [chunk[at : at + size] for at in range(0, len(chunk), size)]
        rng.shuffle(batches)
        yield from batches


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("texts", "pairs", "base", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rank", type=int, default=10)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()

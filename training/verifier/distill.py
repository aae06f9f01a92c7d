"""Distil the quick filter from the cross-encoder: it foresees the model's refusals.

    python -m training.verifier.distill --texts banking77.jsonl --pairs fow_pairs.jsonl \
        --base model.onnx --out cache_svc/pair_model/look_alike.npz --seconds 40

The pairs are those that a cache meets: each text of banking77 with its nearest ones, texts
of the families with theirs, and the families' own pairs. Nobody labels them: the
cross-encoder's logit is the target, so what the filter learns is where that refuses.
On one GPU some minutes; a CPU would take most of a day to ask the teacher. Afterwards
training.verifier.export writes the new hash into the manifest; a new cross-encoder
needs a new filter.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cache_svc.pair_scorer import MODEL_FOLDER
from training.verifier.cross_encoder import CrossEncoder, read_base
from training.verifier.families import Families
from training.verifier.pairs import halves, read_pairs
from training.verifier.piece_pairs import Texts
from training.verifier.train import texts_to_learn

WIDTH = 64
# The cross-encoder's bound (LearnedVerifier): what lies under it is refused.
BOUND = 1.5
_FLOOR = 0.55
_NEAR_TEXTS = 100
_NEAR_FAMILY = 12
_BATCH = 2048
_RATE = 2e-3


class Attention(nn.Module):  # type: ignore[misc]  # torch is absent where this is checked
    """Decomposable attention; cache_svc/look_alike_filter.py computes the same in numpy."""

    def __init__(self, words: Tensor, width: int = WIDTH) -> None:
        super().__init__()
        self.register_buffer("words", words, persistent=False)
        self.p = nn.Linear(words.shape[1], width, bias=False)
        nn.init.normal_(self.p.weight, std=0.5)
        self.conv = nn.Linear(3 * width, width)
        self.g = nn.Linear(4 * width, width)
        self.w = nn.Linear(4 * width, 1)
        self.f = nn.Sequential(nn.Linear(4 * width + 3, width), nn.ReLU(), nn.Linear(width, 1))
        self.t = nn.Parameter(torch.tensor(1.0))

    def forward(self, one: Tensor, other: Tensor, similarity: Tensor) -> Tensor:
        """Pieces of both, (batch, length), 0 where none stands; similarities (batch,)."""
        x, y = self._pieces(one), self._pieces(other)
        in_x, in_y = one > 0, other > 0
        matches = (x @ y.transpose(1, 2)) * self.t / x.shape[2] ** 0.5
        mean_x, most_x = self._side(x, in_x, y, in_y, matches)
        mean_y, most_y = self._side(y, in_y, x, in_x, matches.transpose(1, 2))
        long_x, long_y = in_x.sum(1).float(), in_y.sum(1).float()
        facts = torch.stack(
            [
                4 * similarity - 3,
                (long_x - long_y).abs() / (long_x + long_y),
                (long_x + long_y) / 40,
            ],
            1,
        )
        sides = [
            mean_x + mean_y,
            (mean_x - mean_y).abs(),
            most_x + most_y,
            (most_x - most_y).abs(),
        ]
        return self.f(torch.cat([*sides, facts], 1))[:, 0]

    def _pieces(self, ids: Tensor) -> Tensor:
        present = (ids > 0)[:, :, None]
        x = self.p(self.words[ids]) * present
        edge = torch.zeros_like(x[:, :1])
        around = torch.cat([torch.cat([edge, x[:, :-1]], 1), x, torch.cat([x[:, 1:], edge], 1)], 2)
        return x + torch.tanh(self.conv(around)) * present

    def _side(
        self, x: Tensor, in_x: Tensor, y: Tensor, in_y: Tensor, matches: Tensor
    ) -> tuple[Tensor, Tensor]:
        found = torch.softmax(matches.masked_fill(~in_y[:, None, :], -1e9), 2) @ y
        z = torch.cat([x, found, (x - found).abs(), x * found], 2)
        v = torch.relu(self.g(z))
        weight = torch.softmax(self.w(z)[:, :, 0].masked_fill(~in_x, -1e9), 1)
        most = v.masked_fill(~in_x[:, :, None], 0).amax(1)
        return (v * weight[:, :, None]).sum(1), most


def main() -> None:
    """Parse the arguments, make pairs, ask the teacher, fit, and write the weights."""
    args = _arguments()
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = read_base(args.base)
    learnt = texts_to_learn(args.texts)
    families = Families(learnt, halves(read_pairs(args.pairs))[0], seed=1000 + args.seed)
    made = families.pairs(args.families)
    texts = Texts([t for p in made for t in (p.a, p.b)] + [t.strip() for t, _ in learnt])
    texts.embed(read_teacher(base, adapted=False).to(device))
    real = texts.rows_of([t.strip() for t, _ in learnt]).unique()
    some = torch.randperm(len(texts))[: args.families // 7].to(device)
    pairs = torch.cat(
        [
            texts.nearest(real, real, _NEAR_TEXTS, _FLOOR),
            texts.nearest(some, torch.cat([some, real]), _NEAR_FAMILY, _FLOOR),
            torch.stack([texts.rows_of([p.a for p in made]), texts.rows_of([p.b for p in made])]),
        ],
        1,
    )
    target = texts.score(read_teacher(base, adapted=True).to(device), pairs)
    print(f"{pairs.shape[1]} pairs, the teacher takes {(target >= BOUND).float().mean():.2f}")
    words = torch.from_numpy(base["word.q"].astype(np.float32) * base["word.scale"])
    student = Attention(words).to(device)
    fit(student, texts, pairs, target, args.seconds)
    np.savez(args.out, **{n: v.half().cpu().numpy() for n, v in student.state_dict().items()})


def read_teacher(base: dict[str, np.ndarray], *, adapted: bool) -> CrossEncoder:
    """The cross-encoder that ships, or the embedder it was made of."""
    model = CrossEncoder(base, 12)
    if adapted:
        state = model.state_dict()
        with np.load(MODEL_FOLDER / "adapters.npz", allow_pickle=False) as file:
            for name in file.files:
                ours = name if name in state else f"layers.{name}"
                state[ours] = torch.from_numpy(file[name].astype(np.float32))
        model.load_state_dict(state)
    model.eval()
    return model


def fit(student: Attention, texts: Texts, pairs: Tensor, target: Tensor, seconds: float) -> None:
    """Learn the teacher's refusals for so long; the rate falls to nothing."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=_RATE, weight_decay=0.01)
    started, step = time.monotonic(), 0
    while (spent := (time.monotonic() - started) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1, step / 200 + 0.01) * max(0.02, 1 - spent)
        chosen = torch.randint(pairs.shape[1], (_BATCH,), device=pairs.device)
        one, other = pairs[:, chosen]
        logit = student(*texts.pieces(one, other), texts.similarity(one, other))
        loss = F.binary_cross_entropy_with_logits(logit, torch.sigmoid(target[chosen] - BOUND))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 250 == 0:
            print(f"{step} loss {loss.item():.4f}", flush=True)


def _arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("texts", "pairs", "base", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--families", type=int, default=700_000, help="pairs of the families")
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(given)


if __name__ == "__main__":
    main()

"""Texts as word pieces on one device, and pairs of them put together there."""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from cache_svc.look_alike_filter import WINDOW_TOKENS
from cache_svc.pair_scorer import TOKENIZER
from training.verifier.cross_encoder import WIDTH, CrossEncoder

_BATCH = 4096
_SEARCHED = 2000


class Texts:
    """Distinct texts, cut at the filter's window; a text is its row."""

    def __init__(self, texts: Sequence[str]) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._row = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        tokenizer = Tokenizer.from_file(str(TOKENIZER))
        tokenizer.no_padding()
        tokenizer.enable_truncation(WINDOW_TOKENS)
        self._first, self._last = (tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]"))
        encodings = tokenizer.encode_batch(list(self._row), add_special_tokens=False)
        padded = [e.ids + [0] * (WINDOW_TOKENS - len(e.ids)) for e in encodings]
        self._ids = torch.tensor(padded, device=device)
        self._long = (self._ids > 0).sum(1)
        ordered = sorted(self._row, key=str)
        rank = torch.empty(len(ordered), dtype=torch.long)
        rank[torch.tensor([self._row[t] for t in ordered])] = torch.arange(len(ordered))
        self._rank = rank.to(device)
        self._vectors = torch.empty(len(ordered), WIDTH, device=device)

    def __len__(self) -> int:
        return len(self._row)

    def rows_of(self, texts: Sequence[str]) -> Tensor:
        """Where these texts stand."""
        return torch.tensor([self._row[t] for t in texts], device=self._ids.device)

    def pieces(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Pieces of both sides, each (batch, length), 0 where none stands."""
        length = int(torch.maximum(self._long[one], self._long[other]).max())
        return self._ids[one, :length], self._ids[other, :length]

    def similarity(self, one: Tensor, other: Tensor) -> Tensor:
        """Cosine by row, (batch,)."""
        return (self._vectors[one] * self._vectors[other]).sum(1)

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is absent where this is checked
    def embed(self, model: CrossEncoder) -> None:
        """Compute all vectors: the mean over the pieces of the last layer, unit norm."""
        for rows in torch.argsort(self._long).split(_BATCH):
            pieces, _, present = self._joined(rows, None)
            x = model.word[pieces] + model.segment[0] + model.position[: pieces.shape[1]]
            x = model.norm(x)
            mask = (1.0 - present[:, None, None, :].float()) * -1e9
            for layer in model.layers:
                x = layer(x, mask)
            weight = present[:, :, None].float()
            self._vectors[rows] = F.normalize((x * weight).sum(1) / weight.sum(1), dim=1)

    def nearest(self, rows: Tensor, among: Tensor, count: int, floor: float) -> Tensor:
        """Each row with its nearest others down to a similarity, shape (2, pairs)."""
        found = []
        for part in rows.split(_SEARCHED):
            cosines = self._vectors[part] @ self._vectors[among].T
            cosines[part[:, None] == among[None, :]] = -2.0  # no text is a neighbour of its own
            best, at = cosines.topk(min(count, len(among)), dim=1)
            near = best >= floor
            found.append(torch.stack([part[:, None].expand_as(at)[near], among[at][near]]))
        return torch.cat(found, 1)

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is absent where this is checked
    def score(self, model: CrossEncoder, pairs: Tensor) -> Tensor:
        """The model's logits of pairs, shape (2, pairs)."""
        found = torch.empty(pairs.shape[1], device=pairs.device)
        for at in torch.argsort(self._long[pairs].sum(0)).split(_BATCH):
            one, other = pairs[:, at]
            turned = self._rank[one] > self._rank[other]  # alphabetical, as it serves
            first, second = torch.where(turned, other, one), torch.where(turned, one, other)
            found[at] = model(*self._joined(first, second))
        return found

    def _joined(self, one: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """[CLS] one [SEP] other [SEP], or one alone: pieces, segments, presence."""
        long = self._long[one][:, None]
        more = torch.zeros_like(long) if other is None else self._long[other][:, None] + 1
        at = torch.arange(int((long + more).max()) + 2, device=long.device)[None, :]
        rows, last = len(one), WINDOW_TOKENS - 1
        here = self._ids[one].gather(1, (at - 1).clamp(0, last).expand(rows, -1))
        pieces = torch.where((at >= 1) & (at <= long), here, torch.zeros_like(here))
        if other is not None:
            there = self._ids[other].gather(1, (at - long - 2).clamp(0, last))
            pieces = torch.where((at >= long + 2) & (at <= long + more), there, pieces)
        pieces[:, 0] = self._first
        ends = (at == long + 1) | (at == long + more + 1)
        pieces = torch.where(ends, torch.full_like(pieces, self._last), pieces)
        present = at <= long + more + 1
        return pieces, ((at >= long + 2) & present).long(), present.long()

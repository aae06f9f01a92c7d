"""What the student learns: the teacher's distribution of each next token of its answers.

Kullback-Leibler divergence from the teacher's probabilities (Hinton et al., 2015) on text
that the teacher wrote (Kim and Rush, 2016). The student is the teacher without some layers,
so below the first missing one both are the same and are run once, without gradients.
"""

import math
import random
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from training.distill.llama import TorchLlama
from training.distill.teacher import Text

_WARM_UP_STEPS = 10
_MAX_GRADIENT = 1.0


class Agreement(NamedTuple):
    """How the student follows the teacher's own answers, token by token.

    Attributes:
        divergence: mean Kullback-Leibler divergence of a token, natural.
        same: share of tokens where both think the same one likeliest.
    """

    divergence: float
    same: float


class Lesson:
    """One student at one teacher's.

    Args:
        shared: layers from the first on that both have in common, and that do not learn.
    """

    def __init__(self, teacher: TorchLlama, student: TorchLlama, shared: int) -> None:
        self._teacher = teacher
        self._student = student
        self._shared = shared

    def agreement(self, texts: Sequence[Text], batch: int) -> Agreement:
        """Measured without learning."""
        divergence, same, tokens = 0.0, 0, 0
        with torch.no_grad():
            for at in range(0, len(texts), batch):
                wanted, given = self._both(texts[at : at + batch])
                divergence += float(_divergence(wanted, given).sum())
                same += int((wanted.argmax(-1) == given.argmax(-1)).sum())
                tokens += len(wanted)
        return Agreement(divergence / tokens, same / tokens)

    def learn(
        self, texts: Sequence[Text], *, steps: int, batch: int, rate: float, limit_s: float
    ) -> int:
        """Learn until the steps are done or the time is up; how many steps it took.

        The rate rises at first, then falls along half a cosine to nothing. Of steps and
        time, whatever is nearer its end sets how far it has fallen.
        """
        draw = random.Random(0)
        optimizer = torch.optim.AdamW(self._student.learning(), lr=rate, weight_decay=0.0)
        begun = time.monotonic()
        for step in range(steps):
            done = max(step / steps, (time.monotonic() - begun) / limit_s)
            if done >= 1:
                return step
            for group in optimizer.param_groups:
                warm = min((step + 1) / _WARM_UP_STEPS, 1)
                group["lr"] = rate * warm * (1 + math.cos(math.pi * done)) / 2
            loss = _divergence(*self._both(draw.sample(list(texts), batch))).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._student.learning(), _MAX_GRADIENT)
            optimizer.step()
        return steps

    def _both(self, texts: Sequence[Text]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the answers' tokens by each; shape (tokens, vocabulary)."""
        ids, places = _padded(texts)
        with torch.no_grad():
            below = self._teacher.run(self._teacher.embed(ids), range(self._shared))
            above = self._teacher.run(below, range(self._shared, self._teacher.count))
            wanted = F.log_softmax(self._teacher.logits(above[places]), dim=-1)
        hidden = self._student.run(below, range(self._shared, self._student.count))
        return wanted, F.log_softmax(self._student.logits(hidden[places]), dim=-1)


def _divergence(wanted: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    return F.kl_div(given, wanted, log_target=True, reduction="none").sum(-1)


def _padded(texts: Sequence[Text]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of shape (texts, tokens), and a mask of the places whose next token is an answer's.

    What pads comes last, where no token of a text can see it.
    """
    longest = max(len(each.prompt) + len(each.answer) for each in texts)
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    places = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, text in enumerate(texts):
        whole = (*text.prompt, *text.answer)
        ids[row, : len(whole)] = torch.tensor(whole)
        places[row, len(text.prompt) - 1 : len(whole) - 1] = True
    return ids, places

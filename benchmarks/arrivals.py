"""Arrivals as public traces of LLM services have them: bursts over a daily-changing base.

The Azure LLM inference traces of 2023 (Patel et al., "Splitwise", ISCA 2024) and BurstGPT (Wang
et al., 2024) agree on two things that a Poisson process of one rate lacks: gaps between requests
vary more than exponentially (a gamma law fits, coefficient of variation about 2), and the rate
itself jumps for minutes to several times its base. This makes such a load from a seed;
its lengths follow the medians of the conversation trace (1,020 prompt and 129 answer tokens),
log-normally.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request.

    Attributes:
        at_s: seconds from the start.
    """

    at_s: float
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Burstiness:
    """How the load varies.

    Attributes:
        rate: requests a second outside of bursts.
        burst_factor: times that within one.
        mean_calm_s: between two bursts; exponential.
        mean_burst_s: of one; exponential.
        cv: coefficient of variation of the gaps; 1 is Poisson.
    """

    rate: float = 2.0
    burst_factor: float = 5.0
    mean_calm_s: float = 600.0
    mean_burst_s: float = 120.0
    cv: float = 2.0
    prompt_median: float = 1020.0
    answer_median: float = 129.0
    sigma: float = 0.8


def arrivals(load: Burstiness, duration_s: float, seed: int) -> Iterator[Arrival]:
    """The requests of so many seconds, in order; equal seeds give equal loads."""
    draw = random.Random(seed)  # noqa: S311 - repeatable, not secret
    shape = 1 / load.cv**2
    at_s, bursting = 0.0, False
    changes_at = draw.expovariate(1 / load.mean_calm_s)
    while True:
        rate = load.rate * (load.burst_factor if bursting else 1.0)
        at_s += draw.gammavariate(shape, 1 / (rate * shape))
        while at_s >= changes_at:
            bursting = not bursting
            mean_s = load.mean_burst_s if bursting else load.mean_calm_s
            changes_at += draw.expovariate(1 / mean_s)
        if at_s >= duration_s:
            return
        prompt = draw.lognormvariate(math.log(load.prompt_median), load.sigma)
        answer = draw.lognormvariate(math.log(load.answer_median), load.sigma)
        yield Arrival(at_s, max(1, round(prompt)), max(1, round(answer)))


def step(rate: float, factor: float, at_s: float, until_s: float, seed: int) -> list[Arrival]:
    """Poisson arrivals whose rate jumps once, for reaction times."""
    draw = random.Random(seed)  # noqa: S311 - repeatable, not secret
    now, made = 0.0, []
    while now < until_s:
        now += draw.expovariate(rate * (factor if now >= at_s else 1.0))
        made.append(Arrival(now, 1020, 129))
    return made

"""vCache, from its paper (Schroeder et al., arXiv 2502.03771).

Every stored entry keeps observations (similarity, was its answer right). A
logistic P(right | similarity) is fitted to them; its threshold's uncertainty is
taken at each of several confidences 1 - ε, and the request explores with
probability min over ε of 1 - δ / (1 - A), A = (1 - ε) P(right | s, threshold at
1 - ε). Only when the nearest answer was wrong is the request stored.
"""

import math
import random

import numpy as np
import numpy.typing as npt

from benchmarks.semantic.methods import NearestOnly

_EPSILONS = np.linspace(0.01, 0.5, 25)
# Normal quantiles of 1 - ε, by Winitzki's approximation of the inverse error function.
_Z = np.array(
    [
        math.sqrt(2)
        * math.copysign(
            math.sqrt(
                math.sqrt((4.3307 + math.log(1 - x * x) / 2) ** 2 - math.log(1 - x * x) / 0.147)
                - (4.3307 + math.log(1 - x * x) / 2)
            ),
            x,
        )
        for x in (1 - 2 * _EPSILONS)
    ]
)
# Until an entry has so many observations its logistic says nothing.
_MIN_OBSERVATIONS = 4
_STEPS = 12
# A faint pull that keeps the fit of separable observations finite.
_RIDGE = 1e-3


class _Boundary:
    """One entry's observations, and its logistic in units of 0.05 around 0.85."""

    __slots__ = ("alphas", "right", "similarities")

    def __init__(self) -> None:
        # As in the authors' code every entry knows the two ends of the scale.
        self.similarities = [0.0, 1.0]
        self.right = [0.0, 1.0]
        self.alphas: tuple[float, float, npt.NDArray[np.float64]] | None = None

    def fit(self) -> tuple[float, float, npt.NDArray[np.float64]]:
        """Slope, threshold, and the threshold at each confidence."""
        if self.alphas is None:
            x = (np.array(self.similarities) - 0.85) / 0.05
            y = np.array(self.right)
            a, b, hessian = _newton(x, y)
            threshold = -b / a
            # Delta method: the threshold is -b / a.
            gradient = np.array([b / a**2, -1 / a])
            variance = max(0.0, float(gradient @ np.linalg.inv(hessian) @ gradient))
            self.alphas = a, threshold, threshold + _Z * math.sqrt(variance)
        return self.alphas


def _newton(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> tuple[float, float, npt.NDArray[np.float64]]:
    a, b = 1.0, 0.0
    hessian = np.eye(2)
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(a * x + b, -30, 30)))
        w = p * (1 - p)
        ga, gb = x @ (p - y) + _RIDGE * a, float((p - y).sum()) + _RIDGE * b
        haa, hab, hbb = x * x @ w + _RIDGE, x @ w, w.sum() + _RIDGE
        determinant = haa * hbb - hab * hab
        step_a = (hbb * ga - hab * gb) / determinant
        step_b = (haa * gb - hab * ga) / determinant
        hessian = np.array([[haa, hab], [hab, hbb]])
        scale = min(1.0, 5.0 / (abs(step_a) + abs(step_b) + 1e-12))
        a, b = max(0.05, a - scale * step_a), b - scale * step_b
        if abs(step_a) + abs(step_b) < 1e-4:  # noqa: PLR2004  # converged
            break
    return float(a), float(b), hessian


def vcache(delta: float, seed: int) -> NearestOnly:
    """The method of vCache, with an error bound over all requests."""
    boundaries: dict[int, _Boundary] = {}
    chance = random.Random(seed).random  # noqa: S311  # an experiment, to be repeated

    def serves(nearest: int, similarity: float) -> bool:
        boundary = boundaries.get(nearest)
        if boundary is None or len(boundary.right) < _MIN_OBSERVATIONS + 2:
            return False
        slope, _, thresholds = boundary.fit()
        x = (similarity - 0.85) / 0.05
        likely = 1 / (1 + np.exp(-np.clip(slope * (x - thresholds), -30, 30)))
        alpha = (1 - _EPSILONS) * likely
        explore = max(0.0, float((1 - delta / (1 - alpha)).min()))
        return chance() >= explore

    def learn(nearest: int, similarity: float, right: bool) -> bool:
        boundary = boundaries.setdefault(nearest, _Boundary())
        boundary.similarities.append(similarity)
        boundary.right.append(float(right))
        boundary.alphas = None
        return not right

    return NearestOnly(serves, learn)

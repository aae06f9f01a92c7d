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

_EPSILONS = np.linspace(0.002, 0.5, 50)
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
_STEPS = 25
_STEEP = 30.0
# A faint pull that keeps the fit of separable observations finite.
_RIDGE = 1e-4


class _Boundary:
    """One entry's observations, and the logistic fitted to them."""

    __slots__ = ("fitted", "right", "similarities")

    def __init__(self) -> None:
        # What every entry knows from the start: the two ends of the scale.
        self.similarities = [0.0, 1.0]
        self.right = [0.0, 1.0]
        self.fitted: tuple[float, npt.NDArray[np.float64]] | None = None

    def fit(self) -> tuple[float, npt.NDArray[np.float64]]:
        """Slope, and the threshold at each confidence."""
        if self.fitted is None:
            x, y = np.array(self.similarities), np.array(self.right)
            last_wrong, first_right = float(x[y == 0].max()), float(x[y == 1].min())
            if last_wrong < first_right:
                # Separable: the likeliest slope is infinite, where an optimizer stops is
                # finite; the threshold is anywhere between. How wide its variance is the
                # paper leaves open; here it falls with the number of observations.
                gap = first_right - last_wrong
                slope, threshold = _STEEP, (last_wrong + first_right) / 2
                variance = gap * gap / (2 * len(y))
            else:
                slope, intercept, hessian = _newton(x, y)
                threshold = -intercept / slope
                # Delta method: the threshold is -intercept / slope.
                gradient = np.array([intercept / slope**2, -1 / slope])
                variance = max(0.0, float(gradient @ np.linalg.inv(hessian) @ gradient))
            self.fitted = slope, threshold + _Z * math.sqrt(variance)
        return self.fitted


def _newton(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> tuple[float, float, npt.NDArray[np.float64]]:
    a, b = 10.0, -8.0
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
        scale = min(1.0, 20.0 / (abs(step_a) + abs(step_b) + 1e-12))
        a, b = max(1e-3, a - scale * step_a), b - scale * step_b
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
        slope, thresholds = boundary.fit()
        likely = 1 / (1 + np.exp(-np.clip(slope * (similarity - thresholds), -30, 30)))
        alpha = (1 - _EPSILONS) * likely
        explore = max(0.0, float((1 - delta / (1 - alpha)).min()))
        return chance() >= explore

    def learn(nearest: int, similarity: float, right: bool) -> bool:
        boundary = boundaries.setdefault(nearest, _Boundary())
        boundary.similarities.append(similarity)
        boundary.right.append(float(right))
        boundary.fitted = None
        return not right

    return NearestOnly(serves, learn)

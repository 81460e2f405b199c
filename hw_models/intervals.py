"""Sums of counts times prices, and what uncertain prices do to them.

A price is known within an interval. Prices that share a group move together: one number u in [0, 1] per group sets each
of them to low·(high/low)^u. Three views of the same sum exist:

    bounds       all prices low, nominal, high
    Monte Carlo  u uniform per group (log-uniform prices), 10 000 draws; two sums use the same draws, so what they share cancels
    tornado      one group at a time at its ends, all others nominal
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 10_000
_STEPS = 129
_QUANTILES = (0.05, 0.5, 0.95)


class Interval(NamedTuple):
    """A figure with its bounds."""

    low: float
    nominal: float
    high: float

    def __mul__(self, factor: float) -> Interval:  # type: ignore[override]
        return Interval(self.low * factor, self.nominal * factor, self.high * factor)

    def times(self, other: Interval) -> Interval:
        """The product of two figures that are not negative, bound by bound."""
        return Interval(self.low * other.low, self.nominal * other.nominal, self.high * other.high)

    def plus(self, other: Interval) -> Interval:
        """The sum of two figures, bound by bound."""
        return Interval(self.low + other.low, self.nominal + other.nominal, self.high + other.high)

    @property
    def known(self) -> bool:
        """True if the interval has a width."""
        return self.low < self.high


class Term(NamedTuple):
    """amount · price joules per sample; `follows` names the layer's per-sample figure that the amount scales with."""

    layer: str
    source: str
    amount: float
    price: Interval
    group: str
    follows: str = ""


class _Group:
    """The part of a sum whose prices move together, as a function of u."""

    def __init__(self) -> None:
        self.nominal = 0.0
        self.parts: dict[float, float] = {}  # high/low → Σ amount·low
        self.linear = np.zeros(2)  # prices that may be 0 at their low end move linearly

    def add(self, term: Term) -> None:
        self.nominal += term.amount * term.price.nominal
        low, _, high = term.price
        if low > 0:
            ratio = high / low
            self.parts[ratio] = self.parts.get(ratio, 0.0) + term.amount * low
        else:
            self.linear += term.amount * np.array([low, high])

    @property
    def fixed(self) -> bool:
        """True if no price of the group has an interval."""
        return self.linear[0] == self.linear[1] and all(ratio == 1 for ratio in self.parts)

    def at(self, u: np.ndarray) -> np.ndarray:
        found = self.linear[0] + (self.linear[1] - self.linear[0]) * u
        for ratio, low in self.parts.items():
            found = found + (low if ratio == 1 else low * np.exp(math.log(ratio) * u))
        return found


def _groups(terms: Iterable[Term]) -> dict[str, _Group]:
    found: dict[str, _Group] = {}
    for term in terms:
        found.setdefault(term.group, _Group()).add(term)
    return found


def total(terms: Iterable[Term]) -> Interval:
    """Sum of the terms, with all prices at their low, nominal and high values."""
    terms = list(terms)
    return Interval(*(math.fsum(t.amount * t.price[i] for t in terms) for i in range(3)))


def drawn(terms: Iterable[Term], seed: int = 0, n: int = DRAWS) -> np.ndarray:
    """The sum under n draws of the prices, float64 [n]; the draws of a group depend on its name and the seed only.

    >>> sums = drawn([Term("", "", 1.0, Interval(1.0, 2.0, 4.0), "a")], n=100_000)
    >>> abs(float(sums.mean()) - 3 / math.log(4)) < 0.01        # (high − low) / ln(high / low)
    True
    """
    found = np.zeros(n)
    for name, group in _groups(terms).items():
        u = np.zeros(1) if group.fixed else np.random.default_rng([seed, zlib.crc32(name.encode())]).random(n)
        found = found + group.at(u)
    return found


def quantiles(draws: np.ndarray) -> Interval:
    """5, 50 and 95 % points of drawn figures; NaN if some figure is not a number."""
    return Interval(*(float(q) for q in np.quantile(draws, _QUANTILES)))


def tornado(terms: Iterable[Term]) -> dict[str, tuple[float, float]]:
    """The sum with one group at its low and its high prices, all others nominal; the group that matters most first."""
    groups = _groups(terms)
    nominal = math.fsum(group.nominal for group in groups.values())
    ends = np.array([0.0, 1.0])
    found = {}
    for name, group in groups.items():
        low, high = nominal - group.nominal + group.at(ends)
        found[name] = (nominal, nominal) if group.fixed else (float(low), float(high))
    return dict(sorted(found.items(), key=lambda item: item[1][0] - item[1][1]))


def shares(terms: Iterable[Term], seed: int = 0) -> dict[str, float]:
    """Share of the drawn sum's variance that each group of prices causes, 0…1; the largest first."""
    terms = list(terms)
    names = {t.group for t in terms}
    variances = {name: float(drawn([t for t in terms if t.group == name], seed).var()) for name in names}
    whole = sum(variances.values())
    return {name: v / whole if whole else 0.0 for name, v in sorted(variances.items(), key=lambda x: (-x[1], x[0]))}


def ratio_of(a: Sequence[Term], b: Sequence[Term]) -> Interval:
    """Σa / Σb with the same prices on both sides: nominal, and the extremes over all choices of u per group.

    Each group is looked at on a grid of u; with these values the extremes are found exactly, group by group: the choice
    that maximises Σa − r·Σb improves the ratio r until no choice does.
    """
    top, bottom = _groups(a), _groups(b)
    below = math.fsum(g.nominal for g in bottom.values())
    if below == 0:
        return Interval(math.nan, math.nan, math.nan)
    nominal = math.fsum(g.nominal for g in top.values()) / below
    names = sorted(top.keys() | bottom.keys())
    none, u = _Group(), np.linspace(0, 1, _STEPS)
    over = np.stack([top.get(name, none).at(u) for name in names])
    under = np.stack([bottom.get(name, none).at(u) for name in names])
    low, high = (_extreme(over, under, nominal, sign) for sign in (-1.0, 1.0))
    # summation order alone must not make an interval
    tight = math.isclose(low, high, rel_tol=1e-12)
    return Interval(nominal, nominal, nominal) if tight else Interval(min(low, nominal), nominal, max(high, nominal))


def _extreme(over: np.ndarray, under: np.ndarray, start: float, sign: float) -> float:
    index, ratio = np.arange(len(over)), -sign * math.inf
    guess = start
    while sign * (guess - ratio) > 1e-15 * abs(guess):
        ratio = guess
        choice = (sign * (over - ratio * under)).argmax(1)
        guess = float(over[index, choice].sum() / under[index, choice].sum())
    return ratio

"""Covering arrays: few rows that hold all levels of every two or three factors together.

Greedy: a row begins with levels that are not together yet, and takes next whatever brings most
others of that kind. Rules say what may not be together; what follows from them is worked out after
each choice, and a choice that leaves a factor without a level is taken back.
"""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np

Domains = list[int]  # levels that each factor may still have, as bits
Rule = list[tuple[int, int]]  # factors, and the levels that are not to be together


class Covering:
    """Rows over factors with these numbers of levels."""

    def __init__(self, sizes: Sequence[int], rules: Sequence[Rule], strength: int) -> None:
        self.sizes, self.rules, self.strength = sizes, rules, strength
        self.rng = np.random.default_rng(0)
        self.first = np.concatenate([[0], np.cumsum(sizes)])
        self.factor_of = np.repeat(np.arange(len(sizes)), sizes)
        other = self.factor_of[:, None] != self.factor_of[None]
        self.missing: Any = other.copy()
        if strength == 3:
            self.missing = other[:, :, None] & other[:, None] & other[None]

    def rows(self) -> list[list[int]]:
        """Levels by factor, as numbers."""
        found = []
        # Those that the rules exclude are found out once.
        for levels in np.argwhere(self.missing):
            if np.all(levels[:-1] < levels[1:]) and self.started(levels) is None:
                self.take_out(levels)
        while self.missing.any():
            places = np.flatnonzero(self.missing)
            start = np.unravel_index(self.rng.choice(places), self.missing.shape)
            domains = self.started(start)
            row = domains and self.completed(domains)
            if row is None:
                self.take_out(start)
                continue
            whole = self.first[:-1] + row
            self.missing[np.ix_(*(whole,) * self.strength)] = False
            found.append(row)
        return found

    def take_out(self, levels: Any) -> None:
        """Levels that no row has together."""
        for order in permutations(map(int, levels)):
            self.missing[order] = False

    def started(self, levels: Any) -> Domains | None:
        domains = [(1 << size) - 1 for size in self.sizes]
        for level in levels:
            factor = self.factor_of[level]
            domains[factor] = 1 << int(level - self.first[factor])
        return self.narrowed(domains)

    def narrowed(self, domains: Domains) -> Domains | None:
        """Without the levels that the rules exclude; None where a factor has none left."""
        changed = True
        while changed:
            changed = False
            for rule in self.rules:
                free = [(factor, levels) for factor, levels in rule if domains[factor] & ~levels]
                if not free:
                    return None
                if len(free) == 1:
                    factor, levels = free[0]
                    if domains[factor] & levels:
                        domains[factor] &= ~levels
                        changed = True
        return domains

    def completed(self, domains: Domains) -> list[int] | None:
        """A row of these levels that has most of what is missing."""
        fixed = [f for f, levels in enumerate(domains) if _is_one(levels)]
        if len(fixed) == len(domains):
            return [levels.bit_length() - 1 for levels in domains]
        gains = self.gains([self.first[f] + domains[f].bit_length() - 1 for f in fixed])
        free = np.array([
            not _is_one(domains[f]) and bool(domains[f] >> (level - self.first[f]) & 1)
            for level, f in enumerate(self.factor_of)
        ])  # fmt: skip
        gains = gains + self.rng.random(gains.size)
        while free.any():
            best = int(np.argmax(np.where(free, gains, -np.inf)))
            factor = self.factor_of[best]
            tried = list(domains)
            tried[factor] = 1 << int(best - self.first[factor])
            narrowed = self.narrowed(tried)
            row = narrowed and self.completed(narrowed)
            if row:
                return row
            free[best] = False
            domains[factor] &= ~(1 << int(best - self.first[factor]))
            if not domains[factor]:
                return None
        return None

    def gains(self, levels: list[int]) -> np.ndarray:
        """What each level would bring beside these."""
        missing = self.missing[:, levels]
        if self.strength == 3:
            missing = missing[:, :, levels].reshape(len(self.factor_of), -1)
        return missing.sum(-1)


def _is_one(levels: int) -> bool:
    return levels & (levels - 1) == 0

"""The choices that make a case: drawn from a seed, kept, replayed, and made smaller."""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """Whole numbers, 0 being the simplest choice. All that a case depends on comes from here."""

    def __init__(self, seed: str | None = None, given: Sequence[int] = ()) -> None:
        self._random = None if seed is None else random.Random(seed)
        self._given = given
        self.taken: list[int] = []

    def below(self, count: int) -> int:
        place = len(self.taken)
        if self._random is not None:
            value = self._random.randrange(count)
        else:
            value = min(self._given[place], count - 1) if place < len(self._given) else 0
        self.taken.append(value)
        return value

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, the first being the simplest."""
        return options[self.below(len(options))]

    def chance(self, percent: int) -> bool:
        return self.below(100) >= 100 - percent

    def size(self, most: int, least: int = 1) -> int:
        """Mostly small, at times up to `most`, seldom 0 where that is allowed."""
        if least == 0 and self.chance(7):
            return 0
        least = max(1, least)
        return self.between(least, max(least, self.pick((most // 4, most // 4, most, 2))))


def shrink(choices: Sequence[int], fails: Callable[[Sequence[int]], bool], attempts: int = 600) -> list[int]:
    """Fewer and smaller choices that still fail: parts are left out, single choices become 0, half, or one less."""
    best = list(choices)
    left = attempts

    def take(candidate: list[int]) -> bool:
        nonlocal best, left
        if left <= 0 or candidate == best:
            return False
        left -= 1
        if fails(candidate):
            best = candidate
            return True
        return False

    while left > 0:
        before = list(best)
        width = max(1, len(best) // 2)
        while width:
            at = len(best) - width
            while at >= 0:
                take(best[:at] + best[at + width:])
                at -= width
            width //= 2
        for i in range(len(best)):
            for smaller in (0, best[i] // 2 if i < len(best) else 0, best[i] - 1 if i < len(best) else 0):
                if i < len(best) and 0 <= smaller < best[i]:
                    take([*best[:i], smaller, *best[i + 1:]])
        if best == before:
            break
    while best and best[-1] == 0:  # a choice that is missing is 0
        best.pop()
    return best

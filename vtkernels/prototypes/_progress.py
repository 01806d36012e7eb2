"""One line that says how far a long run is."""

import sys
import time
from typing import TextIO


class Progress:
    """On a terminal a line that is rewritten, else a line at most every ten seconds and at the end."""

    def __init__(self, what: str, total: int, done: int = 0, stream: TextIO | None = None) -> None:
        self.what, self.total, self.done, self.before = what, total, done, done
        self.stream = stream or sys.stderr
        self.start = self.shown = time.monotonic()
        self.rewrites = self.stream.isatty()

    def step(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if not (self.rewrites or self.done == self.total or now - self.shown >= 10):
            return
        self.shown = now
        each = (now - self.start) / max(1, self.done - self.before)
        left = round(each * (self.total - self.done))
        line = f"{self.what}: {self.done} of {self.total}, {left // 60}:{left % 60:02d} min left"
        end = "\n" if not self.rewrites or self.done == self.total else ""
        print(f"\r\033[K{line}" if self.rewrites else line, end=end, file=self.stream, flush=True)

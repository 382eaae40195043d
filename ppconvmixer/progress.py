"""Progress for people: a bar with rate and remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Optional

from tqdm import tqdm

logger = logging.getLogger("ppconvmixer")
SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts pictures (unit "img") or bytes ("B") towards ``total``; use it in a ``with`` block.

    Args:
        total: None where nobody knows.
        done: what was done before, and says nothing of the rate.
    """

    def __init__(self, total: Optional[int], what: str, unit: str = "img", done: int = 0):
        self.total, self.what, self.unit, self.done, self.before = total, what, unit, done, done
        self.started = self.said = time.monotonic()
        self.bar: Optional[tqdm] = None
        if sys.stderr.isatty():
            self.bar = tqdm(
                total=total, desc=what, unit=unit, unit_scale=unit == "B", initial=done, leave=False, dynamic_ncols=True
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self.bar is not None:
            self.bar.close()

    def advance(self, count: int, **figures: float) -> None:
        """Say that ``count`` more are done; ``figures`` are shown beside them."""
        self.done += count
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        if self.bar is not None:
            self.bar.set_postfix_str(shown, refresh=False)
            self.bar.update(count)
            return
        now = time.monotonic()
        if now - self.said >= SECONDS_BETWEEN_LINES:
            self.said = now
            logger.info("%s: %s%s", self.what, self._line(now - self.started), f", {shown}" if shown else "")

    def _line(self, seconds: float) -> str:
        rate = (self.done - self.before) / seconds
        if self.unit == "B":
            done, total, speed = (tqdm.format_sizeof(n, "B") for n in (self.done, self.total or 0, rate))
        else:
            done, total, speed = f"{self.done}", f"{self.total}", f"{rate:.1f} {self.unit}"
        if self.total is None:
            return f"{done}, {speed}/s"
        left = tqdm.format_interval((self.total - self.done) / rate) if rate else "?"
        return f"{done} of {total}, {speed}/s, {left} left"

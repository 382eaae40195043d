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
    """Counts pictures towards ``total``; use it in a ``with`` block."""

    def __init__(self, total: int, what: str):
        self.total, self.what, self.done = total, what, 0
        self.started = self.said = time.monotonic()
        self.bar: Optional[tqdm] = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=total, desc=what, unit="img", leave=False, dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self.bar is not None:
            self.bar.close()

    def advance(self, count: int, **figures: float) -> None:
        """Say that ``count`` more pictures are done; ``figures`` are shown beside them."""
        self.done += count
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        if self.bar is not None:
            self.bar.set_postfix_str(shown, refresh=False)
            self.bar.update(count)
            return
        now = time.monotonic()
        if now - self.said >= SECONDS_BETWEEN_LINES:
            self.said = now
            rate = self.done / (now - self.started)
            left = (self.total - self.done) / rate
            logger.info(
                "%s: %d of %d, %.1f img/s, %s left%s",
                *(self.what, self.done, self.total, rate, tqdm.format_interval(left), f", {shown}" if shown else ""),
            )

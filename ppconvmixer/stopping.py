"""Ctrl-C and SIGTERM as a wish to stop, which a loop grants where it can stop without loss."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any, Optional


class Stopped(KeyboardInterrupt):
    """The wish was granted; ``signal`` is the number of the signal that brought it."""

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = number


class StopWish:
    """Use it in a ``with`` block; inside, the first Ctrl-C and every SIGTERM only set ``signal``.

    A second Ctrl-C does what it always did, so that nobody is held up by a step that takes long. A
    second SIGTERM does not: ``paddle.distributed.launch`` and schedulers send it again and again.
    """

    def __init__(self) -> None:
        self.signal: Optional[int] = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopWish:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread handle signals
            self._before = {n: signal.signal(n, self._hear) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @staticmethod
    def grant(number: Optional[int]) -> None:
        """Raise ``Stopped`` if ``number`` is that of a signal: what ``signal`` was when the loop looked."""
        if number is not None:
            raise Stopped(number)

    def _hear(self, number: int, _: Optional[FrameType]) -> None:
        first, self.signal = self.signal is None, number
        if first:
            with contextlib.suppress(OSError):  # `2>&1 | tee log`: Ctrl-C ends tee as well
                os.write(2, b"\nstopping after this step\n")  # logging could be under way, and is not reentrant
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])

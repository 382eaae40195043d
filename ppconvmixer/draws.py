"""Random numbers that depend on (seed, epoch, sample) alone, drawn for a whole batch at once.

A generator of its own for every sample would cost more than the augmentation of a small picture. So
every number is the hash of what it depends on, and there is no state: neither the other samples of a
batch, nor workers, nor what was drawn before change it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

_GOLDEN, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_BITS = tuple(np.uint64(n) for n in (30, 27, 31, 11))


class Draws:
    """The random numbers of the samples at ``indices`` in an epoch.

    A stream is a name, so that what one augmentation draws does not depend on which others there are.
    """

    def __init__(self, seed: int, epoch: int, indices: Sequence[int]):
        keys = np.asarray(indices, np.uint64)
        for part in (epoch, seed):
            keys = _mixed(keys ^ _mixed(np.array([part], np.uint64)))
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def uniform(self, stream: str, *shape: int) -> np.ndarray:
        """Return float64 (samples, *shape), evenly distributed over [0, 1)."""
        counters = np.arange(int(np.prod(shape)), dtype=np.uint64)
        hashed = _mixed(self._stream(stream)[:, None] ^ counters)
        return ((hashed >> _BITS[3]) * 2.0**-53).reshape(len(self), *shape)

    def normal(self, stream: str, *shape: int) -> np.ndarray:
        """Return float64 (samples, *shape), normally distributed about 0 with variance 1 (Box and Muller 1958)."""
        u = self.uniform(stream, *shape, 2)
        return np.sqrt(-2 * np.log1p(-u[..., 0])) * np.cos(2 * np.pi * u[..., 1])

    def generator(self, stream: str, place: int) -> np.random.Generator:
        """Return a generator for the sample at ``place``, where many numbers are drawn for a few samples."""
        return np.random.Generator(np.random.Philox(key=int(self._stream(stream)[place])))

    def _stream(self, name: str) -> np.ndarray:
        return _mixed(self._keys ^ np.uint64(zlib.crc32(name.encode())))


def _mixed(x: np.ndarray) -> np.ndarray:
    """A step of SplitMix64 (Steele, Lea and Flood 2014): a bijection in which every bit moves every other."""
    x = x + _GOLDEN
    x = (x ^ (x >> _BITS[0])) * _FIRST
    x = (x ^ (x >> _BITS[1])) * _SECOND
    return x ^ (x >> _BITS[2])

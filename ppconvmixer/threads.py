"""How many threads compute.

Paddle sets ``OMP_NUM_THREADS`` to 1 when it is imported, so what the user said must be read before;
the package imports this module first.
"""

import os
import sys

_SAID = os.environ.get("OMP_NUM_THREADS", "")
if "paddle" in sys.modules and _SAID == "1":  # Paddle's word, most likely, not the user's
    _SAID = ""


def threads() -> int:
    """Return ``OMP_NUM_THREADS`` as the user set it, or else the number of processors this process may use."""
    if _SAID.isdecimal() and int(_SAID):
        return int(_SAID)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

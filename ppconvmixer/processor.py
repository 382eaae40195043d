"""What the system says of its processor."""

import platform
import re
from pathlib import Path


def described() -> str:
    """Return the text of Linux's ``/proc/cpuinfo``; nothing where there is none."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def name() -> str:
    """Return what the processor is called."""
    found = re.search(r"model name\s*: (.+)", described())
    return found[1] if found else platform.processor() or platform.machine()

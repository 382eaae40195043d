"""What the system says of its processor."""

from pathlib import Path


def described() -> str:
    """Return the text of Linux's ``/proc/cpuinfo``; nothing where there is none."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""

"""``python tools/inspect.py ARGS`` is ``ppconvmixer inspect ARGS``."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # in place of this folder, where this file hides Python's own

from ppconvmixer.cli import main  # noqa: E402

sys.exit(main(["inspect", *sys.argv[1:]]))

"""``python tools/benchmark.py ARGS`` is ``ppconvmixer benchmark ARGS``."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # in place of this folder, whose inspect.py hides Python's own

from ppconvmixer.cli import main  # noqa: E402

sys.exit(main(["benchmark", *sys.argv[1:]]))

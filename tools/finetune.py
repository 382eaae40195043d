"""``python tools/finetune.py ARGS`` is ``ppconvmixer finetune ARGS``."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # in place of this folder, whose inspect.py hides Python's own

from ppconvmixer.cli import main  # noqa: E402

sys.exit(main(["finetune", *sys.argv[1:]]))

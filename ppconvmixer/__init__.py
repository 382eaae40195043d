"""The PaddlePaddle home of ConvMixer."""

# Paddle 2.6 loads a zlib of its own that breaks Python's if Python's does not come first.
import zlib  # noqa: F401
from typing import Any

from . import threads  # noqa: F401  (before Paddle, which changes what it reads)
from .errors import UserError
from .zoo import CONSTRUCTORS, create_model, list_models, load_weights

__version__ = "0.1.0"
__all__ = ["ConvMixer", "UserError", "create_model", "list_models", "load_weights", *CONSTRUCTORS]

globals().update(CONSTRUCTORS)


def __getattr__(name: str) -> Any:
    """Import Paddle only when the network itself is asked for."""
    if name == "ConvMixer":
        from .model import ConvMixer

        return ConvMixer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What training minimises: cross-entropy with whole labels or with soft targets."""

from __future__ import annotations

from typing import Any

import numpy as np


def soft_targets(labels: np.ndarray, num_classes: int, smoothing: float = 0.0) -> np.ndarray:
    """Return float32 (N, num_classes): ``smoothing`` spread over all classes, the rest on the label."""
    targets = np.full((len(labels), num_classes), smoothing / num_classes, np.float32)
    targets[np.arange(len(labels)), labels] += np.float32(1 - smoothing)
    return targets


def create_loss(smoothing: float = 0.0, soft: bool = False) -> Any:
    """Return Paddle's mean cross-entropy of logits (N, classes).

    Args:
        smoothing: for labels int64 (N,).
        soft: for targets float32 (N, classes) instead, which are smoothed already.
    """
    import paddle

    usual = {"label_smoothing": smoothing} if smoothing else {}
    entropy = paddle.nn.CrossEntropyLoss(**({"soft_label": True} if soft else usual))
    # Mixed precision may give logits of 16 bits, which Paddle does not take beside targets of 32.
    return lambda logits, labels: entropy(logits.astype("float32"), labels)

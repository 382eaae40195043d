"""The package; settings of the tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "ppconvmixer/__init__.py").read_text("utf-8"))[1]

setup(
    name="ppconvmixer",
    version=VERSION,
    description="The PaddlePaddle home of ConvMixer: evaluate, fine-tune, look at the curves",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9",
    # The recipes and the small checkpoints stand beside the package in a clone and inside it when installed.
    packages=[
        "ppconvmixer",
        *(f"ppconvmixer.{part}" for part in ("commands", "insight", "ops", "web", "configs", "weights")),
    ],
    package_dir={"ppconvmixer.configs": "configs", "ppconvmixer.weights": "weights"},
    package_data={
        "ppconvmixer": ["manifest.json"],
        "ppconvmixer.insight": ["*.json"],
        "ppconvmixer.web": ["*.html", "*.css", "*.mjs"],
        "ppconvmixer.ops": ["*.cpp", "*.h"],
        "ppconvmixer.configs": ["*.yaml"],
        "ppconvmixer.weights": ["*.pdparams", "*.json", "*.md"],
    },
    entry_points={"console_scripts": ["ppconvmixer = ppconvmixer.cli:main"]},
    install_requires=[
        "filelock>=3.12",
        "matplotlib>=3.6",  # pictures of `inspect`, `report` and `benchmark`; VisualDL needs it anyway
        "numpy>=1.24,<2.4",  # Paddle 3.3 cannot turn tensors of shape [1] into numbers under NumPy 2.4
        "opencv-python>=4.8",
        "pillow>=9.4",
        "platformdirs>=3.0",
        "pyyaml>=6.0",
        "requests>=2.31",
        "safetensors>=0.4.3",
        "scikit-learn>=1.3",  # the digits
        "tqdm>=4.60",
        "urllib3>=2.2",  # read1
        "visualdl>=2.5.3",
    ],
    extras_require={
        # Exactly one of these two: both provide the module paddle.
        "cpu": ["paddlepaddle>=2.6.2"],
        "gpu": ["paddlepaddle-gpu>=2.6.2"],
        "peers": ["onnx>=1.14", "onnxruntime>=1.16", "openvino>=2023.3", "torch>=2.1"],  # of the benchmark
        "deploy": [
            *("onnx>=1.14", "onnxruntime>=1.16", "openvino>=2023.3"),
            *("nncf>=2.13", "fastapi>=0.100", "uvicorn>=0.23"),
        ],
        "dev": ["hypothesis>=6.100", "pytest>=8", "pytest-timeout>=2.3", "ruff>=0.6"],
    },
)

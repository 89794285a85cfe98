"""Installation: ``pip install -e .`` for a checkout, ``pip install .`` for a copy."""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "test": [
        "pytest>=8",
        "pytest-xdist>=3.5",
        "ruff>=0.6",
        "mypy>=1.10",
        "peft>=0.15",
        "torchao>=0.18",
    ],
    "bnb": ["accelerate>=1.0", "bitsandbytes>=0.43"],
    "lora": ["peft>=0.15"],
    "quantization": ["torchao>=0.18"],
    "s3": ["s3fs>=2024.2"],
}

VERSION = Path("lavislite/common/version.py").read_text().split('"')[-2]

setup(
    name="lavislite",
    version=VERSION,
    description="Bridge any frozen vision backbone and any frozen LLM with BLIP-2's Q-Former",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    python_requires=">=3.10",
    packages=[*find_packages(include=["lavislite", "lavislite.*"]), "lavislite.projects"],
    package_dir={"lavislite.projects": "projects"},
    package_data={
        "lavislite": ["configs/**/*.yaml", "py.typed"],
        "lavislite.projects": ["**/*.yaml"],
    },
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "transformers>=5.0",
        "timm>=1.0.15",
        "tokenizers>=0.21",
        "omegaconf>=2.4",
        "safetensors>=0.4.5",
        "huggingface_hub>=1.0",
        "iopath>=0.1.10",
        "fsspec>=2024.2",
        "filelock>=3.12",
        "fairscale>=0.4.13",
        "numpy>=1.26",
        "pycocoevalcap>=1.2",
        "simplemma>=1.0",
        "pillow>=10.3",
        "matplotlib>=3.8",
        "tensorboard>=2.16",
        "tqdm>=4.66",
        "typing_extensions>=4.8",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["lavislite=lavislite.cli:main"]},
)

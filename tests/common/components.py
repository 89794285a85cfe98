"""Stand-ins with the option names of the real components, registered for the tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from lavislite.common.schema import RunConfig


@dataclass
class Vision:
    name: str = "tiny"
    image_size: int = 64
    freeze: bool = True
    precision: str = "auto"
    drop_path_rate: float = 0.0
    grad_checkpointing: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class ModelConfig:
    arch: str = "stand_in"
    model_type: str | None = None
    vision: Vision = field(default_factory=Vision)
    num_query_tokens: int = 32
    label_smoothing: float = 0.1
    pretrained: str | None = None


@dataclass
class DatasetConfig:
    builder: str | None = None
    type: str = "default"
    annotations: dict[str, Any] = field(default_factory=dict)
    images: Any = None
    vis_processor: dict[str, Any] = field(default_factory=dict)
    text_processor: dict[str, Any] = field(default_factory=dict)
    ratio: float | None = None


@dataclass
class TaskConfig(RunConfig):
    k_test: int = 128


class Model:
    Config: ClassVar[type] = ModelConfig


class Builder:
    Config: ClassVar[type] = DatasetConfig


class Task:
    Config: ClassVar[type] = RunConfig


class RetrievalTask:
    Config: ClassVar[type] = TaskConfig

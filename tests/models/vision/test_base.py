"""The contract of a backbone, and what a wrong one is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lavislite import registry
from lavislite.common.errors import ConfigError, UserError
from lavislite.common.registry import UnknownNameError
from lavislite.common.userdir import import_user_dir
from lavislite.models.vision.base import VisionConfig, build_vision, vision_fingerprint

USER_FILE = Path(__file__).parents[2] / "data" / "user_backbone.py"


class Wrong(nn.Module):
    """A backbone made of one convolution, wrong in the way its function says."""

    def __init__(self, forward: Callable[..., torch.Tensor], width: object = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 16, 16)
        self._forward, self.num_features = forward, width

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._forward(self.conv(images))


def build(name: str, **options: object) -> nn.Module:
    return build_vision(VisionConfig(name=name, image_size=64, **options))


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Registers a `Wrong` under a name, for one test."""

    def register(forward: Callable[..., torch.Tensor], width: object = 7) -> str:
        monkeypatch.setitem(
            registry.vision_backbones._objects, "wrong", lambda: Wrong(forward, width)
        )
        return "wrong"

    return register


def test_a_users_backbone_in_its_own_file_is_at_most_fifteen_lines_and_works() -> None:
    code = [line for line in USER_FILE.read_text().splitlines() if line.strip()]
    assert len(code) <= 15
    import_user_dir(str(USER_FILE))
    backbone = build("my_cnn")
    assert backbone(torch.randn(2, 3, 64, 64)).shape == (2, 16, 64)
    assert not backbone.training


def test_freezing_takes_gradients_and_an_unfrozen_backbone_keeps_them() -> None:
    options = {"weights": "none"}
    assert not any(p.requires_grad for p in build("tiny", **options).parameters())
    assert all(p.requires_grad for p in build("tiny", freeze=False, **options).parameters())


def test_wrong_shapes_are_refused_with_both_shapes(wrong: Callable[..., str]) -> None:
    with pytest.raises(
        ConfigError,
        match=r"'wrong' must map \[B, 3, 64, 64\] to \[B, tokens, 7\]; it returned \(1, 7, 4, 4\)",
    ):
        build(wrong(lambda x: x))
    with pytest.raises(ConfigError, match=r"it returned \(1, 16, 7\)"):
        build(wrong(lambda x: x.flatten(2).mT, width=8))
    with pytest.raises(ConfigError, match="it returned list"):
        build(wrong(lambda x: [x]))


def test_a_missing_width_and_a_failing_forward_are_named(wrong: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match="integer attribute num_features"):
        build(wrong(lambda x: x, width=None))
    with pytest.raises(ConfigError, match=r"fails on an image .*ZeroDivisionError.*test_base.py:"):
        build(wrong(lambda x: x / (1 // 0)))


def test_unknown_names_options_and_precisions_offer_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'tiny'"):
        build("tinyy")
    with pytest.raises(ConfigError, match="no argument 'dpeth'. Did you mean 'depth'"):
        build("tiny", options={"dpeth": 1})
    with pytest.raises(ConfigError, match="Did you mean 'bf16'"):
        build("tiny", weights="none", precision="b16")


def test_missing_playground_weights_say_how_to_make_them() -> None:
    with pytest.raises(UserError, match="playground_vision.yaml"):
        build("tiny")


def test_the_fingerprint_tells_weights_apart_and_survives_saving(tmp_path: Path) -> None:
    first, second = build("tiny", weights="none"), build("tiny", weights="none")
    assert vision_fingerprint(first) != vision_fingerprint(second)
    first.save(tmp_path / "vit.safetensors")
    loaded = build("tiny", weights=str(tmp_path / "vit.safetensors"))
    assert vision_fingerprint(loaded) == vision_fingerprint(first)

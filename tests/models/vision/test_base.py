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
from lavislite.models.vision import base
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
    return build_vision(VisionConfig(**{"name": name, "image_size": 64, **options}))


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


def test_a_plain_function_that_returns_a_module_will_do(tmp_path: Path) -> None:
    file = tmp_path / "my_function_backbone.py"
    file.write_text(
        "from torch import nn\n"
        "from lavislite import registry\n"
        "@registry.vision_backbones.register('my_function')\n"
        "def my_function(image_size, width=8):\n"
        "    net = nn.Sequential(nn.Conv2d(3, width, 16, 16), nn.Flatten(2))\n"
        "    net.append(nn.Linear((image_size // 16) ** 2, width))\n"
        "    net.num_features = width\n"
        "    return net\n"
    )
    import_user_dir(str(file))
    assert build("my_function")(torch.randn(2, 3, 64, 64)).shape == (2, 8, 8)
    assert build("my_function", options={"width": 6}).num_features == 6


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


def test_an_error_inside_a_layer_names_the_users_line(wrong: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match=r"shapes cannot be multiplied.*test_base.py:\d+\)"):
        build(wrong(lambda x: nn.Linear(5, 7)(x)))


def test_a_constructor_that_fails_or_gives_no_module_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for target, message in (
        (lambda: nn.Linear(-1, 1 // 0), r"cannot be built: ZeroDivisionError.*test_base.py:"),
        (lambda: torch.relu, "must be a torch.nn.Module.*it gave a builtin_function_or_method"),
    ):
        monkeypatch.setitem(registry.vision_backbones._objects, "wrong", target)
        with pytest.raises(ConfigError, match=message):
            build("wrong")


def test_settings_a_backbone_cannot_follow_are_refused() -> None:
    for setting in ({"drop_blocks": 1}, {"final_norm": False}, {"drop_path_rate": 0.1}):
        key = next(iter(setting))
        with pytest.raises(ConfigError, match=f"model.vision.{key}: 'tiny' takes no argument"):
            build("tiny", weights="none", **setting)
    build("tiny", weights="none", drop_blocks=0, final_norm=True)


def test_code_that_looks_at_numbers_is_tried_with_numbers(
    wrong: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "LARGE", 0)
    build(wrong(lambda x: x.flatten(2).mT * (1.0 + x.abs().sum().item())))


def test_parameters_the_tokens_do_not_depend_on_do_not_train() -> None:
    backbone = build("timm:test_vit3", weights="none", freeze=False)  # has a pooling head
    backbone(torch.randn(1, 3, 64, 64)).sum().backward()
    trained = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained
    assert all(p.grad is not None for p in trained.values())
    assert not any("attn_pool" in name for name in trained)
    assert backbone.training


def test_unknown_names_options_and_precisions_offer_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'tiny'"):
        build("tinyy")
    with pytest.raises(ConfigError, match="no argument 'dpeth'. Did you mean 'depth'"):
        build("tiny", options={"dpeth": 1})
    with pytest.raises(ConfigError, match="Did you mean 'bf16'"):
        build("tiny", weights="none", precision="b16")


def test_the_adapters_need_the_name_of_a_model() -> None:
    with pytest.raises(ConfigError, match="'timm' needs a model: 'timm:<name>'"):
        build("timm")


def test_missing_playground_weights_say_how_to_make_them() -> None:
    with pytest.raises(UserError, match="playground_vision.yaml"):
        build("tiny")


def test_the_fingerprint_tells_weights_apart_and_survives_saving(tmp_path: Path) -> None:
    first, second = build("tiny", weights="none"), build("tiny", weights="none")
    assert vision_fingerprint(first) != vision_fingerprint(second)
    first.save(tmp_path / "vit.safetensors")
    loaded = build("tiny", weights=str(tmp_path / "vit.safetensors"))
    assert vision_fingerprint(loaded) == vision_fingerprint(first)


def test_the_fingerprint_is_the_same_in_the_types_of_automatic_precision(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    build("tiny", weights="none").save(path)
    full, half = (build("tiny", weights=str(path), precision=p) for p in ("fp32", "bf16"))
    assert next(half.parameters()).dtype == torch.bfloat16
    assert vision_fingerprint(full) == vision_fingerprint(half)

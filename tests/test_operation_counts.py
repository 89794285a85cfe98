"""Speed as counts, which do not depend on the machine: operations, waits for the device, bytes.

The models are blueprints (`lavislite estimate`): their true sizes, and no numbers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lavislite.common import distributed
from lavislite.estimate.processes import as_one_of
from lavislite.models.blip2.layers import QFormerConfig
from lavislite.models.blip2.stage1 import Blip2Config
from lavislite.models.blip2.stage2 import Blip2OPTConfig
from lavislite.models.language.base import LanguageConfig
from lavislite.models.vision.base import VisionConfig

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = QFormerConfig(hidden_size=384, num_heads=6, init="none")
VIT_SMALL = "timm:vit_small_patch16_224"
BATCH = 16


def blueprint(cfg: Any, tokens: int) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("blueprint").Blueprint(cfg, tokens)


@pytest.fixture(scope="module")
def stage1() -> Any:
    cfg = Blip2Config(vision=VisionConfig(name=VIT_SMALL), qformer=SMALL)
    return blueprint(cfg, tokens=197)


# ---- operations


def test_a_step_of_stage1(stage1: Any) -> None:
    """The original takes 952 GFLOP; 147 of them in the tower, which features make unnecessary."""
    whole = stage1.gflop()
    assert 600 < whole < 641
    assert stage1.gflop(cached=True) == pytest.approx(whole - 147.2, abs=0.1)


def test_a_step_of_stage1_at_the_papers_size() -> None:
    """An image takes the original 755 GFLOP: 518 in ViT-g, 237 in the Q-Former."""
    paper = blueprint(Blip2Config(), tokens=257)
    tower, bridge = paper.tower_gflop() / BATCH, paper.gflop(cached=True) / BATCH
    assert tower == pytest.approx(520.7, abs=0.1)
    assert 120 < bridge < 128
    assert tower + bridge < 650


def test_a_step_of_stage2() -> None:
    """OPT with 6 layers of 512: the original takes 420 GFLOP."""
    options = {"num_hidden_layers": 6, "hidden_size": 512, "ffn_dim": 2048}
    options |= {"word_embed_proj_dim": 512, "num_attention_heads": 8}
    language = LanguageConfig(name="facebook/opt-125m", end="word", options=options)
    vision = VisionConfig(name=VIT_SMALL)
    cfg = Blip2OPTConfig(vision=vision, qformer=SMALL, language=language)
    assert 300 < blueprint(cfg, tokens=197).gflop() < 330


# ---- waits


class Waits(TorchDispatchMode):
    """Notes what a host cannot know before the device has computed it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_a_step_of_stage1_never_waits_for_the_device() -> None:
    from tests.models.reference import reference_batch, reference_model

    model, samples = reference_model().train(), reference_batch("eva_frozen")
    samples = model.text_preparer()(samples)
    with Waits() as waits:
        model(samples)["loss"].backward()
    assert waits.found == []
    with Waits() as waits:  # it notices
        samples["image"].sum().item()
    assert waits.found == ["_local_scalar_dense"]


# ---- memory


class Made(TorchDispatchMode):
    """Notes what makes tensors of one shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.found = shape, list[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and isinstance(result, Tensor) and tuple(result.shape) == self.shape:
            self.found.append(func.overloadpacket.__name__)
        return result


def test_a_step_of_stage1_makes_one_gradient_of_the_vocabularys_size() -> None:
    from tests.models.reference import reference_batch, reference_model

    model, samples = reference_model().train(), reference_batch("eva_frozen")
    words = model.Qformer.bert.embeddings.word_embeddings.weight
    with Made(tuple(words.shape)) as made:
        model(samples)["loss"].backward()
    anew = [name for name in made.found if name != "detach" and not name.endswith("_")]
    assert anew == ["mm"]  # the output matrix's own; what is looked up is added to it in place


# ---- what travels


@contextmanager
def travelling(world: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Bytes that one of `world` processes receives, by the way they come."""
    found: dict[str, int] = {}

    def noted(name: str, exchange: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any) -> Tensor:
            result = exchange(*args)
            found[name] = found.get(name, 0) + result.numel() * result.element_size()
            return result

        return call

    with as_one_of(world):
        for name in ("gather_no_grad", "exchange_rows"):
            monkeypatch.setattr(distributed, name, noted(name, getattr(distributed, name)))
        try:
            yield found
        finally:
            monkeypatch.undo()


def test_only_features_tokens_and_the_chosen_images_travel(
    stage1: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original gathers the tokens of all images; here each process asks for its negatives."""
    world = 8
    with travelling(world, monkeypatch) as found:
        stage1.step(stage1.text | {"image": stage1.image})
    length = 17  # [CLS], 15 words, [SEP]
    features = BATCH * (32 + 1) * 256 * 4
    ids = BATCH * (length + 1) * 8  # of tokens, and of images
    assert found["gather_no_grad"] == world * (features + ids)
    assert found["exchange_rows"] == BATCH * 197 * 384 * 4

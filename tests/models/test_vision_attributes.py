"""Attribute training of the tiny ViT: which token gets which label, and what counts as right."""

from __future__ import annotations

import pytest
import torch

from lavislite.common.errors import ConfigError, DataError
from lavislite.datasets.playground.scenes import VOCABULARY
from lavislite.models.vision.attributes import TinyViTAttributes, TinyViTAttributesConfig

NONE = [-1.0] * 4


class Grid(torch.nn.Module):
    """Four tokens (2 x 2) that are given from outside, instead of a ViT."""

    num_features = 3

    def __init__(self, tokens: torch.Tensor) -> None:
        super().__init__()
        self.tokens = torch.nn.Parameter(tokens)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.tokens.expand(len(images), -1, -1)


def oracle() -> TinyViTAttributes:
    """Token k says: value k % 2 of both attributes (first two features), presence (third)."""
    tokens = torch.tensor([[9.0, 0, 5], [0, 9, 5], [9, 0, -5], [0, 9, -5]])[None]
    model = TinyViTAttributes(Grid(tokens), {"shape": 2, "colour": 2})
    for classifier in model.classifiers.values():
        torch.nn.init.zeros_(classifier.bias)
        classifier.weight.data = torch.eye(2, 3)
    model.presence.weight.data = torch.tensor([[0.0, 0, 1]])
    torch.nn.init.zeros_(model.presence.bias)
    return model


def samples(boxes: list, labels: list) -> dict[str, torch.Tensor]:
    return {
        "image": torch.zeros(1, 3, 8, 8),
        "object_boxes": torch.tensor([boxes]),
        "object_labels": torch.tensor([labels]),
    }


TOP_LEFT, TOP_RIGHT = [0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 0.5]


def test_a_right_model_has_no_loss_and_full_accuracy():
    model = oracle()
    batch = samples([TOP_LEFT, TOP_RIGHT, NONE], [[0, 0], [1, 1], [-1, -1]])
    losses = model(batch)
    assert losses.keys() == {"loss", "loss_presence", "loss_shape", "loss_colour"}
    assert losses["loss"] < 0.02
    assert {k: v.tolist() for k, v in model.accuracy(batch).items()} == {
        "shape": [1.0],
        "colour": [1.0],
        "presence": [1.0],
        "scene": [1.0],
    }


def test_accuracy_counts_objects_and_a_scene_needs_all():
    batch = samples([TOP_LEFT, TOP_RIGHT, NONE], [[0, 0], [1, 0], [-1, -1]])
    accuracy = oracle().accuracy(batch)
    assert accuracy["shape"].tolist() == [1.0]
    assert accuracy["colour"].tolist() == [0.5]
    assert accuracy["scene"].tolist() == [0.0]


def test_presence_counts_tokens():
    batch = samples([TOP_LEFT, NONE], [[0, 0], [-1, -1]])
    assert oracle().accuracy(batch)["presence"].tolist() == [0.75]


def test_a_few_steps_lower_the_loss_on_what_was_seen():
    torch.manual_seed(0)
    cfg = TinyViTAttributesConfig(width=16, heads=2, depth=1)
    model = TinyViTAttributes.from_config(cfg).train()
    batch = {
        "image": torch.randn(4, 3, 64, 64),
        "object_boxes": torch.tensor([TOP_LEFT, NONE]).expand(4, -1, -1),
        "object_labels": torch.tensor([[[k, k, k % 2, 0, k], [-1] * 5] for k in range(4)]),
    }
    optimizer = torch.optim.AdamW(model.get_optimizer_params(0.05), lr=1e-2)
    first = model(batch)["loss"].item()
    for _ in range(15):
        loss = model(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.6 * first


def test_the_default_attributes_are_those_of_the_playground():
    sizes = {name: len(values) for name, values in VOCABULARY.items()}
    assert TinyViTAttributesConfig().attributes == sizes


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="attributes is empty"):
        TinyViTAttributes(Grid(torch.zeros(1, 4, 3)), {})
    with pytest.raises(DataError, match="has 1 columns, the model has 2 attributes: shape, colour"):
        oracle()(samples([TOP_LEFT], [[0]]))
    model = TinyViTAttributes(Grid(torch.zeros(1, 5, 3)), {"shape": 2})
    with pytest.raises(ConfigError, match="square grid of tokens, the ViT gives 5"):
        model(samples([TOP_LEFT], [[0]]))

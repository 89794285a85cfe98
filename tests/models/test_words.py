"""Look-ups and output matrix share one gradient, and it is the right one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lavislite.models.blip2.words import Words

IDS = [torch.tensor([[3, 1, 3], [0, 3, 2]]), torch.tensor([[4, 4]])]  # tokens that come again


def tied(weight: Tensor, rows: list[Tensor], matrix: Tensor) -> Tensor:
    """Something that depends on every row, and on the matrix."""
    hidden = torch.cat([r.flatten(0, 1) for r in rows]).tanh()
    return (F.linear(hidden, matrix).cos() * weight.detach().sum()).sum()


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], ids=["cpu", "cuda"]
)
@pytest.mark.parametrize("output", [True, False], ids=["with output matrix", "look-ups alone"])
def test_the_gradient_is_that_of_embedding_and_linear(device: str, output: bool) -> None:
    weight = torch.randn(6, 4, device=device, dtype=torch.double, requires_grad=True)
    ids = [x.to(device) for x in IDS]

    plain = tied(weight, [F.embedding(x, weight) for x in ids], weight if output else weight.data)
    (expected,) = torch.autograd.grad(plain, weight)
    words = Words(weight)
    rows = [words.look_up(x) for x in ids]
    found = tied(weight, rows, words.matrix if output else weight.data)
    (gradient,) = torch.autograd.grad(found, weight)

    assert found.item() == plain.item()
    torch.testing.assert_close(gradient, expected)


def test_a_look_up_that_nothing_depends_on_changes_nothing() -> None:
    weight = torch.randn(6, 4, requires_grad=True)
    words = Words(weight)
    words.look_up(IDS[0])
    words.matrix.sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones(6, 4))

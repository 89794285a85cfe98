"""Our AdamW is torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lavislite.runners.adamw import AdamW


@pytest.mark.parametrize("fused", [True, False])
def test_steps_and_state_are_those_of_torch(fused: bool) -> None:
    starts = [torch.randn(4, 3), torch.randn(3)]
    weights = [[nn.Parameter(start.clone()) for start in starts] for _ in range(2)]
    options = {"lr": 0.1, "weight_decay": 0.05, "betas": (0.9, 0.98), "fused": fused}
    found = []
    for kind, own in zip((torch.optim.AdamW, AdamW), weights, strict=True):
        groups = [{"params": own[:1]}, {"params": own[1:], "weight_decay": 0.0}]
        optimizer = kind(groups, **options)
        for number in range(4):
            if number == 2:  # as a run that goes on from a checkpoint
                state = optimizer.state_dict()
                optimizer = kind(groups, **options)
                optimizer.load_state_dict(state)
            sum((p**2).sum() for p in own).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all(p.grad is None for p in own)
        found.append(optimizer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert found[0]["param_groups"] == found[1]["param_groups"]
    for key, state in found[0]["state"].items():
        assert all(torch.equal(state[name], found[1]["state"][key][name]) for name in state)


def test_a_step_takes_no_part_in_the_graph() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = AdamW([weight], lr=0.1)
    loss = optimizer.step(lambda: _backward(weight))
    assert loss == 2.0
    assert weight.is_leaf


def _backward(weight: nn.Parameter) -> float:
    with torch.enable_grad():
        loss = weight.sum()
    loss.backward()
    return loss.item()

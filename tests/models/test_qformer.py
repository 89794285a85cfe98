"""The Q-Former's masks, shortcuts and cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lavislite.common.errors import ConfigError
from lavislite.models.blip2.layers import QFormerConfig
from lavislite.models.blip2.qformer import ImageMemory, QFormer

QUERIES = 3


def small(**changes: object) -> QFormer:
    settings: dict = {
        "hidden_size": 16,
        "num_layers": 3,
        "num_heads": 2,
        "max_positions": 12,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    qformer = QFormer(QFormerConfig(**{**settings, **changes}), vocab_size=20, image_width=8)
    for p in qformer.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return qformer.eval()


def some_inputs(pairs: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ids = torch.randint(5, 20, (pairs, 6))
    mask = torch.ones_like(ids)
    return torch.randn(1, QUERIES, 16), ids, mask, torch.randn(pairs, 4, 8)


def test_decoding_token_by_token_equals_decoding_at_once() -> None:
    qformer = small()
    query, ids, mask, image = some_inputs()
    _, cache = qformer.encode_queries(query, qformer.image_memory(image))
    at_once, _ = qformer.decode(ids, mask, cache)
    for n in range(ids.shape[1]):
        one, cache = qformer.decode(ids[:, n : n + 1], mask[:, :1], cache, offset=n)
        torch.testing.assert_close(one[:, 0], at_once[:, n])


def test_a_generated_token_sees_no_later_token() -> None:
    qformer = small()
    query, ids, mask, image = some_inputs()
    _, cache = qformer.encode_queries(query, qformer.image_memory(image))
    before, _ = qformer.decode(ids, mask, cache)
    changed = ids.clone()
    changed[:, 4:] = 7
    after, _ = qformer.decode(changed, mask, cache)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_queries_without_text_and_text_without_queries_do_not_meet() -> None:
    qformer = small()
    query, ids, mask, image = some_inputs()
    memory = qformer.image_memory(image)
    alone, _ = qformer.encode_queries(query, memory)
    together = qformer.encode_pairs(query, ids, mask, memory)
    assert alone.shape == together.shape == (2, QUERIES, 16)
    assert not torch.allclose(alone, together)


def test_only_computing_the_queries_changes_nothing() -> None:
    qformer = small()
    query, ids, mask, image = some_inputs()
    memory = qformer.image_memory(image)
    whole = qformer.encode_pairs(query, ids, mask, memory, queries_only=False)
    assert whole.shape == (2, QUERIES + 6, 16)
    torch.testing.assert_close(qformer.encode_pairs(query, ids, mask, memory), whole[:, :QUERIES])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_sharing_texts_and_images_among_pairs_changes_nothing(layers: int) -> None:
    qformer = small(num_layers=layers)
    query, ids, mask, image = some_inputs(3)
    mask[1, 3:] = 0
    text_of, image_of = torch.tensor([0, 1, 1, 2, 0]), torch.tensor([2, 0, 1, 1, 0])
    shared = qformer.encode_pairs(
        query, ids, mask, qformer.image_memory(image).select(image_of), text_index=text_of
    )
    apart = qformer.encode_pairs(
        query, ids[text_of], mask[text_of], qformer.image_memory(image[image_of])
    )
    torch.testing.assert_close(shared, apart)


def test_memories_join_and_select() -> None:
    qformer = small()
    a, b = torch.randn(2, 4, 8), torch.randn(1, 4, 8)
    joined = ImageMemory.cat([qformer.image_memory(a), qformer.image_memory(b)])
    assert len(joined) == 3
    assert len(joined.keys) == 2  # layers 0 and 2 look at the image
    picked = joined.select(torch.tensor([2, 0]))
    torch.testing.assert_close(
        picked.values[1], qformer.image_memory(torch.cat([b, a])).values[1][:2]
    )


def test_the_probe_sees_the_probabilities_that_make_the_output() -> None:
    qformer = small(num_layers=1)
    query, _, _, image = some_inputs()
    probe: list[Tensor] = []
    memory = qformer.image_memory(image)
    qformer.encode_queries(query, memory, probe=probe)
    assert probe[0].shape == (2, 2, QUERIES, 4)
    torch.testing.assert_close(probe[0].sum(-1), torch.ones(2, 2, QUERIES))
    # The same attention, from the layer's own query rows and by definition.
    layer = qformer.layers[0]
    seen: list[Tensor] = []
    layer.crossattention.output.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    qformer.encode_queries(query, memory)
    by_hand = (probe[0] @ memory.values[0]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(seen[0], by_hand)


def test_a_fresh_query_ffn_equals_the_text_ffn_and_the_rest_is_small_noise() -> None:
    qformer = QFormer(
        QFormerConfig(hidden_size=64, num_heads=4, num_layers=2), vocab_size=20, image_width=8
    )
    layer = qformer.layers[0]
    assert torch.equal(layer.intermediate_query.dense.weight, layer.intermediate.dense.weight)
    assert layer.crossattention.self.key.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert layer.output.dense.weight.shape == (64, 256)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="num_heads: 5 does not divide hidden_size 16"):
        small(num_heads=5)


@pytest.mark.parametrize("key", ["num_heads", "num_layers", "hidden_size", "max_positions"])
def test_a_size_of_nothing_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"model.qformer.{key}: expected 1 or more, saw 0"):
        QFormerConfig(**{key: 0}).check()

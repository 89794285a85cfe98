"""Stage 1 gives the numbers of the original BLIP-2, and stays sane where the original breaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lavislite.common import distributed
from lavislite.common.errors import ConfigError
from lavislite.models.blip2 import losses
from lavislite.models.blip2.layers import QFormerLayer
from lavislite.models.blip2.stage1 import Blip2Config, Blip2Qformer

from .reference import (
    FOLDER,
    reference_batch,
    reference_model,
    reference_negatives,
    stage1_json,
    tensors,
    tiny_config,
    tiny_eva,
)

TAGS = ["eva_frozen", "eva_frozen_image_id", "eva_unfrozen"]


def losses_of(model: Blip2Qformer, tag: str) -> dict[str, Tensor]:
    return model(reference_batch(tag), reference_negatives(tag))


@pytest.mark.parametrize("tag", TAGS)
def test_losses_of_the_original(tag: str) -> None:
    model = reference_model(frozen=tag != "eva_unfrozen").train()
    found = {name: loss.item() for name, loss in losses_of(model, tag).items()}
    assert found == pytest.approx(stage1_json()["cases"][tag]["losses"], rel=1e-5)


@pytest.mark.parametrize("objectives", [["itc"], ["itg"], ["itc", "itm"], ["itg", "itc"]])
def test_some_of_the_objectives(objectives: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are not computed, and those that are do not change."""
    whole = losses_of(reference_model().train(), "eva_frozen")
    model = reference_model(objectives=objectives).train()
    parts = {"itc": "_contrast", "itm": "_matching", "itg": "_language"}
    for name in parts.keys() - set(objectives):
        monkeypatch.delattr(Blip2Qformer, parts[name])
    found = losses_of(model, "eva_frozen")
    kept = {"loss_lm" if name == "itg" else f"loss_{name}" for name in objectives}
    assert found.keys() == {"loss", *kept}
    for name in kept:
        assert torch.equal(found[name], whole[name])
    torch.testing.assert_close(found["loss"], torch.stack([found[name] for name in kept]).sum())
    found["loss"].backward()
    assert any(p.grad is None for p in model.parameters() if p.requires_grad)
    assert model.leaves_parameters_unused  # which several processes have to be told
    assert not reference_model().leaves_parameters_unused


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        (["itm", "itg"], r"'itm' needs 'itc', whose similarities choose .* Add itc"),
        (["itc", "itgg"], r"'itgg' is unknown. Did you mean 'itg'.* Known: itc, itm, itg"),
        ([], r"model.objectives: is empty; name some of itc, itm, itg"),
    ],
)
def test_objectives_that_cannot_be(objectives: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(objectives=objectives).check()


@pytest.mark.parametrize("tag", TAGS)
def test_gradient_norms_of_the_original(tag: str) -> None:
    model = reference_model(frozen=tag != "eva_unfrozen").train()
    losses_of(model, tag)["loss"].backward()
    expected = stage1_json()["cases"][tag]["grad_norms"]
    found = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    # A constant key bias cannot change a softmax: those gradients are rounding noise.
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("tag", ["eva_frozen", "eva_unfrozen"])
def test_gradients_of_the_original(tag: str) -> None:
    model = reference_model(frozen=tag != "eva_unfrozen").train()
    losses_of(model, tag)["loss"].backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    for name, expected in tensors(f"{tag}_grads").items():
        if name.startswith("Qformer.cls.predictions.decoder"):
            continue  # the tied copies
        found = grads[name].reshape(expected.shape)
        assert (found - expected).norm() <= 1e-4 * expected.norm() + 1e-5, name


@pytest.mark.parametrize("tag", ["eva_frozen", "eva_frozen_image_id"])
def test_intermediate_tensors_of_the_original(tag: str) -> None:
    model, samples = reference_model().eval(), reference_batch(tag)
    expected = tensors(f"{tag}_tensors")
    qformer = model.Qformer
    found: dict[str, Tensor] = {}

    text = model.pack(samples["text_input"])
    found["text_input_ids"], found["text_attention_mask"] = text.ids, text.mask
    found["vit_output"] = model.visual_encoder(samples["image"])
    image = found["image_embeds_after_ln_vision"] = model.encode_image(samples["image"])
    memory = model.image_memory(image)
    queries, cache = qformer.encode_queries(model.query_tokens, memory)
    found["query_output_last_hidden"] = queries
    words = found["text_output_last_hidden"] = qformer.encode_text(text.ids, text.mask)
    image_feats = found["image_feats"] = model.project_image(queries)
    text_feat = found["text_feat"] = model.project_text(words[:, 0])

    sim_i2t, sim_t2i = model.similarities(image_feats, text_feat)
    found["sim_i2t"], found["sim_t2i"] = sim_i2t, sim_t2i
    ids = samples["image_id"] if "image_id" in samples else torch.arange(4)
    same = ids[:, None] == ids[None]
    found["weights_i2t"] = losses.negative_weights(sim_i2t, same)
    found["weights_t2i"] = losses.negative_weights(sim_t2i, same)

    neg_image, neg_text = reference_negatives(tag)
    own = torch.arange(4)
    hidden = qformer.encode_pairs(
        model.query_tokens,
        text.ids,
        text.mask,
        memory.select(torch.cat([own, neg_image, own])),
        text_index=torch.cat([own, own, neg_text]),
        queries_only=False,
    )
    found["itm_output_last_hidden"] = hidden
    found["itm_head_output"] = model.itm_head(hidden[:, :8])
    found["itm_logits"] = found["itm_head_output"].mean(1)

    begun = text.ids.clone()
    begun[:, 0] = model.tokenizer.bos_token_id
    found["lm_output_last_hidden"] = qformer.decode(begun, text.mask, cache)[0]
    found["lm_logits"] = qformer.lm_logits(found["lm_output_last_hidden"])

    given = {"image", "image_id", "neg_image_index_for_text", "neg_text_index_for_image"}
    assert found.keys() == expected.keys() - given
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=1e-4, msg=name)


def test_the_first_token_of_a_text_needs_no_other_rows() -> None:
    model, text = reference_model().eval(), None
    text = model.pack(["a red cat", "two happy dogs running near the beach"])
    whole = model.Qformer.encode_text(text.ids, text.mask)
    torch.testing.assert_close(
        model.Qformer.encode_text(text.ids, text.mask, cls_only=True), whole[:, :1]
    )


def test_padding_changes_nothing() -> None:
    model, samples = reference_model().train(), reference_batch("eva_frozen")
    samples["text_input"] = ["a red cat", "a dog", "an old man", "two dogs running"]
    negatives = reference_negatives("eva_frozen")
    expected = model(samples, negatives)
    pack = model.pack
    model.pack = _wider(pack)  # type: ignore[assignment]
    found = model(samples, negatives)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


def _wider(pack: Any) -> Any:
    def packed(texts: list[str]) -> Any:
        from lavislite.models.blip2.text import TextBatch

        text = pack(texts)
        n = text.ids.shape[1]
        rows = text.lm_rows + 3 * torch.div(text.lm_rows, n, rounding_mode="floor")
        pad = nn.functional.pad
        return TextBatch(pad(text.ids, (0, 3)), pad(text.mask, (0, 3)), rows, text.lm_targets)

    return packed


# ---- work done once


def test_keys_and_values_of_an_image_are_made_once_per_step(monkeypatch) -> None:
    model, samples = reference_model().train(), reference_batch("eva_frozen")
    images: list[int] = []
    make = QFormerLayer.image_keys_values

    def counted(layer, image, *others):
        images.append(len(image))
        return make(layer, image, *others)

    monkeypatch.setattr(QFormerLayer, "image_keys_values", counted)
    model(samples)
    assert images == [4] * 2  # two layers look at the image


def test_no_gradient_is_made_for_the_tokens_of_images_of_a_frozen_tower() -> None:
    model, samples = reference_model().train(), reference_batch("eva_frozen")
    features = model.tower_features(samples["image"])
    tokens = model.tokens_of(features)
    assert not tokens.requires_grad
    model(samples)["loss"].backward()
    assert model.ln_vision.weight.grad is not None  # which learns all the same


def test_features_take_the_place_of_images() -> None:
    model, samples = reference_model().eval(), reference_batch("eva_frozen")
    features = {"image_features": model.tower_features(samples["image"])}
    texts = {key: value for key, value in samples.items() if key != "image"}
    calls: list[Any] = []
    model.visual_encoder.register_forward_hook(lambda *_: calls.append(1))
    found = model(texts | features)
    assert calls == []
    assert found == model(samples)


def test_only_rows_with_a_next_token_meet_the_vocabulary() -> None:
    model, samples = reference_model().train(), reference_batch("eva_frozen")
    rows: list[int] = []
    head = model.Qformer.cls.predictions.transform
    head.register_forward_hook(lambda _m, args, _out: rows.append(len(args[0])))
    model(samples)
    assert rows == [int((model.pack(samples["text_input"]).mask.sum(1) - 1).sum())]


# ---- corner cases


def fresh_model(**changes: Any) -> Blip2Qformer:
    from lavislite.models.blip2.text import build_tokenizer

    return Blip2Qformer(
        tiny_config(**changes), vision=tiny_eva(), tokenizer=build_tokenizer(str(FOLDER))
    )


@pytest.mark.parametrize("batch", ["one", "all the same image"])
def test_no_negative_means_no_matching_loss(batch: str) -> None:
    model, samples = reference_model().train(), reference_batch("eva_frozen")
    if batch == "one":
        samples = {"image": samples["image"][:1], "text_input": samples["text_input"][:1]}
    else:
        samples["image_id"] = torch.tensor([7, 7, 7, 7])
    out = model(samples)
    assert out["loss_itm"].item() == 0.0
    out["loss"].backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(g is not None and g.isfinite().all() for g in grads.values())


def test_a_row_without_negative_is_left_out_of_the_matching_loss() -> None:
    logits = torch.randn(6, 2)
    total, count = losses.matching_loss(logits, torch.tensor([True, False]))
    rows = torch.nn.functional.cross_entropy(
        logits[[0, 2, 4]], torch.tensor([1, 0, 0]), reduction="sum"
    )
    assert count == 3
    torch.testing.assert_close(total, rows)


def test_string_image_ids_count_as_equal_or_not() -> None:
    model, samples = reference_model().train(), reference_batch("eva_frozen_image_id")
    negatives = reference_negatives("eva_frozen_image_id")
    numbers = model(samples, negatives)["loss_itc"]
    samples["image_id"] = ["5", "9", "5", "2"]
    torch.testing.assert_close(model(samples, negatives)["loss_itc"], numbers)


def test_evaluation_draws_the_same_negatives_and_leaves_training_alone() -> None:
    model, samples = reference_model().eval(), reference_batch("eva_frozen")
    distributed.seed_everything(1)
    before = distributed.shared_generator("cpu").get_state()
    first, second = model(samples)["loss"], model(samples)["loss"]
    assert torch.equal(first, second)
    assert torch.equal(distributed.shared_generator("cpu").get_state(), before)


def test_negatives_in_training_follow_the_shared_generator() -> None:
    model, samples = reference_model().train(), reference_batch("eva_frozen")
    seen = []
    for seed in (1, 1, 2, 3, 4):
        distributed.seed_everything(seed)
        seen.append(model(samples)["loss_itm"].item())
    assert seen[0] == seen[1]
    assert len(set(seen)) > 1


def test_temperature_is_kept_in_its_range() -> None:
    model, samples = reference_model().train(), reference_batch("eva_frozen")
    with torch.no_grad():
        model.temp.fill_(0.0)
    assert model(samples)["loss_itc"].isfinite()


def test_bfloat16_autocast_keeps_the_losses_in_float32_and_close() -> None:
    model = reference_model().train()
    exact = losses_of(model, "eva_frozen")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = losses_of(model, "eva_frozen")
    rough["loss"].backward()
    for name, loss in rough.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.05, atol=0.05)


def test_a_frozen_tower_keeps_its_own_precision_and_mode() -> None:
    model = reference_model().train()
    model.visual_encoder.to(torch.bfloat16)
    assert not model.visual_encoder.training
    out = losses_of(model, "eva_frozen")
    assert out["loss"].dtype == torch.float32
    assert out["loss"].item() == pytest.approx(9.7796, rel=0.05)


def test_dropout_trains_with_the_shared_first_layer() -> None:
    model, samples = fresh_model(), reference_batch("eva_frozen")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    model.train()(samples)["loss"].backward()
    assert model.query_tokens.grad is not None
    assert model.query_tokens.grad.isfinite().all()


def test_a_fresh_model_starts_at_chance() -> None:
    """Loss of guessing: log 4 for contrast, log 2 for matching, log 255 for a token."""
    model = fresh_model(label_smoothing=0.0).eval()
    out = model(reference_batch("eva_frozen"))
    assert out["loss_itm"].item() == pytest.approx(0.693, abs=0.2)
    assert out["loss_lm"].item() == pytest.approx(5.54, abs=0.2)
    assert model.temp.item() == pytest.approx(0.07)
    for layer in model.Qformer.layers:
        assert torch.equal(layer.intermediate_query.dense.weight, layer.intermediate.dense.weight)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_query_tokens": 0}, "model.num_query_tokens: expected 1 or more, saw 0"),
        ({"embed_dim": -1}, "model.embed_dim: expected 1 or more, saw -1"),
        ({"label_smoothing": 2.0}, "model.label_smoothing: expected 0 to 1, saw 2.0"),
        ({"max_txt_len": 2}, "model.max_txt_len: expected 3 or more, saw 2"),
        ({"max_txt_len": 513}, "max_txt_len: 513 tokens do not fit .*max_positions 512"),
    ],
)
def test_sizes_that_cannot_be_are_named(options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Blip2Config(**options).check()

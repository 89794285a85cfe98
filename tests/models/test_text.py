"""Vocabularies, and packing captions."""

from __future__ import annotations

import logging
import pickle
import random
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from lavislite.common.errors import UserError
from lavislite.models.blip2.losses import NO_TARGET
from lavislite.models.blip2.text import (
    TextPacker,
    TextPreparer,
    build_tokenizer,
    save_tokenizer,
    tokenizer_identity,
)

from .reference import FOLDER, reference_batch, tensors

CAPTIONS = [
    f"A {size} {colour} {shape}, near two {shape}s."
    for size in ("small", "large")
    for colour in ("red", "green", "blue")
    for shape in ("circle", "square", "triangle")
]


def test_ids_of_the_original() -> None:
    tokenizer = build_tokenizer(str(FOLDER))
    assert len(tokenizer) == 255
    assert tokenizer.bos_token_id == 254
    text = TextPacker(tokenizer, 16)(reference_batch("eva_frozen")["text_input"])
    assert torch.equal(text.ids, tensors("eva_frozen_tensors")["text_input_ids"])
    assert torch.equal(text.mask, tensors("eva_frozen_tensors")["text_attention_mask"])


def test_a_batch_is_as_long_as_its_longest_text() -> None:
    pack = TextPacker(build_tokenizer(str(FOLDER)), 16)
    text = pack(["a red cat", "a dog"])
    assert text.ids.shape == (2, 5)
    assert text.mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    # each row predicts what follows it, up to the closing [SEP]
    assert text.lm_rows.tolist() == [0, 1, 2, 3, 5, 6, 7]
    assert text.lm_targets.tolist() == [*text.ids[0, 1:].tolist(), *text.ids[1, 1:4].tolist()]


def test_truncation_keeps_the_closing_token() -> None:
    pack = TextPacker(build_tokenizer(str(FOLDER)), 6)
    ids = pack(["a red cat sitting on the small table"]).ids
    assert ids.shape == (1, 6)
    assert ids[0, -1] == pack.tokenizer.sep_token_id
    assert pack(["a red cat sitting on the small table"], 30).ids.shape[1] > 6


def test_one_string_is_one_text() -> None:
    assert TextPacker(build_tokenizer(str(FOLDER)), 6)("a cat").ids.shape == (1, 4)


def test_many_truncated_captions_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    pack = TextPacker(build_tokenizer(str(FOLDER)), 6)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            pack(["a cat", "a red cat sitting on the small table"] * 30)
    warnings = [r.getMessage() for r in caplog.records]
    assert len(warnings) == 1
    assert "50%" in warnings[0]
    assert "max_txt_len" in warnings[0]


def test_few_truncated_captions_are_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    pack = TextPacker(build_tokenizer(str(FOLDER)), 6)
    with caplog.at_level(logging.WARNING):
        pack(["a cat"] * 199 + ["a red cat sitting on the small table"])
    assert not caplog.records


@pytest.mark.parametrize("multiple", [2, 4, 8])
def test_padding_to_a_multiple_changes_the_shapes_alone(multiple: int) -> None:
    tokenizer = build_tokenizer(str(FOLDER))
    texts = ["a red cat", "a dog", "two dogs running on the old table", "an old man", "a cat"]
    plain = TextPacker(tokenizer, 16)(texts)
    text = TextPacker(tokenizer, 16, multiple=multiple)(texts)
    length = plain.ids.shape[1]
    assert text.ids.shape[1] == -(-length // multiple) * multiple
    assert torch.equal(text.ids[:, :length], plain.ids)
    assert (text.ids[:, length:] == tokenizer.pad_token_id).all()
    assert torch.equal(text.mask, (text.ids != tokenizer.pad_token_id).long())
    assert len(text.lm_rows) % (2 * multiple) == 0  # two quarters of five texts
    counted = text.lm_targets != NO_TARGET
    assert torch.equal(text.lm_targets[counted], plain.lm_targets)
    flat = text.ids.flatten()
    assert torch.equal(flat[text.lm_rows[counted] + 1], plain.lm_targets)
    logits = torch.randn(text.ids.numel(), len(tokenizer))
    one, other = (
        cross_entropy(logits[rows], targets, reduction="sum", label_smoothing=0.1)
        for rows, targets in (
            (text.lm_rows, text.lm_targets),
            (text.lm_rows[counted], text.lm_targets[counted]),
        )
    )
    torch.testing.assert_close(one, other)


def test_padding_to_a_multiple_ends_at_the_longest_text_allowed() -> None:
    pack = TextPacker(build_tokenizer(str(FOLDER)), 6, multiple=4)
    assert pack(["a cat"]).ids.shape == (1, 4)
    assert pack(["a red cat sitting on the small table"]).ids.shape == (1, 6)


def test_batches_of_many_lengths_come_in_few_shapes() -> None:
    rng = random.Random(0)
    batches = [["cat " * rng.randint(8, 15) for _ in range(16)] for _ in range(50)]
    shapes = []
    for multiple in (1, 8):
        pack = TextPacker(build_tokenizer(str(FOLDER)), 32, multiple=multiple)
        texts = [pack(batch) for batch in batches]
        shapes.append({(text.ids.shape, len(text.lm_rows)) for text in texts})
    assert len(shapes[0]) > 20
    assert len(shapes[1]) <= 5


def test_a_preparer_adds_tokens_to_a_batch_and_travels_to_workers() -> None:
    pack = TextPacker(build_tokenizer(str(FOLDER)), 16)
    prepare = pickle.loads(pickle.dumps(TextPreparer(pack)))
    batch = {"image": torch.zeros(2, 3), "text_input": ["a red cat", "a dog"]}
    made = prepare(batch)
    assert "text_tokens" not in batch
    assert made["text_input"] == batch["text_input"]
    assert torch.equal(made["text_tokens"].ids, pack(batch["text_input"]).ids)
    assert prepare({"image": batch["image"]}).keys() == {"image"}


def test_workers_report_truncated_captions_once_for_all(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = TextPacker(build_tokenizer(str(FOLDER)), 6)
    texts = ["a red cat sitting on the small table"] * 60

    class Worker:
        id = 1

    with caplog.at_level(logging.WARNING):
        with monkeypatch.context() as patch:
            patch.setattr("torch.utils.data.get_worker_info", Worker)
            pack(texts), pack(texts)
        assert not caplog.records  # it is for worker 0 to say
        pack(texts), pack(texts)
    assert len(caplog.records) == 1


def test_a_vocabulary_made_of_captions_knows_their_words() -> None:
    tokenizer = build_tokenizer("from_data", iter(CAPTIONS))
    assert tokenizer.bos_token_id == len(tokenizer) - 1
    assert tokenizer.tokenize("unread")[:2] == ["u", "##n"]  # spelled
    words = tokenizer.tokenize("a large green triangle, near two circles.")
    assert words == ["a", "large", "green", "triangle", ",", "near", "two", "circles", "."]
    assert tokenizer_identity(tokenizer) == tokenizer_identity(build_tokenizer("auto", CAPTIONS))


def test_a_saved_vocabulary_is_the_same_vocabulary(tmp_path: Path) -> None:
    tokenizer = build_tokenizer("from_data", CAPTIONS, save_dir=tmp_path / "tokenizer")
    again = build_tokenizer(str(tmp_path / "tokenizer"))
    assert tokenizer_identity(again) == tokenizer_identity(tokenizer)
    text = "a small blue square"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_vocabulary_that_lists_a_token_twice_keeps_its_ids(tmp_path: Path) -> None:
    reference = build_tokenizer(str(FOLDER))  # its file does
    save_tokenizer(reference, tmp_path)
    again = build_tokenizer(str(tmp_path))
    assert again.get_vocab() == reference.get_vocab()
    assert tokenizer_identity(again) == tokenizer_identity(reference)


def test_identities_differ_when_ids_differ() -> None:
    a, b = (build_tokenizer("from_data", captions) for captions in (CAPTIONS, CAPTIONS[:4]))
    assert tokenizer_identity(a) != tokenizer_identity(b)


def test_bert_from_our_own_cache_needs_no_network(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "bert-base-uncased"  # conftest points LAVISLITE_CACHE there
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text((FOLDER / "vocab.txt").read_text())
    assert len(build_tokenizer("bert-base-uncased")) == 255
    assert len(build_tokenizer("auto", CAPTIONS)) == 255


def test_what_cannot_be_had_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE.*Put it into .*bert-base-uncased"):
        build_tokenizer("bert-base-uncased", CAPTIONS)
    with pytest.raises(UserError, match="Put it into"):
        build_tokenizer("auto")
    with pytest.raises(UserError, match=r"folder with vocab.txt; there is no .*nowhere"):
        build_tokenizer(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="needs a training dataset"):
        build_tokenizer("from_data")
    (tmp_path / "vocab.txt").write_text("hello\nworld\n")
    with pytest.raises(UserError, match=r"not a BERT vocabulary, it lacks \[PAD\]"):
        build_tokenizer(str(tmp_path))

"""A feature cache: what is computed when, what a split reads, and what is refused."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_parts import (
    EVAL,
    TRAIN,
    Model,
    captions,
    computed,
    draw,
    repaint,
    store_of,
    use,
)
from PIL import Image

from lavislite.common.errors import ConfigError, DataError, UserError
from lavislite.datasets.caption import CaptionDataset
from lavislite.datasets.images import TooManyBadImages
from lavislite.datasets.loading import TrainLoader
from lavislite.datasets.shards import OwnShardsBuilder
from lavislite.features.identity import number, seeded
from lavislite.features.splits import CachedSplit


def features(split: CachedSplit) -> torch.Tensor:
    """Of every sample, in order."""
    return split.collate([split[i] for i in range(len(split))])["image_features"]


def direct(split: CachedSplit) -> torch.Tensor:
    """The same, computed from the pictures."""
    images = [
        split.files.load(split.file_number(i), split.vis_processor) for i in range(len(split))
    ]
    return Model().tower_features(torch.stack(images))


def test_batches_hold_what_the_tower_says_of_each_picture_once(tmp_path: Path) -> None:
    split = captions(tmp_path)
    before = split.collate([split[3]])
    model = use(split)
    assert computed(model) == 6  # of twelve captions
    assert torch.allclose(features(split), direct(split), atol=1e-6)
    batch = split.collate([split[3]])
    assert "image" in before
    assert list(batch) == ["image_features", *list(before)[1:]]
    assert all(
        torch.equal(torch.as_tensor(batch[k]), torch.as_tensor(before[k]))
        for k in ("image_id", "index")
    )


def test_the_second_time_nothing_is_computed(tmp_path: Path) -> None:
    first, second = captions(tmp_path), captions(tmp_path)
    use(first)
    model = use(second)
    assert computed(model) == 0
    assert torch.equal(features(first), features(second))


def test_loading_workers_read_it(tmp_path: Path) -> None:
    split = captions(tmp_path)
    use(split)
    alone, helped = (
        list(TrainLoader([split], batch_size=3, num_workers=n, seed=1).batches(0, 4))
        for n in (0, 2)
    )
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a["image_features"], b["image_features"])


def test_a_picture_that_changed_is_computed_anew_and_no_other(tmp_path: Path) -> None:
    use(captions(tmp_path))
    repaint(tmp_path / "images/4.png", 99, size=13)
    split = captions(tmp_path)
    assert computed(use(split)) == 2  # a batch of the size of the others
    assert torch.allclose(features(split), direct(split), atol=1e-6)


def test_other_data_sets_share_the_pictures(tmp_path: Path) -> None:
    use(captions(tmp_path))
    fewer, more = captions(tmp_path, 3, name="fewer"), captions(tmp_path, 5, name="more")
    draw(tmp_path / "images", 8)
    for k in range(6):  # only the last two are new
        os.utime(tmp_path / f"images/{k}.png", ns=(0, 0))
    use(captions(tmp_path, name="old"))
    model = use(fewer, more, captions(tmp_path, 8, name="most"))
    assert computed(model) == 2
    assert torch.allclose(features(more), direct(more), atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"processor": {**EVAL, "mean": [0.4, 0.4, 0.4]}},
        {"processor": TRAIN},
        {"dtype": "bf16"},
    ],
)
def test_another_processor_or_type_is_another_cache(tmp_path: Path, change: dict) -> None:
    use(captions(tmp_path))
    data = {key: change.pop(key) for key in ("processor",) if key in change}
    assert computed(use(captions(tmp_path, **data), **change)) == 6
    assert computed(use(captions(tmp_path))) == 0


def test_other_weights_and_another_tower_of_the_same_weights(tmp_path: Path) -> None:
    use(captions(tmp_path))
    trained = Model()
    trained.visual_encoder.weight.mul_(1.5)
    assert computed(use(captions(tmp_path), model=trained)) == 6
    changed = captions(tmp_path)  # its code, say: the answer is another
    assert computed(use(changed, model=Model(factor=1.5))) == 6
    assert torch.allclose(features(changed), 1.5 * direct(changed), atol=1e-6)
    assert computed(use(captions(tmp_path), model=Model(factor=1.5001))) == 0
    assert computed(use(captions(tmp_path))) == 0


def test_the_seed_counts_where_the_processor_draws(tmp_path: Path) -> None:
    use(captions(tmp_path))
    assert computed(use(captions(tmp_path), seed=1)) == 0
    random = captions(tmp_path, processor=TRAIN)
    use(random)
    other = captions(tmp_path, processor=TRAIN)
    assert computed(use(other, seed=1)) == 6
    assert not torch.allclose(features(random), features(other))


def test_views_are_the_processors_under_seeds_and_drawn_reproducibly(tmp_path: Path) -> None:
    split = captions(tmp_path, processor=TRAIN)
    assert computed(use(split, views=3, seed=5)) == 18
    name = number(str(tmp_path / "images/0.png"))
    picture = Image.open(tmp_path / "images/0.png")
    views = [seeded(number(5, name, v), split.vis_processor, picture) for v in range(3)]
    wanted = Model().tower_features(torch.stack(views))
    drawn = [split[0]["image"] for _ in range(40)]
    met = {min(range(3), key=lambda v: float((x - wanted[v]).norm())) for x in drawn}
    assert met == {0, 1, 2}
    assert all(min(float((x - w).abs().max()) for w in wanted) < 1e-6 for x in drawn)
    one, two = (list(TrainLoader([split], batch_size=4, seed=3).batches(0, 3)) for _ in range(2))
    assert all(
        torch.equal(a["image_features"], b["image_features"]) for a, b in zip(one, two, strict=True)
    )


def test_what_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lavislite.features.store._PENDING", 0)  # make sure of every row
    stopped = Model()
    stopped.fails_after = 1 + 4
    with pytest.raises(KeyboardInterrupt):
        use(captions(tmp_path), model=stopped)
    split = captions(tmp_path)
    assert computed(use(split)) == 2
    assert torch.allclose(features(split), direct(split), atol=1e-6)


def test_unreadable_pictures_are_counted_and_others_take_their_place(tmp_path: Path) -> None:
    draw(tmp_path / "images", 6)
    (tmp_path / "images/2.png").write_bytes(b"no picture")
    split = captions(tmp_path, max_bad_fraction=0.5)
    use(split, views=1)
    assert split.bad_records == 1
    assert split[4] is split[5] is None
    loader = TrainLoader([split], batch_size=4, seed=0)
    for batch in loader.batches(0, 3):
        assert len(batch["image_features"]) == 4
        assert not set(batch["index"].tolist()) & {4, 5}


def test_too_many_unreadable_pictures_stop_it(tmp_path: Path) -> None:
    draw(tmp_path / "images", 6)
    (tmp_path / "images/2.png").write_bytes(b"no picture")
    with pytest.raises(TooManyBadImages, match=r"1 of 6 images .*2\.png"):
        use(captions(tmp_path))


def test_pictures_in_archives(tmp_path: Path) -> None:
    def shard(first: int) -> None:
        with tarfile.open(tmp_path / "shard.tar", "w") as archive:
            for k in range(first, first + 3):
                stream = io.BytesIO()
                pixels = np.random.default_rng(k).integers(0, 256, (12, 12, 3), np.uint8)
                Image.fromarray(pixels).save(stream, "png")
                for name, content in ((f"{k}.png", stream.getvalue()), (f"{k}.txt", b"a caption")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))

    def split() -> CachedSplit:
        cfg = OwnShardsBuilder.Config(
            annotations={"train": str(tmp_path / "shard.tar")}, vis_processor={"train": EVAL}
        )
        return CachedSplit(OwnShardsBuilder(cfg, name="shards").build("train", train=True))

    shard(0)
    first = split()
    assert computed(use(first)) == 4  # two batches of two
    assert torch.allclose(features(first), direct(first), atol=1e-6)
    assert computed(use(split())) == 0
    shard(7)
    os.utime(tmp_path / "shard.tar", ns=(1, 1))
    other = split()
    assert computed(use(other)) == 4
    assert torch.allclose(features(other), direct(other), atol=1e-6)


def test_the_error_of_what_is_stored_is_measured(tmp_path: Path) -> None:
    errors = {}
    for dtype in ("fp32", "bf16", "int8"):
        use(captions(tmp_path), dtype=dtype, folder=str(tmp_path / dtype))
        header = json.loads((store_of(tmp_path / dtype) / "header.json").read_text())
        errors[dtype] = header["relative_error"]
    assert errors["fp32"] == 0
    assert 0.0005 < errors["bf16"] < 0.003 < errors["int8"] < 0.02


# ---------------------------------------------------------------------------------------- refusals


def test_a_dry_run_says_the_size_and_writes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split = captions(tmp_path)
    with caplog.at_level(logging.INFO, "lavislite"):
        use(split, dry_run=True, max_gb=0, folder=str(tmp_path / "out"))
    assert "6 pictures x 4 x 6 numbers (fp32), 864 bytes in" in caplog.text
    assert not list((tmp_path / "out").iterdir())
    assert split[0]["image"].shape == (3, 8, 8)
    assert "image" in split.collate([split[0]])


def test_more_than_is_allowed_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"writes 864 bytes to .*max_gb allows 1e-07 GB"):
        use(captions(tmp_path), max_gb=1e-7, folder=str(tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())
    use(captions(tmp_path), folder=str(tmp_path / "out"))
    use(captions(tmp_path), max_gb=0, folder=str(tmp_path / "out"))  # nothing is due


@pytest.mark.parametrize(("answer", "goes_on"), [("y", True), ("", False)])
def test_on_a_terminal_one_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, goes_on: bool
) -> None:
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda _: True})())
    monkeypatch.setattr("builtins.input", lambda _: answer)
    if goes_on:
        assert computed(use(captions(tmp_path), max_gb=0)) == 6
    else:
        with pytest.raises(UserError, match="Nothing was computed"):
            use(captions(tmp_path), max_gb=0)


def test_too_little_room_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=500)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(UserError, match=r"needs 864 bytes more in .* where 500 bytes are free"):
        use(captions(tmp_path))


def test_views_of_a_processor_that_does_not_draw(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"views: 2, but datasets.mine.vis_processor .*Write views: 1"
    ):
        use(captions(tmp_path), views=2)


def test_a_model_without_a_frozen_tower(tmp_path: Path) -> None:
    model = Model()
    model.vision_is_frozen = False
    with pytest.raises(ConfigError, match="Model has no frozen vision tower"):
        use(captions(tmp_path), model=model)


def test_a_data_set_that_reads_its_pictures_otherwise(tmp_path: Path) -> None:
    class Own:
        name, split = "own", "train"

    with pytest.raises(ConfigError, match=r"datasets\.own cannot be stored: Own does not read"):
        CachedSplit(Own())
    split = captions(tmp_path)
    split.source.__class__ = PastTheCache
    use(split)
    with pytest.raises(DataError, match=r"mine/train record 0 .* was read past the cache"):
        split[0]


class PastTheCache(CaptionDataset):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": torch.zeros(3, 8, 8), "index": index}


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run\.feature_cache\.folder: .*file/x cannot be made"):
        use(captions(tmp_path), folder=str(tmp_path / "file/x"))

"""The playground's world: true captions, separate splits, the same files every time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lavislite
from lavislite.common.errors import DataError
from lavislite.datasets.playground import (
    PlaygroundAttributesBuilder,
    PlaygroundCaptionBuilder,
    PlaygroundRetrievalBuilder,
)
from lavislite.datasets.playground import captions as captions_module
from lavislite.datasets.playground.captions import captions
from lavislite.datasets.playground.generate import WorldSpec, ensure_world
from lavislite.datasets.playground.render import PALETTE, render
from lavislite.datasets.playground.scenes import (
    COLOURS,
    POSITIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    relations,
    sample_split,
    scene_graph,
    split_of,
)

COUNTS = {"seed": 3, "num_train": 30, "num_val": 6, "num_test": 12}
COUNTS |= {"num_nocaps": 3, "num_flickr30k": 2}
SMALL = WorldSpec(**COUNTS)


def thing(**changes: object) -> SceneObject:
    values = {
        "shape": "square",
        "colour": "red",
        "size": "large",
        "texture": "plain",
        "position": "top left",
        "x": 0.1640625,
        "y": 0.1640625,
        "radius": 0.140625,
    }
    return SceneObject(**{**values, **changes})  # type: ignore[arg-type]


def read(folder: Path, name: str):
    return json.loads((folder / "annotations" / name).read_text())


# ---- scenes


def test_no_scene_of_the_training_split_is_tested():
    train, test = sample_split("train", 800, seed=0), sample_split("test", 300, seed=1)
    signatures = {scene.signature for scene in test}
    assert len(signatures) == 300
    assert not signatures & {scene.signature for scene in train}


def test_the_signature_ignores_order_and_jitter_but_no_attribute():
    a, b = thing(), thing(shape="ring", position="left", x=0.2)
    scene = Scene(0, "s", (a, b))
    assert Scene(1, "t", (b, thing(x=0.17))).signature == scene.signature
    for change in (
        {"shape": "star"},
        {"colour": "blue"},
        {"size": "small"},
        {"texture": "striped"},
    ):
        assert Scene(0, "s", (thing(**change), b)).signature != scene.signature


def test_the_split_does_not_depend_on_the_hash_seed_of_python():
    signatures = [scene.signature for scene in sample_split("train", 5, seed=0)]
    program = (
        "import json, sys; from lavislite.datasets.playground.scenes import split_of, sample_split;"
        "print(json.dumps([s.signature for s in sample_split('train', 5, 0)]))"
    )
    other = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(other.stdout) == signatures
    assert {split_of(signature) for signature in signatures} == {"train"}


def test_most_scenes_have_one_or_two_objects_and_every_value_occurs():
    scenes = sample_split("train", 1500, seed=0)
    counts = Counter(len(scene.objects) for scene in scenes)
    assert set(counts) == {1, 2, 3, 4}
    assert counts[1] + counts[2] > 0.7 * len(scenes)
    things = [thing for scene in scenes for thing in scene.objects]
    assert {t.shape for t in things} == set(SHAPES)
    assert {t.colour for t in things} == set(COLOURS)
    assert {t.position for t in things} == set(POSITIONS)


def test_relations_follow_the_grid():
    a, b = thing(position="top left"), thing(position="bottom left")
    assert relations((a, b)) == [(0, 1, "above"), (1, 0, "below")]
    c = thing(position="right")
    assert set(relations((a, c))) == {
        (0, 1, "to the left of"),
        (1, 0, "to the right of"),
        (0, 1, "above"),
        (1, 0, "below"),
    }


def test_boxes_of_the_scene_graph_hold_the_object():
    graph = scene_graph(Scene(7, "s", (thing(),)), image_size=64)
    assert graph["objects"] == {
        "70": {
            "name": "square",
            "x": 2,
            "y": 2,
            "w": 18,
            "h": 18,
            "attributes": ["red", "large", "plain"],
            "position": "top left",
            "relations": [],
        }
    }


# ---- pictures


def test_an_object_is_drawn_in_its_colour_at_its_place():
    picture = render(Scene(0, "s", (thing(),)), 64).astype(int)
    assert picture.shape == (64, 64, 3)
    inner, outer = picture[6:15, 6:15].mean((0, 1)), picture[40:, 40:].mean((0, 1))
    assert np.abs(inner - PALETTE["red"]).max() < 12
    assert np.abs(outer - PALETTE["red"]).max() > 40


def test_outlines_are_smooth_and_drawing_repeats():
    scene = Scene(0, "s", (thing(shape="circle", colour="black"),))
    first = render(scene, 64)
    assert (first == render(scene, 64)).all()
    grey = first.astype(int).mean(-1)
    between = (grey > 35) & (grey < 75)  # the background is lighter, the circle is darker
    assert 4 <= between.sum() < 80


@pytest.mark.parametrize("image_size", [32, 96])
def test_scenes_can_be_drawn_at_other_sizes(image_size):
    picture = render(Scene(0, "s", (thing(),)), image_size).astype(int)
    centre = int(0.164 * image_size)
    assert np.abs(picture[centre, centre] - PALETTE["red"]).max() < 40


# ---- captions


def described(text: str, scene: Scene) -> bool:
    """Every object phrase of the caption is true of an object of its own in the scene."""
    words = text.replace(",", " ,").split()
    left = list(scene.objects)
    for i in (i for i, word in enumerate(words) if word in SHAPES):
        start = i
        while words[start - 1] in {"striped", "small", "little", "large", "big", *COLOURS}:
            start -= 1
        phrase = set(words[start:i])
        sized = phrase & {"small", "little", "large", "big"}
        fits = [
            t
            for t in left
            if t.shape == words[i]
            and t.colour in phrase
            and (not sized or bool(sized & {"small", "little"}) == (t.size == "small"))
            and (not sized or ("striped" in phrase) == (t.texture == "striped"))
        ]
        if not fits:
            return False
        left.remove(fits[0])
    return not left


def places(text: str) -> Counter[str]:
    names = "|".join(sorted(POSITIONS, key=len, reverse=True))
    return Counter(re.findall(rf"\b({names})\b", text.replace("middle", "center")))


def test_captions_are_five_different_true_sentences_of_bounded_length():
    for scene in sample_split("train", 400, seed=0):
        texts = captions(scene)
        assert len(set(texts)) == 5
        for text in texts:
            assert described(text, scene), (scene, text)
            assert len(text.replace(",", " ,").split()) <= 23
            related = [name for _, _, name in relations(scene.objects) if f" {name} " in text]
            if not related:
                assert places(text) == Counter(t.position for t in scene.objects), (scene, text)


def test_a_caption_that_relates_two_objects_is_true():
    above, below = thing(position="top"), thing(position="bottom", shape="ring", colour="blue")
    lines = {t for seed in range(20) for t in captions(Scene(0, f"s{seed}", (above, below)))}
    assert any(re.search(r"square above a (large|big) blue ring", line) for line in lines)
    assert any(re.search(r"ring below a (large|big) red square", line) for line in lines)
    assert not any("ring above" in line or "square below" in line for line in lines)


def test_captions_identify_their_scene():
    """Two scenes of a gallery share a caption only where it leaves out the places: rarely."""
    owners: dict[str, set[int]] = {}
    for scene in sample_split("test", 500, seed=0):
        for text in captions(scene):
            owners.setdefault(text, set()).add(scene.image_id)
    shared = [text for text, ids in owners.items() if len(ids) > 1]
    assert len(shared) <= 0.005 * len(owners)


def test_grammar_varies():
    texts = [t for scene in sample_split("train", 300, seed=0) for t in captions(scene)]
    words = Counter(word for text in texts for word in text.split())
    assert {"there", "picture", "is", "left", "middle", "above", "three"} <= set(words)
    assert captions_module.CAPTIONS_PER_IMAGE == 5


# ---- files


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAVISLITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return ensure_world(SMALL, progress=False)


def test_coco_and_karpathy_files_tell_the_same(world: Path):
    coco, rows = read(world, "captions_train.json"), read(world, "karpathy_train.json")
    assert set(coco) == {"info", "images", "licenses", "annotations"}
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    assert len(names) == 30
    assert [(names[a["image_id"]], a["caption"]) for a in coco["annotations"]] == [
        (row["image"], row["caption"]) for row in rows
    ]
    assert rows[0]["image_id"] == "playground_0"
    assert len({a["id"] for a in coco["annotations"]}) == 150


def test_evaluation_rows_hold_all_captions_of_an_image(world: Path):
    rows = read(world, "karpathy_test.json")
    assert len(rows) == 12
    assert {tuple(row) for row in rows} == {("image", "caption")}
    assert all(len(row["caption"]) == 5 for row in rows)
    # the evaluation id is the number at the end of the file name, as in COCO
    ids = [int(Path(row["image"]).stem.rsplit("_", 1)[-1]) for row in rows]
    assert ids == [image["id"] for image in read(world, "captions_test.json")["images"]]


def test_every_image_is_there_and_has_a_scene_graph(world: Path):
    for split, count in (("train", 30), ("val", 6), ("test", 12)):
        graphs = read(world, f"scenes_{split}.json")
        assert len(graphs) == count
        for graph in graphs.values():
            with Image.open(world / "images" / graph["file_name"]) as picture:
                assert picture.size == (64, 64)
                assert picture.format == "JPEG"


def test_the_same_settings_give_the_same_bytes(world: Path, tmp_path, monkeypatch):
    monkeypatch.setenv("LAVISLITE_CACHE", str(tmp_path))
    again = ensure_world(SMALL, progress=False)
    assert again != world
    assert again.name == world.name
    for path in sorted((world / "annotations").iterdir()):
        assert path.read_bytes() == (again / "annotations" / path.name).read_bytes()


def test_another_seed_is_another_world_in_another_folder(world: Path, tmp_path, monkeypatch):
    monkeypatch.setenv("LAVISLITE_CACHE", str(tmp_path))
    other = ensure_world(WorldSpec(4, 3, 1, 1, 3, 2), progress=False)
    assert other.name != world.name
    assert read(other, "karpathy_train.json")[0] not in read(world, "karpathy_train.json")


def test_a_broken_run_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("LAVISLITE_CACHE", str(tmp_path))
    monkeypatch.setattr("lavislite.datasets.playground.generate.render", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ensure_world(SMALL, progress=False)
    assert not SMALL.folder.exists()
    assert not [path for path in SMALL.folder.parent.iterdir() if path.is_dir()]


# ---- datasets


NORMALISED = {"name": "blip_image_eval", "image_size": 64, "mean": [0.5] * 3, "std": [0.5] * 3}
PROCESSORS = {"train": NORMALISED, "eval": NORMALISED}


def made(builder_class, **options):
    cfg = builder_class.Config(**COUNTS, vis_processor=PROCESSORS, **options)
    builder = builder_class(cfg, name="mine")
    builder.prepare()
    return builder


@pytest.fixture
def shared_cache(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVISLITE_CACHE", str(world.parents[2]))


@pytest.mark.usefixtures("shared_cache")
def test_captions_train_one_at_a_time_and_share_the_id_of_their_picture():
    data = made(PlaygroundCaptionBuilder).build("train", train=True)
    assert len(data) == 150
    batch = data.collate([data[i] for i in range(6)])
    assert batch["image"].shape == (6, 3, 64, 64)
    assert len(set(batch["image_id"][:5].tolist())) == 1
    assert batch["image_id"][5] != batch["image_id"][0]
    assert len(set(batch["text_input"])) == 6


@pytest.mark.usefixtures("shared_cache")
def test_the_gallery_has_five_captions_per_picture():
    data = made(PlaygroundRetrievalBuilder).build("test", train=False)
    assert len(data) == 12
    assert data.evaluation == "retrieval"
    assert data.image_to_texts[1] == [5, 6, 7, 8, 9]


@pytest.mark.usefixtures("shared_cache")
def test_a_split_can_be_taken_away():
    builder = made(PlaygroundCaptionBuilder, annotations={"test": None})
    assert builder.splits() == ["train", "val"]


@pytest.mark.usefixtures("shared_cache")
def test_attributes_are_where_the_picture_shows_them(world: Path):
    data = made(PlaygroundAttributesBuilder).build("test", train=False)
    assert data.evaluation == "multilabel"
    graphs = list(read(world, "scenes_test.json").values())
    for index in range(12):
        sample, objects = data[index], list(graphs[index]["objects"].values())
        assert (sample["object_labels"][:, 0] >= 0).sum() == len(objects)
        for box, label, thing in zip(
            sample["object_boxes"], sample["object_labels"], objects, strict=False
        ):
            left, top, right, bottom = (box * 64).round().int().tolist()
            assert [right - left, bottom - top] == [thing["w"], thing["h"]]
            shape, colour, size, texture, position = label.tolist()
            assert SHAPES[shape] == thing["name"]
            assert POSITIONS[position] == thing["position"]
            assert thing["attributes"] == [COLOURS[colour], SIZES[size], TEXTURES[texture]]
            if thing["attributes"][2] == "plain" and thing["name"] in ("circle", "square"):
                patch = (sample["image"][:, top:bottom, left:right] + 1) * 127.5
                middle = patch.flatten(1).median(1).values
                expected = torch.tensor(PALETTE[thing["attributes"][0]])
                assert (middle - expected).abs().max() < 30


@pytest.mark.usefixtures("shared_cache")
def test_a_file_that_holds_no_scene_graphs_is_refused(tmp_path):
    (tmp_path / "scenes.json").write_text("[1, 2]")
    builder = made(PlaygroundAttributesBuilder, annotations={"val": str(tmp_path / "scenes.json")})
    with pytest.raises(DataError, match=r"scenes\.json: expected scene graphs"):
        builder.build("val", train=False)


@pytest.mark.parametrize("name", ["caption", "retrieval", "attributes"])
def test_packaged_defaults_do_not_move_or_mirror_objects(name):
    path = Path(lavislite.__file__).parent / f"configs/datasets/playground_{name}/default.yaml"
    assert path.exists()
    assert "train: {name: blip_image_eval" in path.read_text()

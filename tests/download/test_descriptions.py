"""Every data set can be fetched to where its builder looks for it, and has a card."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lavislite.common.catalog import datasets
from lavislite.common.errors import ConfigError, UserError
from lavislite.download import describe, names
from lavislite.download.description import Description
from lavislite.download.verify import expected_of, missing
from tests.download.conftest import Catalogue

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "dataset_card"
DEFAULTS = ROOT / "lavislite/configs/datasets"
GENERIC = {"image_caption", "image_vqa", "image_text_retrieval", "webdataset"}  # for one's own data
READY_MADE = [(name, p.stem) for name in names() for p in sorted((DEFAULTS / name).glob("*.yaml"))]


def _published() -> set[str]:
    """Our data sets that others have published; other tests may have registered theirs."""
    ours = (name for name in datasets.names() if datasets.owner(name).startswith("lavislite."))
    return {name for name in ours if not name.startswith("playground")} - GENERIC


@pytest.mark.parametrize("name", names())
def test_a_description_is_complete(name: str) -> None:
    data = describe(name)
    assert data.entries
    assert data.title
    assert data.homepage.startswith("http")
    assert data.licence
    assert set(data.builders) <= set(datasets.names()), "unknown builder"
    for entry in data.entries:
        assert expected_of(entry) or entry in data.lists, f"{entry.name}: what must be there?"
    provided = {one.path for entry in data.entries for one in expected_of(entry)}
    used = {entry.path for entry in (*data.lists, *data.triples)}
    assert used <= provided, "nobody fetches the list"


def test_a_type_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match=r"no type 'lavi'\. Did you mean 'lavis'"):
        describe("coco_vqa").only(type="lavi")
    both = [describe("ok_vqa").only("annotations", type=name) for name in ("default", "lavis")]
    ours, theirs = ({file.path for file in data.files} for data in both)
    assert ours & theirs == {"okvqa/annotations/mscoco_val2014_annotations.json.zip"}


def test_visual_genomes_pictures_in_their_official_folders_are_found(tmp_path: Path) -> None:
    for folder in ("VG_100K", "VG_100K_2"):
        (tmp_path / "vg/images" / folder).mkdir(parents=True)
        (tmp_path / "vg/images" / folder / "1.jpg").touch()
    expected = describe("vg_caption").files[-1].expect[0]
    said = str(missing(expected, tmp_path))
    images = tmp_path / "vg/images"
    assert f"in {images}/VG_100K and {images}/VG_100K_2: move them into {images}/image." in said


def test_every_builder_of_published_data_has_a_description() -> None:
    published = _published()
    assert published <= set(names())


@pytest.mark.parametrize(("name", "type"), READY_MADE)
def test_it_arrives_where_the_builder_looks(name: str, type: str) -> None:
    defaults = yaml.safe_load((DEFAULTS / name / f"{type}.yaml").read_text())
    arriving = set(_arriving(describe(name).only(type=type)))
    for path in _paths(defaults["annotations"]):
        assert path in arriving, path
    for folder in _paths(defaults.get("images")):
        assert any(place == folder or place.startswith(f"{folder}/") for place in arriving), folder


def _arriving(data: Description) -> Iterator[str]:
    for entry in data.entries:
        for one in expected_of(entry):
            yield one.path
            if one.path.endswith("_all_questions"):  # GQA's, in ten files
                yield from (f"{one.path}/train_all_questions_{k}.json" for k in range(10))
    for pictures in data.lists:
        yield from filter(None, (pictures.images, pictures.annotations))


def _paths(value: Any) -> list[str]:
    """All paths in a part of a packaged default; a pattern counts as the folder it starts from."""
    if isinstance(value, dict) and "path" in value:
        return [value["path"]]
    if isinstance(value, dict):
        return [path for item in value.values() for path in _paths(item)]
    if isinstance(value, list):
        return [path for item in value for path in _paths(item)]
    return [value.split("/*")[0]] if isinstance(value, str) else []


def test_every_builder_has_a_card_and_every_card_names_a_download_that_exists() -> None:
    published = _published()
    cards = {path.stem for path in CARDS.glob("*.md")} - {"README"}
    assert published <= cards
    assert set(names()) <= cards
    for path in CARDS.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"lavislite download ([a-z]\w+)", text)) <= set(names()), path.name
        if path.stem in names():
            assert f"lavislite download {path.stem}" in text, path.name


def test_the_index_lists_every_card_and_links_lead_somewhere() -> None:
    for path in CARDS.glob("*.md"):
        for link in re.findall(r"\]\((?!http)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
    index = (CARDS / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in CARDS.glob("*.md")} - {"README.md"} <= set(
        re.findall(r"\]\(([^)]+)\)", index)
    )


def test_projects_named_in_cards_exist() -> None:
    for path in CARDS.glob("*.md"):
        for project in re.findall(r"projects/[\w./*-]+\.yaml", path.read_text(encoding="utf-8")):
            assert list(ROOT.glob(project)), f"{path.name}: {project}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"licnce": "free"}, "licnce: unknown key. Did you mean 'licence'"),
        ({"files": [{"url": "ftp://x/a", "path": "a"}]}, r"files\[0\].url: expected http"),
        ({"files": [{"url": "http://x/a", "path": "../a"}]}, "expected a path below the target"),
        ({"files": [{"url": "http://x/a", "path": "a", "unpack": "zip"}]}, "`into` goes with"),
        ({"files": [{"url": "http://x/a", "path": "a", "about": "big"}]}, "expected a size"),
        ({"files": [{"url": "http://x/a", "path": "a", "part": "x"}]}, "annotations or images"),
        ({"files": [{"use": "x"}]}, "no 'x' in shared.yaml"),
        ({"files": ["x"]}, "expected keys and values"),
    ],
)
def test_a_wrong_description_names_the_key(
    catalogue: Catalogue, change: dict[str, Any], said: str
) -> None:
    catalogue.write(**change)
    with pytest.raises(ConfigError, match=said):
        describe("pets")

"""Lists of pictures: what can be had is there with its own caption, the rest is counted."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lavislite import load_dataset
from lavislite.common.errors import DataError, UserError
from lavislite.download import command, describe, download, lists, pictures
from lavislite.download.description import PictureList
from lavislite.download.lists import Row, fetch_list, read_rows
from lavislite.download.pictures import PictureError, fetch_picture
from tests.download.conftest import Catalogue, Server


def picture(
    colour: str, size: tuple[int, int] = (40, 30), kind: str = "JPEG", **options: Any
) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind, **options)
    return out.getvalue()


def captions(path: Path) -> dict[str, str]:
    return {row["image"]: row["caption"] for row in json.loads(path.read_text())}


def name(index: int, url: str) -> str:
    return f"{index}_{zlib.crc32(url.encode())}.jpg"


ENTRY = PictureList(
    path="list.tsv",
    images="images",
    annotations="annotations.json",
    columns=("caption", "url"),
    shorter_side=16,
)


def write_list(root: Path, *rows: tuple[str, str]) -> None:
    (root / "list.tsv").write_text("".join(f"{caption}\t{url}\n" for caption, url in rows))


def test_each_picture_keeps_its_caption_whatever_fails(server: Server, tmp_path: Path) -> None:
    red = server.put("/red", picture("red"))
    blue = server.put("/blue", picture("blue", kind="PNG"))
    page = server.put("/page", b"<html>moved</html>")
    gone = f"{server.base}/gone"
    rows = [("a red thing", red), ("gone", gone), ("a page", page), ("red again", red)]
    rows += [("on this disk", "file:///etc/passwd"), ("a blue thing", blue)]
    write_list(tmp_path, *rows)
    share = fetch_list(ENTRY, tmp_path, workers=3)
    found = {name(0, red): "a red thing", name(3, red): "red again", name(5, blue): "a blue thing"}
    assert captions(tmp_path / "annotations.json") == found
    assert {path.name for path in (tmp_path / "images").iterdir()} == set(found)
    pixel = Image.open(tmp_path / "images" / name(5, blue)).getpixel((3, 3))
    assert pixel[2] > 200 > 50 > pixel[0]  # type: ignore[index, operator]
    assert str(share).startswith("3 of 6 pictures are there (50.0 %)")
    assert share.reasons == {"HTTP 404": 1, "not a picture": 1, "not an http(s) URL": 1}


def test_a_second_call_fetches_what_is_missing_where_there_is_hope(
    server: Server, tmp_path: Path
) -> None:
    red = server.put("/red", picture("red"))
    busy = server.put("/busy", picture("blue"), status=[503])
    write_list(tmp_path, ("red", red), ("busy", busy), ("gone", f"{server.base}/gone"))
    assert fetch_list(ENTRY, tmp_path, workers=2).there == 1
    log = tmp_path / "images.failed.jsonl"
    failed = [json.loads(line) for line in log.read_text().splitlines()]
    assert {(one["row"], one["why"], one["final"]) for one in failed} == {
        (1, "HTTP 503", False),
        (2, "HTTP 404", True),
    }
    log.write_text(log.read_text() + '{"row": 3, "u')  # killed in the middle of a line
    server.asked.clear()
    share = fetch_list(ENTRY, tmp_path, workers=2)
    assert server.paths() == ["/busy"]
    assert (share.there, share.rows, share.reasons) == (2, 3, {"HTTP 404": 1})
    assert list(captions(tmp_path / "annotations.json").values()) == ["red", "busy"]


def test_a_try_with_few_rows_forgets_none_of_the_others(server: Server, tmp_path: Path) -> None:
    write_list(tmp_path, *[(n, server.put(f"/{n}", picture("red"))) for n in "abc"])
    assert str(fetch_list(ENTRY, tmp_path, workers=1, limit=2)).startswith("2 of 2")
    assert list(captions(tmp_path / "annotations.json").values()) == ["a", "b"]
    fetch_list(ENTRY, tmp_path, workers=1)
    fetch_list(ENTRY, tmp_path, workers=1, limit=1)
    assert list(captions(tmp_path / "annotations.json").values()) == ["a", "b", "c"]


def test_pictures_are_made_smaller_never_larger_upright_and_rgb(
    server: Server, tmp_path: Path
) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    kinds = {
        "large": picture("red", (80, 40)),
        "small": picture("red", (10, 8)),
        "turned": picture("red", (80, 40), exif=turned),
    }
    sizes = {}
    for kind, content in kinds.items():
        fetch_picture(server.put(f"/{kind}", content), tmp_path / kind, shorter_side=16)
        with Image.open(tmp_path / kind) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            sizes[kind] = image.size
    assert sizes == {"large": (32, 16), "small": (10, 8), "turned": (16, 32)}
    fetch_picture(f"{server.base}/large", tmp_path / "as it is")
    assert (tmp_path / "as it is").read_bytes() == kinds["large"]


@pytest.mark.parametrize(
    ("page", "said", "final"),
    [
        ({"content": b"P" * 5000}, "too large", True),
        ({"content": picture("red", (300, 300))}, "too large", True),
        ({"content": picture("red")[:-300]}, "not a picture", True),
        ({"content": picture("red"), "cut_after": [100]}, "cut short", False),
        ({"content": picture("red"), "stall_after": 100}, "timed out", False),
        ({"content": b""}, "not a picture", True),
        ({"content": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, "not a picture", True),
        ({"content": b"", "redirect": "file:///etc/passwd"}, "HTTP 302", True),
        ({"content": b"", "redirect": "ftp://127.0.0.1/x"}, "not an http(s) URL", True),
        ({"content": b"", "redirect": "/page"}, "HTTP 302", True),  # for ever
    ],
)
def test_what_is_no_usable_picture_has_a_reason(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    page: dict[str, Any],
    said: str,
    final: bool,
) -> None:
    monkeypatch.setattr(pictures, "MAX_BYTES", 4000)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 80_000)
    monkeypatch.setattr(pictures, "TIMEOUT", 0.2)
    url = server.put("/page", **page)
    with pytest.raises(PictureError) as caught:
        fetch_picture(url, tmp_path / "x.jpg", 16)
    assert (str(caught.value), caught.value.final) == (said, final)
    assert not list(tmp_path.glob("*x*"))


def test_a_server_that_drips_is_left(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "DEADLINE", 0.0)
    with pytest.raises(PictureError, match="timed out"):
        fetch_picture(server.put("/x", picture("red")), tmp_path / "x.jpg", 16)


def test_without_a_network_it_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "_GIVE_UP", 5)
    write_list(tmp_path, *[("x", f"http://127.0.0.1:9/{n}") for n in range(100)])
    with pytest.raises(UserError, match="none of the first 5 pictures.*Is there a network"):
        fetch_list(ENTRY, tmp_path, workers=2)
    assert not (tmp_path / "annotations.json").exists()


def test_captions_with_other_line_separators_and_emoji_stay_in_their_row(
    server: Server, tmp_path: Path
) -> None:
    red, blue = server.put("/red", picture("red")), server.put("/blue", picture("blue"))
    odd = "one\u2028two\x0bthree \N{GRINNING FACE} \u05e9\u05dc\u05d5\u05dd"
    write_list(tmp_path, (odd, red), ("blue", blue))
    fetch_list(ENTRY, tmp_path, workers=1)
    assert list(captions(tmp_path / "annotations.json").values()) == [odd, "blue"]


def test_the_columns_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("a cat\thttp://x/1\n")
    assert list(read_rows(path, ("caption", "url"))) == [
        Row(0, "http://x/1", "a cat", name(0, "http://x/1"))
    ]
    path.write_text("url\tcaption\nhttp://x/1\ta cat\n")  # people add it for img2dataset
    assert list(read_rows(path, ("caption", "url"))) == [
        Row(0, "http://x/1", "a cat", name(0, "http://x/1"))
    ]
    path.write_text("a cat\thttp://x/1\n")
    with pytest.raises(DataError, match=r"the URL is in column 2\. Is it the list of another"):
        list(read_rows(path, ("url", "caption")))
    path.write_text("a cat\thttp://x/1\nno tab\n")
    with pytest.raises(DataError, match="row 1: expected 2 tab-separated columns"):
        list(read_rows(path, ("caption", "url")))


def test_the_json_layouts(tmp_path: Path) -> None:
    def rows(content: Any) -> list[Row]:
        (tmp_path / "x.json").write_text(json.dumps(content))
        return list(read_rows(tmp_path / "x.json"))

    url = "http://x/1"
    assert rows([{"url": url, "caption": "a ", "image": "4_1.jpg"}]) == [
        Row(0, url, "a", "4_1.jpg")
    ]
    assert rows({"image_urls": [url], "captions": ["a"]}) == [Row(0, url, "a", name(0, url))]
    assert rows(
        {"images": [{"coco_url": url, "file_name": "7.jpg", "id": 0}], "annotations": []}
    ) == [Row(0, url, None, "7.jpg")]
    for evil in ("../7.jpg", "/7.jpg", ".7.jpg", "a/b.jpg", "", 7):
        assert rows([{"url": url, "caption": "a", "image": evil}])[0].name == name(0, url)
    with pytest.raises(DataError, match="row 0: not understood"):
        rows([["a", url]])
    with pytest.raises(DataError, match="1 image_urls, but 0 captions"):
        rows({"image_urls": [url], "captions": []})
    with pytest.raises(DataError, match="expected a list of"):
        rows({"pictures": []})


def test_a_data_set_of_two_steps(
    server: Server, catalogue: Catalogue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [
        {"coco_url": server.put(f"/{n}.jpg", picture("red")), "file_name": f"{n}.jpg"} for n in "ab"
    ]
    server.put("/val.json", json.dumps({"images": images}).encode())
    entry = {"path": "pets/val.json", "images": "pets/val", "pictures": 2, "about": "80 kB"}
    catalogue.write(
        files=[{"part": "annotations", "url": f"{server.base}/val.json", "path": "pets/val.json"}],
        lists=[{**entry, "expect": [{"path": "pets/val", "count": 2}]}],
    )
    download("pets", "images", to=tmp_path, limit=1)  # the list comes along: it names the pictures
    assert [path.name for path in (tmp_path / "pets/val").iterdir()] == ["a.jpg"]
    assert "pets/val: 1 of 1 pictures are there (100.0 %)" in capsys.readouterr().out
    download("pets", to=tmp_path)
    assert (tmp_path / "pets/val/b.jpg").read_bytes() == picture("red")
    server.asked.clear()
    download("pets", to=tmp_path)
    assert not server.asked


def test_a_list_that_is_not_there_yet_is_not_counted(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "free_disk", lambda _: 10**9)
    step = {"part": "annotations", "what": "the list", "steps": "Ask for it"}
    catalogue.write(
        manual=[{**step, "expect": [{"path": "pets/list.tsv"}]}],
        lists=[{"path": "pets/list.tsv", "images": "pets/images", "about": "100 GB"}],
    )
    with pytest.raises(UserError, match="the list: to be fetched by hand"):
        download("pets", "images", to=tmp_path)


@pytest.mark.parametrize(
    ("builder", "order"), [("conceptual_caption_3m", (1, 0)), ("conceptual_caption_12m", (0, 1))]
)
def test_the_builder_reads_what_was_fetched(
    server: Server, tmp_path: Path, builder: str, order: tuple[int, int]
) -> None:
    red = server.put("/red", picture("red"))
    rows = [("http://127.0.0.1:9/x", "gone"), (red, "a red thing"), (red, "the same again")]
    listed = describe(builder).lists[0].path
    path = tmp_path / "cache" / listed
    path.parent.mkdir(parents=True)
    path.write_text("".join("\t".join(row[k] for k in order) + "\n" for row in rows))
    download(builder, limit=3)
    train = load_dataset(builder)["train"]
    assert [train[k]["text_input"] for k in range(len(train))] == ["a red thing", "the same again"]

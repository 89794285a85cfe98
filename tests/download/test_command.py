"""`lavislite download`, from the question to the verified folders, on a server of our own."""

from __future__ import annotations

import hashlib
import io as bytes_io
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lavislite.cli import main
from lavislite.common.errors import UserError
from lavislite.download import command, download
from tests.download.conftest import Catalogue, Server, wait_for

CONTENT = json.dumps(list(range(2000))).encode()


def zipped(*names: str, content: bytes = b"picture") -> bytes:
    out = bytes_io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return out.getvalue()


def one_file(server: Server, catalogue: Catalogue, **options: object) -> None:
    """The data set "pets" with one annotation file."""
    entry = {"part": "annotations", "url": f"{server.base}/a.json", "path": "pets/a.json"}
    catalogue.write(files=[{**entry, **options}])


def pictures(server: Server, catalogue: Catalogue, content: bytes) -> None:
    """The data set "pets" with one archive of pictures."""
    server.put("/p.zip", content)
    entry = {"url": f"{server.base}/p.zip", "path": "pets/p.zip", "unpack": "zip", "into": "pets"}
    expect = [{"path": "pets/images", "pattern": "*.jpg", "count": 2, "misplaced": ["images"]}]
    catalogue.write(files=[{**entry, "expect": expect}])


def visible(root: Path) -> list[str]:
    """The files below `root` apart from those in hidden folders."""
    files = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(str(path) for path in files if not path.parts[0].startswith("."))


def test_a_file_is_shown_fetched_and_verified_and_the_second_call_asks_for_nothing(
    server: Server, catalogue: Catalogue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.put("/a.json", CONTENT)
    one_file(server, catalogue, about="75 MB", md5=hashlib.md5(CONTENT).hexdigest())
    assert main(["download", "pets", "--to", str(tmp_path / "data")]) == 0
    shown = capsys.readouterr().out
    for part in ("Pets", "free", "about 75 MB", f"{server.base}/a.json", "pets: complete in"):
        assert part in shown
    assert f"LAVISLITE_CACHE={tmp_path / 'data'}" in shown
    assert visible(tmp_path / "data") == ["pets/a.json"]
    download("pets", to=tmp_path / "data")
    assert len(server.asked) == 1


def test_by_default_it_goes_where_the_builders_look(
    server: Server, catalogue: Catalogue, tmp_path: Path
) -> None:
    server.put("/a.json", CONTENT)
    one_file(server, catalogue)
    download("pets")
    assert (tmp_path / "cache/pets/a.json").read_bytes() == CONTENT


def test_a_connection_that_breaks_off_is_resumed(
    server: Server, catalogue: Catalogue, tmp_path: Path
) -> None:
    server.put("/a.json", CONTENT, cut_after=[1000, 3000])
    one_file(server, catalogue)
    download("pets", to=tmp_path)
    assert (tmp_path / "pets/a.json").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=1000-", "bytes=4000-"]


def start(catalogue: Catalogue, root: Path) -> subprocess.Popen[bytes]:
    """The command in a process of its own."""
    code = (
        "import sys, pathlib;"
        "from lavislite import cli; from lavislite.download import description;"
        "description.FOLDER = pathlib.Path(sys.argv[1]);"
        "sys.exit(cli.main(['download', 'pets', '--to', sys.argv[2]]))"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(catalogue.folder), str(root)])


def killed_after(server: Server, catalogue: Catalogue, root: Path, size: int) -> None:
    """Start the command in a process of its own, and kill it when it has `size` bytes."""
    server.pages["/a.json"].stall_after = size
    process = start(catalogue, root)
    part = root / ".downloads/pets/a.json.part"
    try:
        wait_for(lambda: part.exists() and part.stat().st_size == size)
    finally:
        process.kill()
        process.wait()
    server.pages["/a.json"].stall_after = None


def test_a_killed_download_goes_on_where_it_was(
    server: Server, catalogue: Catalogue, tmp_path: Path
) -> None:
    chunk = 1 << 20
    content = b"[" + bytes(chunk * 2)
    server.put("/a.json", content)
    one_file(server, catalogue)
    killed_after(server, catalogue, tmp_path / "data", chunk)
    assert visible(tmp_path / "data") == []  # nothing under the final name
    download("pets", to=tmp_path / "data")
    assert server.asked[-1] == ("/a.json", f"bytes={chunk}-")
    assert (tmp_path / "data/pets/a.json").read_bytes() == content


def test_ctrl_c_ends_it_at_once_and_nothing_is_lost(
    server: Server, catalogue: Catalogue, tmp_path: Path
) -> None:
    server.put("/a.json", b"[" + bytes(3 << 20), stall_after=2 << 20)
    one_file(server, catalogue)
    process = start(catalogue, tmp_path)
    part = tmp_path / ".downloads/pets/a.json.part"
    wait_for(lambda: part.exists() and part.stat().st_size == 2 << 20)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    server.pages["/a.json"].stall_after = None
    download("pets", to=tmp_path)
    assert server.asked[-1] == ("/a.json", f"bytes={2 << 20}-")


def test_a_file_that_changed_in_between_is_fetched_from_the_start(
    server: Server, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put("/a.json", CONTENT, cut_after=[1000])
    one_file(server, catalogue)

    def changed(_: float) -> None:
        server.put("/a.json", b"[" + b"new " * 2000, etag='"two"')

    monkeypatch.setattr("time.sleep", changed)
    download("pets", to=tmp_path)
    assert (tmp_path / "pets/a.json").read_bytes() == b"[" + b"new " * 2000


@pytest.mark.parametrize("options", [{"ranges": False}, {"etag": None}])
def test_a_server_without_ranges_or_etags_is_asked_for_the_whole_again(
    server: Server, catalogue: Catalogue, tmp_path: Path, options: dict[str, object]
) -> None:
    server.put("/a.json", CONTENT, cut_after=[1000], **options)
    one_file(server, catalogue)
    download("pets", to=tmp_path)
    assert (tmp_path / "pets/a.json").read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_a_busy_server_is_asked_again_and_a_missing_file_named(
    server: Server, catalogue: Catalogue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.put("/a.json", CONTENT, status=[503, 429])
    one_file(server, catalogue)
    download("pets", to=tmp_path)
    assert len(server.asked) == 3
    one_file(server, catalogue, url=f"{server.base}/gone.json", path="pets/gone.json")
    assert main(["download", "pets", "--to", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{server.base}/gone.json: the server says 404" in said
    assert "Traceback" not in said
    assert said.count("gone.json: ") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"md5": "0" * 32}, "expected MD5 000"),
        ({"sha256": "0" * 64}, "expected SHA-256 000"),
        ({"size": 17}, "expected 17 bytes"),
    ],
)
def test_what_is_not_the_file_meant_is_not_kept(
    server: Server,
    catalogue: Catalogue,
    tmp_path: Path,
    options: dict[str, object],
    said: str,
) -> None:
    url = server.put("/a.json", CONTENT)
    one_file(server, catalogue, **options)
    with pytest.raises(UserError, match=said) as caught:
        download("pets", to=tmp_path / "data")
    assert url in str(caught.value)
    assert visible(tmp_path / "data") == []
    one_file(server, catalogue)
    download("pets", to=tmp_path / "data")  # nothing of it stands in the way


def test_a_web_page_in_place_of_a_file_is_noticed(
    server: Server, catalogue: Catalogue, tmp_path: Path
) -> None:
    server.put("/a.json", b"<html>Please log in</html>")
    one_file(server, catalogue)
    with pytest.raises(UserError, match=r"not JSON.*A web page"):
        download("pets", to=tmp_path)
    pictures(server, catalogue, b"<html>Please log in</html>")
    with pytest.raises(UserError, match="no readable zip archive"):
        download("pets", to=tmp_path)
    pictures(server, catalogue, zipped("images/1.jpg", "images/2.jpg"))
    download("pets", to=tmp_path)


def test_someone_elses_version_of_a_file_is_put_aside(
    server: Server, catalogue: Catalogue, tmp_path: Path
) -> None:
    server.put("/a.json", CONTENT)
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets/a.json").write_text("[1]")
    one_file(server, catalogue)
    download("pets", to=tmp_path)  # without a checksum there is nothing to say against it
    assert not server.asked
    one_file(server, catalogue, md5=hashlib.md5(CONTENT).hexdigest())
    download("pets", to=tmp_path)
    assert (tmp_path / "pets/a.json").read_bytes() == CONTENT
    assert (tmp_path / "pets/a.json.old").read_text() == "[1]"


def test_an_archive_is_unpacked_once_and_removed(
    server: Server, catalogue: Catalogue, tmp_path: Path
) -> None:
    pictures(server, catalogue, zipped("images/1.jpg", "images/2.jpg"))
    download("pets", to=tmp_path / "data")
    assert visible(tmp_path / "data") == ["pets/images/1.jpg", "pets/images/2.jpg"]
    assert not list((tmp_path / "data").rglob("*.zip"))
    download("pets", to=tmp_path / "data")
    assert len(server.asked) == 1


def test_an_archive_can_be_kept_and_unpacked_again_without_the_server(
    server: Server, catalogue: Catalogue, tmp_path: Path
) -> None:
    pictures(server, catalogue, zipped("images/1.jpg", "images/2.jpg"))
    download("pets", to=tmp_path, keep_archives=True)
    (tmp_path / "pets/images/2.jpg").unlink()
    with pytest.raises(UserError, match=r"has 1 of 2 files \*\.jpg.*To unpack again, remove"):
        download("pets", to=tmp_path)
    next(tmp_path.rglob("*.unpacked")).unlink()
    download("pets", to=tmp_path)
    assert len(server.asked) == 1


def test_another_choice_from_the_same_archive_is_unpacked_too(
    server: Server, catalogue: Catalogue, tmp_path: Path
) -> None:
    server.put("/p.zip", zipped("a.txt", "b.txt"))
    archive = {"url": f"{server.base}/p.zip", "path": "p.zip", "unpack": "zip", "into": "pets"}
    some = {**archive, "types": ["default"], "only": ["a*"], "expect": [{"path": "pets/a.txt"}]}
    every = {**archive, "types": ["all"], "expect": [{"path": "pets", "count": 2}]}
    catalogue.write(files=[some, every])
    download("pets", to=tmp_path / "data", keep_archives=True)
    assert visible(tmp_path / "data") == ["pets/a.txt"]
    download("pets", type="all", to=tmp_path / "data")
    assert visible(tmp_path / "data") == ["pets/a.txt", "pets/b.txt"]
    assert len(server.asked) == 1


def test_pictures_unpacked_by_hand_are_not_fetched_again(
    server: Server, catalogue: Catalogue, tmp_path: Path
) -> None:
    pictures(server, catalogue, zipped("images/1.jpg", "images/2.jpg"))
    (tmp_path / "pets/images").mkdir(parents=True)
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "pets/images" / name).touch()
    download("pets", to=tmp_path)
    assert not server.asked


def test_a_layout_that_is_not_complete_is_explained(
    server: Server, catalogue: Catalogue, tmp_path: Path
) -> None:
    pictures(server, catalogue, zipped("other/1.jpg"))
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").touch()
    with pytest.raises(UserError) as caught:
        download("pets", to=tmp_path)
    said = str(caught.value)
    assert f"{tmp_path}/pets/images is missing, with its 2 files *.jpg" in said
    assert f"There are such files in {tmp_path}/images: move them into {tmp_path}/pets/imag" in said


def test_one_files_trouble_does_not_stop_the_others(
    server: Server, catalogue: Catalogue, tmp_path: Path
) -> None:
    server.put("/b.json", CONTENT)
    entry = {"part": "annotations"}
    catalogue.write(
        files=[
            {**entry, "url": f"{server.base}/a.json", "path": "pets/a.json"},
            {**entry, "url": f"{server.base}/b.json", "path": "pets/b.json"},
        ]
    )
    with pytest.raises(UserError, match=r"a\.json.*404"):
        download("pets", to=tmp_path, workers=1)
    assert (tmp_path / "pets/b.json").exists()


def test_parts_and_splits(server: Server, catalogue: Catalogue, tmp_path: Path) -> None:
    for name in ("train", "val", "both"):
        server.put(f"/{name}.json", CONTENT)
    catalogue.write(
        files=[
            {"part": "annotations", "url": f"{server.base}/train.json", "path": "train.json"}
            | {"splits": ["train"]},
            {"part": "annotations", "url": f"{server.base}/val.json", "path": "val.json"}
            | {"splits": ["val"]},
            {"part": "images", "url": f"{server.base}/both.json", "path": "both.json"},
        ]
    )
    download("pets", "annotations", split="val", to=tmp_path / "data")
    assert visible(tmp_path / "data") == ["val.json"]
    download("pets", split="val", to=tmp_path / "data")
    assert visible(tmp_path / "data") == ["both.json", "val.json"]
    with pytest.raises(UserError, match=r"no split 'vla'\. Did you mean 'val'\? Known: train, val"):
        download("pets", split="vla", to=tmp_path)
    with pytest.raises(UserError, match="expected annotations, images or all"):
        download("pets", "pictures", to=tmp_path)


def test_a_large_download_needs_consent(
    server: Server,
    catalogue: Catalogue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.put("/a.json", CONTENT)
    one_file(server, catalogue, about="3 GB")
    arguments = ["download", "pets", "--to", str(tmp_path / "data")]
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: PTH123, SIM115
    assert main(arguments) == 2
    assert "about 3 GB: say --yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "no")
    assert main(arguments) == 2
    assert not server.asked
    assert not (tmp_path / "data").exists()
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert main(arguments) == 0


def test_yes_agrees(server: Server, catalogue: Catalogue, tmp_path: Path) -> None:
    server.put("/a.json", CONTENT)
    one_file(server, catalogue, about="3 GB")
    assert main(["download", "pets", "--yes", "--to", str(tmp_path)]) == 0


def test_a_full_disk_is_noticed_before(
    server: Server, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_file(server, catalogue, about="3 GB")
    monkeypatch.setattr(command, "free_disk", lambda _: 2 * 10**9)
    with pytest.raises(UserError, match=r"about 3 GB are needed, 2 GB are free at .*--to"):
        download("pets", to=tmp_path, yes=True)
    assert not server.asked


def test_the_disk_an_archive_needs_is_for_itself_and_its_content(
    server: Server, catalogue: Catalogue, tmp_path: Path
) -> None:
    base = {"unpack": "zip", "into": "x", "about": "10 GB"}
    files = [
        {**base, "url": f"{server.base}/{n}.zip", "path": f"{n}.zip", "expect": []} for n in "abc"
    ]
    catalogue.write(files=files)
    data = command.describe("pets")
    one_at_a_time = command.disk_needed(list(data.files), [], tmp_path, 1, False)
    all_kept = command.disk_needed(list(data.files), [], tmp_path, 1, True)
    assert (one_at_a_time, all_kept) == (40 * 10**9, 60 * 10**9)


def test_a_dry_run_shows_and_touches_nothing(
    server: Server, catalogue: Catalogue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_file(server, catalogue, about="3 GB")
    assert main(["download", "pets", "--dry-run", "--to", str(tmp_path / "data")]) == 0
    shown = capsys.readouterr().out
    assert "about 3 GB to fetch, about 3 GB of disk needed" in shown
    assert not server.asked
    assert not (tmp_path / "data").exists()


def test_what_only_a_person_can_fetch_is_explained_and_then_verified(
    catalogue: Catalogue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = {"what": "the pictures", "steps": "Write a letter, unpack into {to}/pets"}
    catalogue.write(manual=[{**step, "expect": [{"path": "pets", "count": 1}]}])
    arguments = ["download", "pets", "--to", str(tmp_path)]
    assert main(arguments) == 2
    assert f"Write a letter, unpack into {tmp_path}/pets" in capsys.readouterr().err
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets/1.jpg").touch()
    assert main(arguments) == 0


def test_questions_in_triples_become_records(
    server: Server, catalogue: Catalogue, tmp_path: Path
) -> None:
    server.put("/p.zip", zipped("data/questions.json", content=b'[["what is it?", "a cat", 7]]'))
    archive = {"url": f"{server.base}/p.zip", "path": "pets/p.zip", "unpack": "zip", "into": "pets"}
    catalogue.write(
        files=[{**archive, "below": "data", "expect": [{"path": "pets/questions.json"}]}],
        triples=[{"path": "pets/questions.json", "writes": "pets/vqa.json", "image": "{}.png"}],
    )
    download("pets", "annotations", to=tmp_path)
    assert json.loads((tmp_path / "pets/vqa.json").read_text()) == [
        {"question_id": 0, "question": "what is it?", "answer": "a cat", "image": "7.png"}
    ]
    (tmp_path / "pets/vqa.json").unlink()
    (tmp_path / "pets/questions.json").write_text('[["what?", "a cat"]]')
    with pytest.raises(UserError, match="row 0: expected"):
        download("pets", to=tmp_path)


def test_two_commands_at_a_time_fetch_once(
    server: Server, catalogue: Catalogue, tmp_path: Path
) -> None:
    from lavislite.download.parallel import in_parallel

    server.put("/a.json", CONTENT)
    one_file(server, catalogue)
    results = list(in_parallel(lambda _: download("pets", to=tmp_path), range(3), workers=3))
    assert [result for _, result in results] == [None] * 3
    assert len(server.asked) == 1


def test_unknown_names_and_wrong_options_get_a_sentence(
    catalogue: Catalogue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue.write()
    with pytest.raises(UserError, match="Did you mean 'pets'"):
        download("pest", to=tmp_path)
    with pytest.raises(UserError, match="--workers 0"):
        download("pets", to=tmp_path, workers=0)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="expected a folder"):
        download("pets", to=tmp_path / "file")
    assert main(["download"]) == 0
    assert "pets" in capsys.readouterr().out

"""Archives from elsewhere put files into the folder meant, and nothing else anywhere."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from random import Random

import pytest

from lavislite.common.errors import DataError
from lavislite.download import unpack as unpacking
from lavislite.download.unpack import DamagedArchive, unpack


def make_zip(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name.encode())
    return path


def make_tar(path: Path, *members: tuple[str, bytes, str]) -> Path:
    """Members are (name, type, link target)."""
    with tarfile.open(path, "w:gz") as archive:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            content = name.encode() if kind == tarfile.REGTYPE else b""
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_zip_and_tar(tmp_path: Path) -> None:
    names = ("a.txt", "b/c.txt", "__MACOSX/._a.txt")
    assert unpack(make_zip(tmp_path / "a.zip", *names), tmp_path / "zip", "zip") == 2
    regular = [(name, tarfile.REGTYPE, "") for name in names]
    assert unpack(make_tar(tmp_path / "a.tgz", *regular), tmp_path / "tar", "tar") == 2
    assert files(tmp_path / "zip") == files(tmp_path / "tar") == ["a.txt", "b/c.txt"]
    assert (tmp_path / "tar/b/c.txt").read_text() == "b/c.txt"


def test_folders_of_the_archive_can_be_left_out_and_files_chosen(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", "x/VG_100K/1.jpg", "x/VG_100K/2.png", "x/README")
    unpack(archive, tmp_path / "out", "zip", "VG_100K", ["*.jpg"])
    assert files(tmp_path / "out") == ["1.jpg"]
    with pytest.raises(DataError, match=r"no files \*\.gif below a folder 'VG_100K'"):
        unpack(archive, tmp_path / "out", "zip", "VG_100K", ["*.gif"])


@pytest.mark.parametrize(
    "name", ["../out.txt", "a/../../out.txt", "/tmp/out.txt", "..\\out.txt", "C:/out.txt"]
)
def test_names_that_lead_elsewhere_are_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(DataError, match="leads out of the folder.*nothing was unpacked"):
        unpack(make_zip(tmp_path / "a.zip", "good.txt", name), tmp_path / "to", "zip")
    tar = make_tar(
        tmp_path / "a.tgz", ("good.txt", tarfile.REGTYPE, ""), (name, tarfile.REGTYPE, "")
    )
    with pytest.raises(DataError, match="leads out of the folder"):
        unpack(tar, tmp_path / "to", "tar")
    assert not (tmp_path / "to").exists()
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    archive = make_tar(
        tmp_path / "a.tgz", ("good.txt", tarfile.REGTYPE, ""), ("x", kind, "/etc/passwd")
    )
    with pytest.raises(DataError, match="'x' is a link or a device"):
        unpack(archive, tmp_path / "to", "tar")
    assert not (tmp_path / "to").exists()


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("x")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="'x' is a link"):
        unpack(tmp_path / "a.zip", tmp_path / "to", "zip")


def test_an_interrupted_unpacking_goes_on(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", "1.txt", "2.txt", "3.txt")
    (tmp_path / "to").mkdir()
    (tmp_path / "to/1.txt").write_text("there!"[:5])  # right size: taken as done
    (tmp_path / "to/2.txt").write_text("2.")  # cut short
    unpack(archive, tmp_path / "to", "zip")
    texts = [(tmp_path / "to" / f"{n}.txt").read_text() for n in (1, 2, 3)]
    assert texts == ["there", "2.txt", "3.txt"]


def test_a_damaged_archive_says_so(tmp_path: Path) -> None:
    whole = make_zip(tmp_path / "a.zip", "1.txt").read_bytes()
    (tmp_path / "short.zip").write_bytes(whole[:-10])
    with pytest.raises(DamagedArchive, match="cannot be unpacked"):
        unpack(tmp_path / "short.zip", tmp_path / "to", "zip")
    (tmp_path / "flipped.zip").write_bytes(whole.replace(b"1.txt1.txt", b"1.txt2.txt"))
    with pytest.raises(DamagedArchive, match="CRC"):
        unpack(tmp_path / "flipped.zip", tmp_path / "to", "zip")
    assert files(tmp_path / "to") == [".1.txt.part"]  # nothing under the final name
    tar = make_tar(tmp_path / "a.tgz", ("1.txt", tarfile.REGTYPE, ""))
    tar.write_bytes(tar.read_bytes()[:-20])
    with pytest.raises(DamagedArchive, match="cannot be unpacked"):
        unpack(tar, tmp_path / "to", "tar")


def test_a_tar_whose_checksum_is_wrong_says_so(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(Random(0).randbytes(1 << 18))
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        archive.add(tmp_path / "noise", "noise")
    content = bytearray((tmp_path / "a.tgz").read_bytes())
    content[-8] ^= 1  # of gzip's own checksum, at its end
    (tmp_path / "a.tgz").write_bytes(content)
    with pytest.raises(DamagedArchive, match="cannot be unpacked"):
        unpack(tmp_path / "a.tgz", tmp_path / "to", "tar")


def test_an_archive_larger_than_the_disk_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "free_disk", lambda _: 3)
    with pytest.raises(DataError, match=r"are free at .*nothing was unpacked"):
        unpack(make_zip(tmp_path / "a.zip", "1.txt"), tmp_path / "to", "zip")
    assert not (tmp_path / "to").exists()

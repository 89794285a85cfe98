"""What a data set consists of: the files of ``lavislite/configs/downloads``.

One file per data set. ``files:`` are downloaded, ``lists:`` name pictures one by one, ``manual:``
are steps that only a person can take. An entry ``{use: x}`` stands for entry `x` of
``shared.yaml``, since several data sets are about the same pictures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lavislite.common.errors import ConfigError, UserError
from lavislite.common.registry import did_you_mean

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "downloads"
PARTS = ("annotations", "images")
_SHARED = "shared"
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Expected:
    """A file or folder that must be there in the end; all paths count from the target folder."""

    path: str
    count: int | None = None  # a folder with at least so many files ...
    pattern: str = "*"  # ... whose names look like this
    misplaced: tuple[str, ...] = ()  # where people have it instead


@dataclass(frozen=True)
class Entry:
    """What files, lists and manual steps have in common.

    Without `splits` it serves all of them; without `types` it serves all of the data set's types
    (``lavislite/configs/datasets/<name>/<type>.yaml``).
    """

    part: str = "images"
    splits: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    expect: tuple[Expected, ...] = ()
    about: int | None = None  # bytes, roughly

    @property
    def name(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class File(Entry):
    """One download. An archive is unpacked into the folder `into`."""

    url: str = ""
    path: str = ""
    size: int | None = None  # bytes, exactly
    md5: str | None = None
    sha256: str | None = None
    unpack: str = "none"  # none, zip, tar
    into: str = ""
    below: str | None = None  # unpack only what this folder of the archive holds
    only: tuple[str, ...] = ()  # unpack only files whose names look like one of these
    unpacked: int | None = None  # bytes, roughly

    @property
    def name(self) -> str:
        return self.path

    @property
    def bytes(self) -> int | None:
        """What there is to download."""
        return self.size if self.size is not None else self.about


@dataclass(frozen=True)
class PictureList(Entry):
    """Pictures named one by one in the list `path`, to be stored in the folder `images`.

    `annotations`: the file to write with the captions of the pictures that could be had.
    """

    path: str = ""
    images: str = ""
    annotations: str | None = None
    columns: tuple[str, ...] = ()  # of a tab-separated list: "url", "caption", "" for any other
    shorter_side: int | None = None  # pictures are made smaller to this, and stored as JPEG
    pictures: int | None = None  # how many there are, roughly

    @property
    def name(self) -> str:
        return self.images


@dataclass(frozen=True)
class Triples(Entry):
    """A JSON list of [question, answer, number of the picture], to be written as records.

    `image` is the picture's name with ``{}`` for the number.
    """

    part: str = "annotations"
    path: str = ""
    writes: str = ""
    image: str = ""

    @property
    def name(self) -> str:
        return self.writes


@dataclass(frozen=True)
class Manual(Entry):
    """Steps in words; ``{to}`` in them is the target folder."""

    what: str = ""
    steps: str = ""

    @property
    def name(self) -> str:
        return self.what


@dataclass(frozen=True)
class Description:
    """A data set as it can be fetched."""

    name: str
    title: str
    homepage: str
    licence: str
    builders: tuple[str, ...]  # who read it
    files: tuple[File, ...] = ()
    lists: tuple[PictureList, ...] = ()
    triples: tuple[Triples, ...] = ()
    manual: tuple[Manual, ...] = ()
    notes: str = ""

    @property
    def entries(self) -> tuple[Entry, ...]:
        return (*self.files, *self.lists, *self.triples, *self.manual)

    def only(
        self, part: str = "all", split: str | None = None, type: str = "default"
    ) -> Description:
        """What belongs to `part`, `split` and `type`.

        Raises:
            UserError: there is no such part, split or type.
        """
        types = {"default", *(name for entry in self.entries for name in entry.types)}
        if type not in types:
            known = ", ".join(sorted(types))
            near = did_you_mean(type, types)
            raise UserError(f"{self.name} has no type '{type}'.{near} Known: {known}")
        if part != "all" and part not in PARTS:
            raise UserError(f"--part {part}: expected annotations, images or all")
        splits = sorted({name for entry in self.entries for name in entry.splits})
        if split is not None and split not in splits:
            known = ", ".join(splits) or "(it is not divided)"
            near = did_you_mean(split, splits)
            raise UserError(f"{self.name} has no split '{split}'.{near} Known: {known}")

        def wanted(entry: Entry) -> bool:
            fits = split is None or not entry.splits or split in entry.splits
            typed = not entry.types or type in entry.types
            return fits and typed and part in ("all", entry.part)

        lists = tuple(entry for entry in self.lists if wanted(entry))
        triples = tuple(entry for entry in self.triples if wanted(entry))
        needed = {entry.path for entry in lists} | {entry.path for entry in triples}

        def brings(entry: File | Manual) -> bool:
            places = {entry.name, *(one.path for one in entry.expect)}
            return wanted(entry) or not needed.isdisjoint(places)

        files = tuple(file for file in self.files if brings(file))
        manual = tuple(step for step in self.manual if brings(step))
        return replace(self, files=files, lists=lists, triples=triples, manual=manual)


def names() -> list[str]:
    """The data sets that can be fetched, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != _SHARED)


def describe(name: str) -> Description:
    """The description of the data set `name`.

    Raises:
        UserError: there is none.
        ConfigError: its file is wrong; names file and key.
    """
    if name not in names():
        raise UserError(
            f"No data set '{name}' to download.{did_you_mean(name, names())} "
            f"Known: {', '.join(names())}"
        )
    shared = _read(FOLDER / f"{_SHARED}.yaml")
    return _description(name, _read(FOLDER / f"{name}.yaml"), shared)


def _read(path: Path) -> dict[str, Any]:
    import yaml

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values")
    return content


def _description(name: str, raw: Mapping[str, Any], shared: Mapping[str, Any]) -> Description:
    where = f"downloads/{name}.yaml"
    values = dict(raw)
    kinds = {"files": File, "lists": PictureList, "triples": Triples, "manual": Manual}
    for key, kind in kinds.items():
        values[key] = tuple(
            _entry(kind, item, shared, f"{where}: {key}[{index}]")
            for index, item in enumerate(raw.get(key, ()))
        )
    values["builders"] = tuple(raw.get("builders", ()))
    return _make(Description, {"name": name, **values}, where)


def _entry(kind: Any, item: Any, shared: Mapping[str, Any], where: str) -> Any:
    if not isinstance(item, Mapping):
        raise ConfigError(f"{where}: expected keys and values, saw {item!r}")
    values = dict(item)
    if "use" in values:
        used = values.pop("use")
        if used not in shared:
            raise ConfigError(f"{where}.use: no '{used}' in {_SHARED}.yaml")
        values = {**shared[used], **values}
    values["expect"] = tuple(_expected(one, where) for one in values.get("expect", ()))
    for key in ("splits", "types", "columns", "only"):
        if key in values:
            values[key] = tuple(values[key])
    for key in ("about", "unpacked"):
        if key in values:
            values[key] = parse_size(values[key], f"{where}.{key}")
    entry = _make(kind, values, where)
    if entry.part not in PARTS:
        raise ConfigError(f"{where}.part: expected annotations or images, saw {entry.part!r}")
    if kind is File:
        _check_file(entry, where)
    return entry


def _expected(item: Mapping[str, Any], where: str) -> Expected:
    values = dict(item)
    values["misplaced"] = tuple(values.get("misplaced", ()))
    return _make(Expected, values, f"{where}.expect")


def _check_file(file: File, where: str) -> None:
    if not re.match(r"https?://", file.url):
        raise ConfigError(f"{where}.url: expected http:// or https://, saw {file.url!r}")
    if file.unpack not in ("none", "zip", "tar"):
        raise ConfigError(f"{where}.unpack: expected none, zip or tar, saw {file.unpack!r}")
    if (file.unpack == "none") == bool(file.into):
        raise ConfigError(f"{where}: `into` goes with `unpack: zip` or `unpack: tar`")
    for path in (file.path, file.into):
        if path.startswith("/") or ".." in Path(path).parts:
            raise ConfigError(f"{where}: {path}: expected a path below the target folder")


def _make(kind: Any, values: dict[str, Any], where: str) -> Any:
    known = [field.name for field in fields(kind)]
    for key in values:
        if key not in known:
            near = did_you_mean(str(key), known)
            raise ConfigError(f"{where}.{key}: unknown key.{near} Known: {', '.join(known)}")
    try:
        return kind(**values)
    except TypeError as error:  # a required key is missing
        raise ConfigError(f"{where}: {error}") from error


def parse_size(text: str | int, where: str) -> int:
    """ "13.5 GB" in bytes, decimal units.

    Raises:
        ConfigError: not a size; `where` names the key.
    """
    match = re.fullmatch(r"([\d.]+) ?([kMGT]?B)", str(text))
    if match is None:
        raise ConfigError(f"{where}: expected a size such as '13.5 GB', saw {text!r}")
    return round(float(match[1]) * _UNITS[match[2]])


def show_size(size: float) -> str:
    """Bytes as people read them: 13.5 GB."""
    for unit in ("TB", "GB", "MB", "kB"):
        if size >= _UNITS[unit]:
            return f"{size / _UNITS[unit]:.3g} {unit}"
    return f"{size:.0f} B"

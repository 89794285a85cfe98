"""``lavislite download``: show what will come, ask, fetch, verify."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from lavislite.common.errors import UserError
from lavislite.common.io import cache_dir
from lavislite.download.description import (
    Description,
    File,
    Manual,
    PictureList,
    describe,
    names,
    show_size,
)
from lavislite.download.fetch import fetch_file, is_done, marker_of, staged
from lavislite.download.lists import fetch_list
from lavislite.download.parallel import in_parallel
from lavislite.download.records import write_records
from lavislite.download.unpack import free_disk
from lavislite.download.verify import complete, count_files, expected_of, missing

ASK_ABOVE = 10**9
_FILES_AT_ONCE = 4
_PICTURES_AT_ONCE = 32


def run(args: argparse.Namespace) -> int:
    """The command: fetch a data set, or list them all."""
    if args.name is None:
        for name in names():
            print(f"{name:<24}{describe(name).title}")
        return 0
    download(
        args.name,
        args.part,
        split=args.split,
        type=args.type,
        to=args.to,
        yes=args.yes,
        dry_run=args.dry_run,
        workers=args.workers,
        keep_archives=args.keep_archives,
        limit=args.limit,
    )
    return 0


def download(
    name: str,
    part: str = "all",
    *,
    split: str | None = None,
    type: str = "default",
    to: str | Path | None = None,
    yes: bool = False,
    dry_run: bool = False,
    workers: int | None = None,
    keep_archives: bool = False,
    limit: int | None = None,
) -> None:
    """Bring the data set `name` to the folder `to` (default: the cache), as its builders expect it.

    What is there already is left alone, what was interrupted goes on. `type` names one of its
    ``lavislite/configs/datasets/<name>/<type>.yaml``; `limit` stops a list of pictures after so
    many rows.

    Raises:
        UserError: something is missing in the end, or more than 1 GB is due and nobody agreed.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: expected at least 1")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: expected at least 1")
    data = describe(name).only(part, split, type)
    root = Path(to).expanduser() if to is not None else cache_dir()
    if root.exists() and not root.is_dir():
        raise UserError(f"--to {root}: expected a folder, this is a file")
    files = [file for file in data.files if not is_done(file, root)]
    lists = _lists_due(data, root, files, limit)
    due = sum(file.bytes or 0 for file in files) + sum(entry.about or 0 for entry in lists)
    needed = disk_needed(files, lists, root, workers or _FILES_AT_ONCE, keep_archives)
    _show(data, root, files, due, needed)
    if dry_run:
        _show_steps(data, root)
        return
    if files or lists:
        _check_disk(root, needed)
        _ask(due, yes)
    troubles = _fetch_files(files, root, workers or _FILES_AT_ONCE, keep_archives)
    troubles += _write_records(data, root)
    troubles += _fetch_lists(lists, root, workers or _PICTURES_AT_ONCE, limit)
    _finish(data if limit is None else replace(data, lists=()), root, troubles)


def _lists_due(
    data: Description, root: Path, files: list[File], limit: int | None
) -> list[PictureList]:
    """The lists with pictures still to come, as far as the list itself is there or in `files`."""
    coming = {file.path for file in files}
    return [
        replace(entry, about=_left(entry, root, limit))
        for entry in data.lists
        if not complete(entry, root) and ((root / entry.path).exists() or entry.path in coming)
    ]


def _fetch_files(files: list[File], root: Path, workers: int, keep: bool) -> list[str]:
    """What went wrong; one file's trouble does not stop the others."""
    troubles = []
    for file, result in in_parallel(lambda file: fetch_file(file, root, keep), files, workers):
        if isinstance(result, UserError):
            troubles.append(str(result))
        elif isinstance(result, Exception):
            raise result
        else:
            print(f"{file.path}: done")
    return troubles


def _write_records(data: Description, root: Path) -> list[str]:
    troubles = []
    for entry in data.triples:
        if (root / entry.path).exists() and not complete(entry, root):
            try:
                write_records(entry, root)
            except UserError as error:
                troubles.append(str(error))
    return troubles


def _fetch_lists(
    lists: list[PictureList], root: Path, workers: int, limit: int | None
) -> list[str]:
    troubles = []
    for entry in lists:
        if not (root / entry.path).exists():
            continue  # its own file says what is wrong
        try:
            print(f"{entry.images}: {fetch_list(entry, root, workers, limit)}")
        except UserError as error:
            troubles.append(str(error))
    return troubles


def _finish(data: Description, root: Path, troubles: list[str]) -> None:
    """Verify the layout; raises UserError with all that is missing."""
    for entry in data.entries:
        lines = [line for one in expected_of(entry) if (line := missing(one, root)) is not None]
        if isinstance(entry, Manual) and lines:
            troubles.append(_steps(entry, root))
        elif isinstance(entry, File):
            if entry.unpack == "none" and any(entry.url in trouble for trouble in troubles):
                continue  # said already
            marker = marker_of(entry, root)
            again = f" To unpack again, remove {marker}." if marker is not None else ""
            troubles += [line + again for line in lines]
        else:
            troubles += lines
    if troubles:
        unique = list(dict.fromkeys(troubles))
        raise UserError(f"{data.name} is not complete:\n" + "\n".join(f"- {t}" for t in unique))
    print(f"{data.name}: complete in {root}")
    if root.resolve() not in (cache_dir().resolve(), Path.cwd()):
        print(f"To use it, run with LAVISLITE_CACHE={root}, or from within {root}.")


# ------------------------------------------------------------------------------------ before it all


def _left(entry: PictureList, root: Path, limit: int | None) -> int | None:
    """The bytes of a list still to come, by the number of pictures that are there."""
    if entry.about is None or not entry.pictures:
        return entry.about
    wanted = min(entry.pictures, limit or entry.pictures)
    there = count_files(root / entry.images, "*")
    return round(entry.about * max(0, wanted - there) / entry.pictures)


def disk_needed(
    files: list[File], lists: list[PictureList], root: Path, workers: int, keep_archives: bool
) -> int:
    """The bytes of free disk all this takes at its height, roughly.

    Archives are removed once unpacked, so without `keep_archives` there are at most `workers`.
    """
    archives = [file for file in files if file.unpack != "none"]
    lasting = sum(file.bytes or 0 for file in files if file.unpack == "none")
    lasting += sum(file.unpacked or file.bytes or 0 for file in archives)
    lasting += sum(entry.about or 0 for entry in lists)
    packed = sorted((file.bytes or 0 for file in archives), reverse=True)
    begun = sum(_size_of_part(file, root) for file in files)
    return max(0, lasting + sum(packed if keep_archives else packed[:workers]) - begun)


def _size_of_part(file: File, root: Path) -> int:
    path = staged(file, root)
    found = (path, path.with_name(f"{path.name}.part"))
    return sum(one.stat().st_size for one in found if one.exists())


def _check_disk(root: Path, needed: int) -> None:
    free = free_disk(root)
    if needed > free:
        raise UserError(
            f"Not enough disk: about {show_size(needed)} are needed, {show_size(free)} are free at "
            f"{root}. Choose another place with --to, or a part with --part or --split."
        )


def _ask(due: int, yes: bool) -> None:
    """Raises UserError unless it is little, or agreed to."""
    if yes or due <= ASK_ABOVE:
        return
    size = show_size(due)
    if sys.stdin is None or not sys.stdin.isatty():
        raise UserError(f"This fetches about {size}: say --yes to agree (nothing was fetched).")
    try:
        agreed = input(f"Fetch about {size}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        agreed = False
    if not agreed:
        raise UserError("Nothing was fetched.")


def _show(data: Description, root: Path, due: list[File], total: int, needed: int) -> None:
    print(f"{data.title} ({data.name})")
    print(f"  home     {data.homepage}")
    print(f"  licence  {data.licence}")
    print(f"  to       {root}")
    for file in data.files:
        unpacked = f" -> {file.into}/" if file.into else ""
        print(f"  {_state(file, file in due, root):<22} {file.path}{unpacked}  ({file.url})")
    for entry in data.lists:
        count = f"{entry.pictures:,} pictures" if entry.pictures else "pictures"
        state = "there" if complete(entry, root) else _about(entry.about)
        print(f"  {state:<22} {entry.images}/: {count}, one by one, of the list {entry.path}")
    for step in data.manual:
        state = "there" if complete(step, root) else "by hand"
        print(f"  {state:<22} {step.what}")
    if total or needed:
        print(
            f"  in all   {_about(total)} to fetch, about {show_size(needed)} of disk needed, "
            f"{show_size(free_disk(root))} free"
        )
    if data.notes:
        print(f"  note     {data.notes.strip()}")


def _state(file: File, due: bool, root: Path) -> str:
    if not due:
        return "there"
    size = show_size(file.size) if file.size is not None else _about(file.about)
    begun = _size_of_part(file, root)
    return f"{size}, {show_size(begun)} there" if begun else size


def _about(size: int | None) -> str:
    return f"about {show_size(size)}" if size else "size unknown"


def _show_steps(data: Description, root: Path) -> None:
    for entry in data.manual:
        if not complete(entry, root):
            print(_steps(entry, root))


def _steps(entry: Manual, root: Path) -> str:
    steps = entry.steps.strip().replace("{to}", os.fspath(root))
    return f"{entry.what}: to be fetched by hand.\n" + "\n".join(
        f"    {line}" for line in steps.splitlines()
    )

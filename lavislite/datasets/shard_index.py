"""What lies where in an archive: pictures with their captions, one archive at a time or all joined.

Of archives from elsewhere each index is a file in ``<cache>/shards/index``, because making it means
fetching the whole archive: work that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lavislite.common.errors import DataError
from lavislite.common.io import atomic_write, atomic_write_text, cache_dir, read_json
from lavislite.common.logging import get_logger
from lavislite.datasets.packed import StringPacker
from lavislite.datasets.remote import Unreachable, look_up
from lavislite.datasets.shard_cache import ShardCache
from lavislite.datasets.stores import RemoteFile
from lavislite.datasets.tar import members

logger = get_logger(__name__)

PICTURES = ("jpg", "jpeg", "png", "webp")
Arrays = Mapping[str, np.ndarray]
_VERSION = 1  # of the files; raise it when `indexed` finds something else in the same archive
_AT_A_TIME = 8
_ENOUGH = 8  # failures
_EVERY = 60.0  # seconds between two lines about progress


@dataclass(frozen=True)
class Reading:
    """How captions are taken from an archive.

    Attributes:
        key: of the ``.json``.
        most: of a list of captions only the first so many count.
    """

    key: str
    most: int


def indexed(
    path: Path, reading: Reading, name: str = "", prefix: str = ""
) -> dict[str, np.ndarray]:
    """The pictures with captions of one archive.

    Args:
        name: what to call it in messages, if not `path`.
        prefix: put before the names of its pictures.

    Returns:
        names and texts (packed), `n_texts`, `offset` and `size` per picture, and `left_out`: how
        many samples have no picture or no caption.

    Raises:
        DataError: it is no tar archive.
    """
    names, texts = StringPacker(), StringPacker()
    n_texts, offset, size = array("q"), array("q"), array("q")
    left_out = 0
    for sample in _samples(path, reading, name):
        if sample.picture is None or not sample.captions:
            left_out += 1
            continue
        member, start, length = sample.picture
        names.add(prefix + member)
        for caption in sample.captions:
            texts.add(caption)
        for values, value in ((n_texts, len(sample.captions)), (offset, start), (size, length)):
            values.append(value)
    return {
        **names.arrays("paths"),
        **texts.arrays("texts"),
        "n_texts": np.asarray(n_texts, np.int64),
        "offset": np.asarray(offset, np.int64),
        "size": np.asarray(size, np.int64),
        "left_out": np.asarray([left_out]),
    }


def joined(parts: Iterable[Arrays], what: str) -> dict[str, np.ndarray]:
    """The arrays of an `ImageTable`, with archive, offset and size of each picture.

    Args:
        parts: of each archive, in order; asked for one by one.
        what: names them in the log.
    """
    blobs = {kind: bytearray() for kind in ("paths", "texts")}
    ends = {kind: array("q", [0]) for kind in blobs}
    columns = {kind: array("q") for kind in ("n_texts", "offset", "size")}
    shard = array("i")
    number = left_out = 0
    for number, part in enumerate(parts):
        for kind, blob in blobs.items():
            ends[kind].frombytes((part[f"{kind}.ends"][1:] + len(blob)).tobytes())
            blob += part[f"{kind}.utf8"].tobytes()
        for kind, column in columns.items():
            column.frombytes(part[kind].tobytes())
        shard.extend([number] * len(part["size"]))
        left_out += int(part["left_out"][0])
    logger.info(
        "%d archives %s: %d pictures with captions, %d without a caption or a picture",
        *(number + 1, what, len(shard), left_out),
    )
    arrays = {kind: np.asarray(column, np.int64) for kind, column in columns.items()}
    n_texts = arrays.pop("n_texts")
    return {
        **{f"{kind}.utf8": np.frombuffer(blob, np.uint8) for kind, blob in blobs.items()},
        **{f"{kind}.ends": np.asarray(column, np.int64) for kind, column in ends.items()},
        **arrays,
        "first_text": np.concatenate([[0], np.cumsum(n_texts)]).astype(np.int64),
        "shard": np.asarray(shard, np.int32),
    }


# ---------------------------------------------------------------------------------- from elsewhere


def index_remote(
    files: Sequence[RemoteFile], cache: ShardCache, reading: Reading, owner: str
) -> Iterator[Arrays]:
    """The index of each file, in order; those not made before are made first, several at a time.

    Raises:
        DataError: some cannot be fetched, or are no tar archives. What was made is kept.
    """
    paths = [_index_path(file, reading) for file in files]
    todo = [(file, path) for file, path in zip(files, paths, strict=True) if not _readable(path)]
    if todo:
        _make(todo, cache, reading, owner)
    return (_loaded(path) for path in paths)


def _make(
    todo: Sequence[tuple[RemoteFile, Path]], cache: ShardCache, reading: Reading, owner: str
) -> None:
    logger.info("%s: each of %d archives is fetched once for its index", owner, len(todo))
    failed: list[Exception] = []
    said = time.monotonic()
    pool = ThreadPoolExecutor(_AT_A_TIME)
    try:
        making = [pool.submit(_make_one, file, path, cache, reading) for file, path in todo]
        for done, future in enumerate(as_completed(making), 1):
            error = future.exception()
            if isinstance(error, (Unreachable, DataError)):
                failed.append(error)
                if len(failed) == _ENOUGH:
                    break
            elif error is not None:
                raise error
            if time.monotonic() - said > _EVERY:
                said = time.monotonic()
                logger.info("%s: %d of %d archives are indexed", owner, done, len(todo))
    finally:
        pool.shutdown(cancel_futures=True)
    if failed:
        at_least = "at least " if len(failed) == _ENOUGH else ""
        raise DataError(
            f"{owner}: {at_least}{len(failed)} of {len(todo)} archives cannot be indexed; what was "
            f"read of the others is kept, so starting again goes on from there. {failed[0]}"
        ) from failed[0]


def _make_one(file: RemoteFile, path: Path, cache: ShardCache, reading: Reading) -> None:
    with cache.whole(file) as copy:
        arrays = indexed(copy, reading, file.url)
    atomic_write(path, lambda part: _save(part, arrays))


def _save(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _loaded(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _readable(path: Path) -> bool:
    return path.exists() and zipfile.is_zipfile(path)


def _index_path(file: RemoteFile, reading: Reading) -> Path:
    about = [_VERSION, file.url, file.size, file.version, reading.key, reading.most]
    digest = hashlib.blake2b(json.dumps(about).encode(), digest_size=12).hexdigest()
    return cache_dir() / "shards" / "index" / f"{digest}.npz"


def look_up_all(urls: Sequence[str], owner: str, *, anew: bool) -> list[RemoteFile]:
    """What the stores say about `urls`; unless `anew`, what they said on this machine before.

    So all processes of a run see the same, whatever happens between their questions.

    Raises:
        DataError: some are not there.
    """
    digest = hashlib.blake2b(json.dumps(list(urls)).encode(), digest_size=12).hexdigest()
    path = cache_dir() / "shards" / "lists" / f"{digest}.json"
    if path.exists() and not anew:
        return [RemoteFile(*entry) for entry in read_json(path)]
    files = _asked(urls, owner)
    atomic_write_text(path, json.dumps([[file.url, file.size, file.version] for file in files]))
    return files


def _asked(urls: Sequence[str], owner: str) -> list[RemoteFile]:
    def ask(url: str) -> RemoteFile | Unreachable:
        try:
            return look_up(url)
        except Unreachable as error:
            return error

    first = ask(urls[0])  # a wrong address shows in the first
    answers = [first]
    if isinstance(first, RemoteFile):
        with ThreadPoolExecutor(2 * _AT_A_TIME) as pool:
            answers += pool.map(ask, urls[1:])
    failed = [answer for answer in answers if isinstance(answer, Unreachable)]
    if failed:
        raise DataError(f"{owner}: {len(failed)} of {len(urls)} archives: {failed[0]}.")
    return [answer for answer in answers if isinstance(answer, RemoteFile)]


# ------------------------------------------------------------------------------------ one archive


@dataclass
class _Sample:
    picture: tuple[str, int, int] | None = None
    text: list[str] | None = None  # of the .txt
    described: list[str] | None = None  # of the .json

    @property
    def captions(self) -> list[str]:
        return self.described or self.text or []


def _samples(path: Path, reading: Reading, name: str) -> Iterable[_Sample]:
    """What belongs together has the same name up to the first dot."""
    found: dict[str, _Sample] = {}
    for (member, offset, size), content in members(path, name):
        folder, slash, base = member.rpartition("/")
        stem, _, suffix = base.partition(".")
        if not stem:  # .DS_Store and the like
            continue
        sample = found.setdefault(folder + slash + stem, _Sample())
        suffix = suffix.lower()
        if suffix in PICTURES:
            sample.picture = member, offset, size
        elif suffix == "txt":
            sample.text = _texts([bytes(content).decode("utf-8", "replace")], reading.most)
        elif suffix == "json":
            sample.described = _texts(_described(bytes(content), reading.key), reading.most)
    return found.values()


def _described(content: bytes, key: str) -> Any:
    try:
        value = json.loads(content)
    except ValueError:  # counted with the samples that have no caption, unless there is a .txt
        return []
    return value.get(key) if isinstance(value, dict) else value


def _texts(value: Any, most: int) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in values if isinstance(text, str) and text.strip()][:most]

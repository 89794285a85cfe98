"""Shards on a web server or in an object store: indexed once, read through local copies."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from dataset_parts import SIZE, build
from remote_parts import Site, serving
from test_shards import pack, picture, shard

from lavislite.common.errors import ConfigError, DataError
from lavislite.datasets import remote, shard_cache
from lavislite.datasets.images import TooManyBadImages
from lavislite.datasets.loading import TrainLoader
from lavislite.datasets.remote import Unreachable, look_up, read_range
from lavislite.datasets.shard_cache import GB, ShardCache
from lavislite.datasets.shards import OwnShardsBuilder

ALL = [f"caption {k}" for shard in range(4) for k in range(10 * shard, 10 * shard + 5)]


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nobody waits between two attempts; returns whom they were for."""
    seen: list[str] = []
    monkeypatch.setattr(remote, "_wait", lambda *about: seen.append(about[1]))
    return seen


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    for k in range(4):
        shard(tmp_path / f"site/{k}.tar", 10 * k, 5)
    with serving(tmp_path / "site") as found:
        yield found


def names(site: Site) -> str:
    return f"{site.url}/{{0..3}}.tar"


def dataset(annotations: Any, train: bool = True, **options: Any) -> Any:
    return build(OwnShardsBuilder, annotations={"train": annotations}, train=train, **options)


def local(tmp_path: Path, **options: Any) -> Any:
    return dataset(f"{tmp_path}/site/*.tar", **options)


def same(one: Any, other: Any) -> bool:
    pairs = [(one[i], other[i]) for i in range(max(len(one), len(other)))]
    return all(
        a["text_input"] == b["text_input"] and torch.equal(a["image"], b["image"]) for a, b in pairs
    )


def prepared(annotations: Any, **options: Any) -> OwnShardsBuilder:
    cfg = OwnShardsBuilder.Config(**{**SIZE, **options}, annotations={"train": annotations})
    builder = OwnShardsBuilder(cfg, name="mine")
    builder.prepare()
    return builder


# ------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize(("cache", "ranges"), [(1.0, True), (1.0, False), (0.0, True)])
def test_a_web_servers_shards_are_as_local_ones(
    cache: float, ranges: bool, site: Site, tmp_path: Path
) -> None:
    site.ranges = ranges
    data = dataset(names(site), shard_cache_gb=cache)
    assert len(data) == 20
    assert same(data, local(tmp_path))
    assert f"{site.url}/1.tar/000000010.jpg" in data.record_id(5)
    assert len({data[i]["image_id"] for i in range(20)}) == 20
    if ranges:
        assert site.whole == {f"{k}.tar": 1 for k in range(4)}  # once: for the index
    again = dataset(names(site), shard_cache_gb=cache)
    assert [again[i]["text_input"] for i in range(20)] == ALL


def test_evaluation_is_in_the_order_of_the_archives(site: Site) -> None:
    data = dataset(names(site), train=False)
    assert [data[i]["text_input"] for i in range(20)] == ALL
    assert data.runs is None


def test_local_and_remote_archives_in_one_data_set(site: Site, tmp_path: Path) -> None:
    site.gone = {"0.tar", "2.tar"}
    named = [f"{tmp_path}/site/0.tar", f"{site.url}/1.tar", f"{tmp_path}/site/2.tar"]
    data = dataset([*named, f"file://{tmp_path}/site/3.tar"])
    assert same(data, local(tmp_path))


def test_what_fsspec_knows(tmp_path: Path, site: Site) -> None:
    store = fsspec.filesystem("memory")
    for k in range(4):
        store.pipe(f"/bucket/{k}.tar", (site.folder / f"{k}.tar").read_bytes())
    try:
        for cache in (1.0, 0.0):
            data = dataset("memory://bucket/*.tar", shard_cache_gb=cache)
            assert same(data, local(tmp_path))
        with pytest.raises(DataError, match=r"nothing matches memory://nowhere/\*.tar"):
            dataset("memory://nowhere/*.tar")
    finally:
        store.rm("/bucket", recursive=True)


def test_what_a_user_registered_with_iopath(tmp_path: Path, site: Site) -> None:
    from iopath.common.file_io import PathHandler, g_pathmgr

    class Vault(PathHandler):
        def _get_supported_prefixes(self) -> list[str]:
            return ["vault://"]

        def _exists(self, path: str, **_: Any) -> bool:
            return self._place(path).exists()

        def _open(self, path: str, mode: str = "r", **_: Any) -> Any:
            return self._place(path).open(mode)

        @staticmethod
        def _place(path: str) -> Path:
            return site.folder / path.removeprefix("vault://")

    g_pathmgr.register_handler(Vault())
    try:
        for cache in (1.0, 0.0):
            assert same(dataset("vault://{0..3}.tar", shard_cache_gb=cache), local(tmp_path))
        with pytest.raises(DataError, match=r"vault://9.tar: .*does not exist"):
            dataset("vault://9.tar")
    finally:
        g_pathmgr._path_handlers.pop("vault://")


def test_the_right_package_is_named_for_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigError, match=r"for s3:// install s3fs: pip install -e \"\.\[s3\]\""):
        dataset("s3://bucket/0.tar")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("{site}/{{0..5}}.tar", r"train: 2 of 6 archives: http.*/4.tar: the server says 404"),
        ("{site}/*.tar", r"\*\.tar stands for a web server does not say.*00000\.\.00099"),
        ("nothing://0.tar", "does not exist, or nothing reads nothing://"),
        ([], "saw an empty list"),
    ],
)
def test_what_is_not_there(pattern: Any, words: str, site: Site) -> None:
    named = pattern.format(site=site.url) if isinstance(pattern, str) else pattern
    with pytest.raises((DataError, ConfigError), match=words):
        dataset(named)


# ------------------------------------------------------------------------------------------- index


def test_an_index_that_was_interrupted_goes_on(site: Site, tmp_path: Path) -> None:
    good = site.folder / "2.tar"
    content = good.read_bytes()
    good.write_bytes(b"x" * 2000)
    with pytest.raises(DataError, match=r"1 of 4 archives cannot be indexed.*2.tar: not a tar"):
        dataset(names(site))
    good.write_bytes(content)
    site.whole.clear()
    builder = prepared(names(site))  # as every start of a run does: it sees what has changed
    assert same(builder.build("train", train=True), local(tmp_path))
    assert site.whole == {"2.tar": 1}


def test_every_start_looks_for_changes_and_processes_after_it_do_not(site: Site) -> None:
    builder = prepared(names(site))
    assert len(builder.build("train", train=True)) == 20
    shard(site.folder / "1.tar", 50, 2)
    asked = site.asked.total()
    assert len(builder.build("train", train=True)) == 20
    assert site.asked.total() == asked
    assert len(prepared(names(site)).build("train", train=True)) == 17


@pytest.mark.parametrize("cache", [1.0, 0.0])
def test_an_archive_that_changes_under_way_is_not_mixed_up(cache: float, site: Site) -> None:
    data = dataset(names(site), shard_cache_gb=cache, max_bad_fraction=1.0)
    shard(site.folder / "1.tar", 50, 5)
    for copy in (Path(os.environ["LAVISLITE_CACHE"]) / "shards/data").glob("*.tar"):
        copy.unlink()
    assert [i for i in range(20) if data[i] is None] == [5, 6, 7, 8, 9]


# ---------------------------------------------------------------------------------------- failures


def test_failures_that_pass_are_tried_again(site: Site, tmp_path: Path, waits: list[str]) -> None:
    site.failing.update({"0.tar": 2, "3.tar": 1})
    site.cut.update({"1.tar": 2})
    assert same(dataset(names(site)), local(tmp_path))
    assert Counter(url[-5:] for url in waits) == {"0.tar": 2, "1.tar": 2, "3.tar": 1}


def test_a_broken_line_goes_on_where_it_broke_off(site: Site, tmp_path: Path) -> None:
    (site.folder / "big").write_bytes(os.urandom(100_000))
    site.cut["big"] = 1
    cache = ShardCache(10**6)
    file = look_up(f"{site.url}/big")
    sent = site.sent
    with cache.whole(file) as path:
        assert path.read_bytes() == (site.folder / "big").read_bytes()
    assert site.sent - sent == 100_000
    site.ranges = False  # a server that cannot do that sends it all again
    site.cut["big"] = 1
    with ShardCache(0).whole(file) as path:
        assert path.read_bytes() == (site.folder / "big").read_bytes()


def test_all_pictures_of_a_lost_archive_count_as_bad(
    site: Site, caplog: pytest.LogCaptureFixture, waits: list[str]
) -> None:
    data = dataset(names(site), shard_cache_gb=0, max_bad_fraction=0.25)
    site.failing["2.tar"] = 10**9
    assert data[12] is None
    assert data.bad_records == 5
    tried = len(waits)
    assert [i for i in range(20) if data[i] is None] == [10, 11, 12, 13, 14]
    assert len(waits) == tried  # it is not asked for any more
    assert "mine/train: skipping 5 pictures" in caplog.text
    assert "503" in caplog.text
    site.failing["0.tar"] = 10**9
    with pytest.raises(TooManyBadImages, match=r"10 of 20 images .*max_bad_fraction.*0.tar"):
        data[0]


def test_evaluation_leaves_out_a_lost_archive(site: Site) -> None:
    dataset(names(site), shard_cache_gb=0)
    site.failing["2.tar"] = 10**9
    data = dataset(names(site), train=False, shard_cache_gb=0, max_bad_fraction=0.3)
    assert [data[i]["text_input"] for i in range(len(data))] == ALL[:10] + ALL[15:]


def test_batches_stay_full_when_an_archive_is_lost(tmp_path: Path) -> None:
    for k in range(2):
        files = {f"{k}_{n}.jpg": picture(n) for n in range(60)}
        pack(tmp_path / f"{k}.tar", files | {f"{k}_{n}.txt": b"%d" % k for n in range(60)})
    with serving(tmp_path) as site:
        data = dataset(f"{site.url}/{{0..1}}.tar", shard_cache_gb=0, max_bad_fraction=0.6)
        site.failing["0.tar"] = 10**9
        batches = list(TrainLoader([data], batch_size=20).batches(0, 6))
    assert [batch["text_input"] for batch in batches] == [["1"] * 20] * 6


def test_whole_files_only_and_no_place_for_them(site: Site) -> None:
    site.ranges = False
    with pytest.raises(DataError, match=r"gives out whole files only. Set shard_cache_gb"):
        prepared(names(site), shard_cache_gb=0.0)


# ------------------------------------------------------------------------------------------ copies


def copies() -> list[Path]:
    return sorted((Path(os.environ["LAVISLITE_CACHE"]) / "shards/data").glob("*.tar"))


def test_copies_take_no_more_room_than_they_may(site: Site, tmp_path: Path) -> None:
    size = (site.folder / "0.tar").stat().st_size
    cache = ShardCache(int(2.5 * size))
    files = [look_up(f"{site.url}/{k}.tar") for k in range(4)]
    contents = [(site.folder / f"{k}.tar").read_bytes() for k in range(4)]
    for k in (0, 1, 0, 2):
        assert cache.read(files[k], 5, 700) == contents[k][5:705]
        assert sum(path.stat().st_size for path in copies()) <= cache.limit
        old = time.time() - 100 + site.asked.total()
        os.utime(cache._path(files[k]), (old, old))
    site.whole.clear()
    cache.read(files[0], 0, 1)
    assert site.whole["0.tar"] == 0  # 1 was not used for longer: it had to go
    cache.read(files[1], 0, 1)
    assert site.whole["1.tar"] == 1


def test_one_of_many_fetches_and_all_read(site: Site) -> None:
    size = (site.folder / "0.tar").stat().st_size
    files = [look_up(f"{site.url}/{k}.tar") for k in range(4)]
    site.whole.clear()
    with ThreadPoolExecutor(8) as pool:
        caches = [ShardCache(5 * size) for _ in range(8)]
        found = list(pool.map(lambda c: [c.read(f, 0, f.size) for f in files], caches))
    assert all(one == found[0] for one in found)
    assert site.whole == {f"{k}.tar": 1 for k in range(4)}
    tight = [ShardCache(int(1.5 * size)) for _ in range(4)]  # room for one: they take turns
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda c: [c.read(f, 0, f.size) for f in reversed(files)], tight))
    assert all(one == found[0][::-1] for one in again)


def test_who_waited_for_a_fetch_in_vain_does_not_try_again(site: Site, waits: list[str]) -> None:
    file = look_up(f"{site.url}/0.tar")
    site.failing["0.tar"] = 10**9
    barrier = threading.Barrier(6)

    def read(_: int) -> str:
        barrier.wait()
        with pytest.raises(Unreachable, match="503") as error:
            ShardCache(10**9).read(file, 0, 1)
        return str(error.value)

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(read, range(6)))) == 1
    assert len(waits) == remote._ATTEMPTS - 1


def test_what_a_killed_process_began_is_removed(site: Site) -> None:
    cache = ShardCache(30_000)
    file = look_up(f"{site.url}/0.tar")
    cache.read(file, 0, 1)
    left = copies()[0].with_name("ab" + "0" * 22 + ".part")
    left.write_bytes(b"x" * 12_000)
    copies()[0].unlink()
    cache.read(file, 0, 1)
    assert not left.exists()


def test_archives_larger_than_the_room_for_them(site: Site) -> None:
    size = (site.folder / "0.tar").stat().st_size
    with pytest.raises(DataError, match="more than shard_cache_gb"):
        ShardCache(size - 1).read(look_up(f"{site.url}/0.tar"), 0, 1)
    with pytest.raises(ConfigError, match=r"too little: 4 archives .* lower shard_window \(2\)"):
        dataset(names(site), shard_cache_gb=3.5 * size / GB, shard_window=2)
    assert len(dataset(names(site), shard_cache_gb=4.5 * size / GB, shard_window=2)) == 20


def test_a_folder_that_cannot_hold_copies(site: Site, tmp_path: Path) -> None:
    (tmp_path / "cache/shards").mkdir(parents=True)
    (tmp_path / "cache/shards/data").write_text("a file")
    with pytest.raises(DataError, match=r"0.tar cannot be kept in .*Make room"):
        ShardCache(10**9).read(look_up(f"{site.url}/0.tar"), 0, 1)


def test_half_an_answer_is_not_a_picture(site: Site) -> None:
    file = look_up(f"{site.url}/0.tar")
    with pytest.raises(Unreachable, match="of 700 bytes|EOF|Incomplete"):
        read_range(file, file.size - 300, 700)


# ------------------------------------------------------------------------------------------ order


def test_the_order_is_that_of_the_seed_and_few_archives_are_used_at_a_time(site: Site) -> None:
    def loader(**options: Any) -> TrainLoader:
        data = dataset(names(site), shard_window=2)
        return TrainLoader([data], batch_size=2, seed=3, batches_per_epoch=4, **options)

    whole = list(loader().batches(0, 20))
    resumed = list(loader(num_workers=2).batches(13, 20))
    for one, other in zip(whole[13:], resumed, strict=True):
        assert one["text_input"] == other["text_input"]
        assert torch.equal(one["image"], other["image"])
    seen = [text for batch in whole for text in batch["text_input"]]
    assert sorted(seen[:20], key=ALL.index) == sorted(seen[20:], key=ALL.index) == ALL
    archive = [int(text.split()[1]) // 10 for text in seen[:20]]
    halves = set(archive[:4]), set(archive[8:12])
    assert all(len(half) <= 3 for half in halves)  # of 4
    assert halves[0] != halves[1]


def test_the_archive_that_comes_next_is_fetched_in_advance(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "_TOUCHED", 0.0)
    size = (site.folder / "0.tar").stat().st_size
    data = dataset(names(site), shard_window=1, shard_cache_gb=3.2 * size / GB)
    for copy in copies():
        copy.unlink()
    batches = TrainLoader([data], batch_size=1, seed=3).batches(0, 20)
    first = next(batches)["text_input"][0]
    deadline = time.monotonic() + 10
    while len(copies()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(copies()) == 2
    site.whole.clear()
    row = [first, *(batch["text_input"][0] for batch in batches)]
    assert sorted(row, key=ALL.index) == ALL
    assert site.whole.total() == 2  # the other two; none came twice

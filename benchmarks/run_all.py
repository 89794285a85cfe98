"""All speed benchmarks one after the other, and one table for each thing that they are about.

    python benchmarks/run_all.py --quick                # on a CPU, under 15 minutes on two cores
    python benchmarks/run_all.py                        # more rounds and larger sizes
    python benchmarks/run_all.py --only stage1_step,startup

The tables go to the terminal and to `results/speed.md` (`--out`), what each benchmark measured to a
file beside it. A row names the peer, ours, how many times better ours is, and the floor, which is
the operations of ours over the rate of a matrix product in the same run (or what decoding alone
takes, for data). A benchmark that fails is named at the end, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from facts import facts, facts_line
from side_by_side import table

HERE = Path(__file__).parent
Found = dict[str, Any]


class Row(NamedTuple):
    what: str
    peer: str
    ours: str
    ratio: str
    floor: str = ""


def times(value: float) -> str:
    return f"{value:.2f} x"


def seconds(value: float) -> str:
    return f"{value:.3g} s"


# ---- from what a benchmark measured to its rows


def stage1(found: Found) -> Iterator[Row]:
    yield from _step(found)
    paper = found["paper_gflop_per_image"]
    yield _fewer("operations per image at the paper's size", paper["original"], paper["whole"])


def _step(found: Found) -> Iterator[Row]:
    yield _fewer("operations of a step", found["gflop"]["original"], found["gflop"]["ours"])
    yield from _seconds(found, "")
    yield from _seconds(found["memory_kept"], ", memory kept on both sides")


def _fewer(what: str, peer: float, ours: float) -> Row:
    return Row(what, f"{peer:.0f} GFLOP", f"{ours:.0f} GFLOP", times(peer / ours))


def _seconds(found: Found, how: str) -> Iterator[Row]:
    for pair, faster in found["times_faster"].items():
        ours, peer = pair.split(" than ")
        seen = ", features cached" if ours == "cached" else ""
        yield Row(
            f"seconds of a step{seen}{how} (peer: {peer})",
            seconds(found["seconds"][peer]),
            seconds(found["seconds"][ours]),
            times(faster),
            seconds(found["seconds_floor"][ours]),
        )


def features(found: Found) -> Iterator[Row]:
    spent, floor = found["seconds"], found["seconds_floor"] or {"cached": 0.0}
    yield Row(
        "a step at the paper's proportions (peer: uncached)",
        seconds(spent["uncached"]),
        seconds(spent["cached"]),
        times(found["times_faster"]),
        seconds(floor["cached"]),
    )
    for kind, stored in found["stored"].items():
        yield Row(f"stored as {kind}", "the tower's output", _in_words(stored), "")


def _in_words(values: Found) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items())


def compiled(found: Found) -> Iterator[Row]:
    spent = found["seconds"]
    ratio = times(found["times_faster"])
    what = f"a step of stage 1, compiled ({found['size']} size; peer: plain)"
    yield Row(what, seconds(spent["plain"]), seconds(spent["compiled"]), ratio)
    again = next(value for key, value in found.items() if key.startswith("compiled_again"))
    yield Row("compiled again after the warm-up", "", f"{again} of 30 batches", "")


def low_precision(found: Found) -> Iterator[Row]:
    for part, kinds in found["outputs"].items():
        for kind, values in kinds.items():
            if kind != "fp32":
                words = f"relative RMS {values['relative_rms']}, cosine {values['cosine']}"
                yield Row(f"{part} in {kind}", "fp32", words, times(values["times_faster"]))


def data(found: Found) -> Iterator[Row]:
    kinds = {name: rows for name, rows in found.items() if isinstance(rows, dict)}
    for kind, rows in kinds.items():
        floor = f"{rows['decoding_us']:.0f} us"
        for what, values in rows.items():
            if isinstance(values, dict) and "ratio" in values:
                yield _picture(f"{kind}, {what}", values, "" if "alone" in what else floor)


def _picture(what: str, values: Found, floor: str) -> Row:
    peer, ours = (f"{values[key]:.0f} us" for key in ("peer_us", "ours_us"))
    return Row(what, peer, ours, times(values["ratio"]), floor)


def data_wait(found: Found) -> Iterator[Row]:
    for name, of in found["runs"].items():
        yield Row(name, f"limit {found['limit']:.0%}", f"{of['data_wait']:.1%}", "")


def rerank(found: Found) -> Iterator[Row]:
    spent, counts, work = found["seconds"], found["counts"], found["gflop"]
    for what in ("pairs", "image_projections"):
        peer, ours = counts["original"][what], counts["ours"][what]
        yield Row(what.replace("_", " "), str(peer), str(ours), times(peer / ours))
    yield Row(
        "operations",
        f"{work['original']} GFLOP",
        f"{work['ours']} GFLOP",
        times(work["original"] / work["ours"]),
    )
    yield Row(
        "seconds",
        seconds(spent["original"]),
        seconds(spent["ours"]),
        times(found["times_faster"]),
        seconds(found["seconds_floor"]["ours"]),
    )


def questions(found: Found) -> Iterator[Row]:
    for key in ("tower_passes_per_100", "gflop_per_100", "seconds_per_100"):
        peer, ours = found[key]["one by one"], found[key]["shared"]
        ratio = found["times_faster"] if key.startswith("seconds") else peer / ours
        what = key.replace("_", " ") + " questions"
        yield Row(what, f"{peer:.4g}", f"{ours:.4g}", times(ratio))


def ranking(found: Found) -> Iterator[Row]:
    work, spent = found["gflop"], found["seconds"]
    peer = "whole pairs"
    fewer = times(found["times_fewer_operations"])
    yield Row("operations", f"{work[peer]:.0f} GFLOP", f"{work['ours']:.0f} GFLOP", fewer)
    yield Row("seconds", seconds(spent[peer]), seconds(spent["ours"]), times(found["times_faster"]))


def generation(found: Found) -> Iterator[Row]:
    for name, case in found["cases"].items():
        peer, ours = (seconds(case["seconds"][side]) for side in ("transformers", "ours"))
        same = "" if case["texts_equal"] else " (texts differ)"
        yield Row(name + same, peer, ours, times(case["times_faster"]))


def startup(found: Found) -> Iterator[Row]:
    for name in ("import", "help", "first step"):
        limit = found["limits"][name]
        yield Row(name, f"limit {limit} s", seconds(found[name]), "")


class Bench(NamedTuple):
    """A script, what its figures are about, and its rows."""

    script: str
    title: str
    rows: Callable[[Found], Iterator[Row]]


BENCHES = (
    Bench("stage1_step", "Training step, stage 1", stage1),
    Bench("feature_cache", "Frozen features once", features),
    Bench("low_precision", "Frozen towers in low precision", low_precision),
    Bench("compile", "torch.compile", compiled),
    Bench("stage2_step", "Training step, stage 2", _step),
    Bench("data_rate", "Data (CPU time per picture; peer: PIL + torchvision)", data),
    Bench("data_wait", "Waiting for data (share of the time of a run, from its log)", data_wait),
    Bench("retrieval_rerank", "Re-ranking (peer: the original's loop over queries)", rerank),
    Bench("evaluation_vqa", "Several questions per picture (peer: one by one)", questions),
    Bench("ranking", "Ranking answers (peer: every pair of question and answer whole)", ranking),
    Bench("generation", "Inference (peer: transformers, same weights)", generation),
    Bench("startup", "Start-up", startup),
)


def run(bench: Bench, quick: bool) -> Found:
    """What the benchmark measured."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "found.json")
        command = [sys.executable, str(HERE / f"{bench.script}.py"), "--json", str(file)]
        subprocess.run([*command, *(["--quick"] if quick else [])], check=True)
        return dict(json.loads(file.read_text(encoding="utf-8")))


def section(bench: Bench, found: Found, quick: bool) -> str:
    head = ["", "peer", "ours", "ratio", "floor"]
    command = f"python benchmarks/{bench.script}.py{' --quick' if quick else ''}"
    return f"## {bench.title}\n\n`{command}`\n\n{table([head, *bench.rows(found)])}\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rounds, small sizes")
    parser.add_argument("--only", default="", help="names of scripts, with commas between them")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "speed.md")
    args = parser.parse_args(arguments)
    wanted = [name for name in args.only.split(",") if name]
    known = [bench.script for bench in BENCHES]
    if unknown := sorted(set(wanted) - set(known)):
        parser.error(f"--only: {unknown[0]} is unknown. Known: {', '.join(known)}")
    begun, parts, measured, failed = time.perf_counter(), [], {}, []
    for bench in BENCHES:
        if wanted and bench.script not in wanted:
            continue
        print(f"\n=== {bench.title}", flush=True)
        try:
            measured[bench.script] = run(bench, args.quick)
        except subprocess.CalledProcessError as error:
            failed.append(f"{bench.script} (exit status {error.returncode})")
            continue
        parts.append(section(bench, measured[bench.script], args.quick))
    minutes = (time.perf_counter() - begun) / 60
    foot = f"{facts_line(facts(2))}, {minutes:.1f} minutes in all\n"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(["# Speed\n", *parts, foot]), encoding="utf-8")
    args.out.with_suffix(".json").write_text(
        json.dumps(measured, indent=1) + "\n", encoding="utf-8"
    )
    print("\n" + "\n".join([*parts, foot]))
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

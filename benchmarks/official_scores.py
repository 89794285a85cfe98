"""Every figure that the official evaluation scripts gave for tests/data/eval, and ours.

    python benchmarks/official_scores.py                    everything; METEOR where there is Java
    python benchmarks/official_scores.py --only gqa vqa
    python benchmarks/official_scores.py --no-java

Exit code 1 if a figure differs in any digit that the official one was printed with.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lavislite.metrics.caption import caption_scores, captions_by_id
from lavislite.metrics.gqa import gqa_match, gqa_scores
from lavislite.metrics.ptb import tokenize
from lavislite.metrics.vqa import normalize_answer, vqa_accuracy, vqa_scores

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data" / "eval"
RESULTS = ROOT / "benchmarks" / "results" / "official_scores.md"
VERSIONS = {"2021": "official_2021", "2017": "official_2017_as_in_LAVIS"}
VQA_DIGITS, PUBLISHED_DIGITS = 6, 3  # as they were printed; the others have all a float has


@dataclass(frozen=True)
class Figure:
    """One figure and after how many digits it was rounded.

    `ours` is None where it cannot be computed here, and `note` says why.
    """

    part: str
    name: str
    official: float
    ours: float | None
    note: str = ""
    digits: int = 9

    @property
    def right(self) -> bool:
        if self.ours is None:
            return True
        return abs(self.ours - self.official) <= 0.5 * 10**-self.digits * (1 + 1e-6)

    def cells(self) -> list[str]:
        shown = "-" if self.ours is None else f"{self.ours:.10g}"
        difference = "-" if self.ours is None else f"{self.ours - self.official:.0e}"
        if difference.startswith(("0e", "-0e")):
            difference = "0"
        mark = "" if self.right else " **differs**"
        return [self.name, f"{self.official:.10g}", shown, difference + mark, self.note]


def read(name: str) -> Any:
    """A file of tests/data/eval, compressed or not."""
    path = DATA / name
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    return json.loads(gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes()))


# ------------------------------------------------------------------------------------------ figures


def vqa(expected: Mapping[str, Any]) -> Iterator[Figure]:
    """1,000 questions of TextVQA and the truth table."""
    part = "vqa/textvqa_val1000"
    each = read("vqa/textvqa_val1000_per_question.json")
    results, annotations = (read(f"{part}_{name}.json") for name in ("results", "annotations"))
    yield from _vqa(part, results, annotations, expected[part], each)
    table = read("vqa_truth_table.json")
    for version, key in (("2021", "score"), ("2017", "score_2017")):
        cases = [case for case in table["cases"] + table["special_cases"] if case[key] is not None]
        hits = sum(
            abs(vqa_accuracy(case["prediction"], case["answers"], version) - case[key]) < 1e-6
            for case in cases
        )
        yield Figure("vqa truth table", f"rows that agree, {version}", len(cases), hits)
    pairs = [
        (text, norm)
        for case in table["cases"]
        for text, norm in zip(
            [case["prediction"], *case["answers"]],
            [case["norm_prediction"], *case["norm_answers"]],
            strict=True,
        )
    ]
    hits = sum(normalize_answer(text) == norm for text, norm in pairs)
    yield Figure("vqa truth table", "normal forms that agree", len(pairs), hits)


def okvqa(expected: Mapping[str, Any]) -> Iterator[Figure]:
    """GPT-3's answers to OK-VQA."""
    annotations = read("okvqa/okvqa_val2014_annotations_rebuilt.json")
    for part in (name for name in expected if name.startswith("okvqa/")):
        results = read(f"{part}_results.json")
        yield from _vqa(part, results, annotations, expected[part])
        name = "published_by_PICa_own_estimate_on_true_annotations"
        note = "of the true annotations, which are not among the files"
        yield Figure(part, "published by PICa", expected[part][name], None, note)


def _vqa(
    part: str,
    results: Any,
    annotations: Mapping[str, Any],
    expected: Mapping[str, Any],
    each: Mapping[str, Mapping[str, float]] | None = None,
) -> Iterator[Figure]:
    for version, key in VERSIONS.items():
        official = expected[key]["accuracy"]
        ours = vqa_scores(results, annotations["annotations"], version)
        where = f"{part}, {version}"
        yield Figure(where, "overall", official["overall"], ours.overall, digits=VQA_DIGITS)
        yield Figure(where, "questions", expected[key]["n_questions"], len(ours.by_question))
        for table, found in (
            ("perAnswerType", ours.by_answer_type),
            ("perQuestionType", ours.by_question_type),
        ):
            for name, value in official[table].items():
                yield Figure(where, name, value, found[name], digits=VQA_DIGITS)
        if each is not None:
            hits = sum(
                abs(ours.by_question[int(q)] - score) < 1e-6 for q, score in each[key].items()
            )
            yield Figure(where, "single questions that agree", len(each[key]), hits)


def gqa(expected: Mapping[str, Any]) -> Iterator[Figure]:
    """400 questions of GQA, and pairs of answers under LAVIS's rule."""
    official = expected["gqa/sub"]["scores"]
    ours = gqa_scores(
        {row["questionId"]: row["prediction"] for row in read("gqa/sub_predictions.json")},
        read("gqa/sub_questions.json"),
        choices=read("gqa/sub_choices.json"),
        consistency=True,
    )
    tables = {
        "accuracyPerStructuralType": ours.by_structural,
        "accuracyPerSemanticType": ours.by_semantic,
        "accuracyPerSteps": {str(n): value for n, value in ours.by_steps.items()},
        "accuracyPerLength": {str(n): value for n, value in ours.by_length.items()},
    }
    for name, value in official.items():
        if name in tables:
            for group, (score, number) in value.items():
                found: Mapping[str, tuple[float, int]] = tables[name]
                yield Figure("gqa/sub", f"{name} {group}", score, found[group][0])
                yield Figure("gqa/sub", f"{name} {group}, questions", number, found[group][1])
        else:
            none = getattr(ours, name) is None
            note = "the official script prints 0 without scene graphs" if none else ""
            yield Figure("gqa/sub", name, value, getattr(ours, name), note)
    cases = read("gqa/gqa_norm_cases.json")["cases"]
    hits = sum(gqa_match(case["pred"], case["gt"]) == case["match"] for case in cases)
    yield Figure("gqa under LAVIS's rule", "pairs that agree", len(cases), hits)


def caption(expected: Mapping[str, Any], *, java: bool = True) -> Iterator[Figure]:
    """The demonstration of coco-caption, and captions against the official tokenizer."""
    part = "caption/fakecap"
    official = expected[part]
    references: dict[str, list[str]] = {}
    for row in read("caption/fakecap_refs_coco.json")["annotations"]:
        references.setdefault(str(row["image_id"]), []).append(row["caption"])
    predictions = captions_by_id(read("caption/captions_val2014_fakecap_results.json"))
    ours = caption_scores(predictions, references, java=None if java else False)
    why = {name: text.split(" in /")[0] for name, text in ours.skipped.items()}  # no local paths
    for name, value in official["scores"].items():
        yield Figure(part, name, value, ours.overall.get(name), why.get(name, ""))
    published = official["published"]
    for name in (name for name in published if name not in ("source", "bleu_stats")):
        found, value = ours.overall.get(name), published[name]
        label = f"{name}, published"
        yield Figure(part, label, value, found, why.get(name, ""), PUBLISHED_DIGITS)
    counts = _bleu_counts(predictions, references)
    for name, value in published["bleu_stats"].items():
        if isinstance(value, list):
            for n, (number, mine) in enumerate(zip(value, counts[name], strict=True), start=1):
                yield Figure(part, f"BLEU's {name}, n = {n}", number, mine)
        else:
            yield Figure(part, f"BLEU's {name}", value, counts[name])
    each = read("caption/fakecap_per_image.json")["per_image"]
    for name in (name for name in each if name in ours.per_image):
        hits = sum(abs(ours.per_image[name][i] - s) < 1e-8 for i, s in each[name].items())
        yield Figure(part, f"{name}, single images that agree", len(each[name]), hits)
    cases = read("caption/ptb_tokenizer_truth.json")["cases"]
    hits = sum(tokenize([case["caption"]])[0] == case["tokens"] for case in cases)
    yield Figure("PTB tokens", "captions that agree", len(cases), hits)


def _bleu_counts(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """What BLEU sums up over the images, counted anew."""
    counts: dict[str, Any] = {"reflen": 0, "testlen": 0, "guess": [0] * 4, "correct": [0] * 4}
    for image, texts in references.items():
        words = tokenize([predictions[image]])[0].split()
        others = [tokens.split() for tokens in tokenize(texts)]
        counts["testlen"] += len(words)
        counts["reflen"] += min(map(len, others), key=lambda n: (abs(n - len(words)), n))
        for n in range(1, 5):
            mine = _ngrams(words, n)
            theirs = [_ngrams(tokens, n) for tokens in others]
            counts["guess"][n - 1] += sum(mine.values())
            counts["correct"][n - 1] += sum(
                min(times, max(other.get(gram, 0) for other in theirs))
                for gram, times in mine.items()
            )
    return counts


def _ngrams(words: Sequence[str], n: int) -> dict[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}
    for at in range(len(words) - n + 1):
        gram = tuple(words[at : at + n])
        found[gram] = found.get(gram, 0) + 1
    return found


PARTS = {"caption": caption, "vqa": vqa, "okvqa": okvqa, "gqa": gqa}

# --------------------------------------------------------------------------------------------- page


def table(figures: Sequence[Figure]) -> str:
    """Markdown: a table for each part."""
    lines: list[str] = []
    for part in dict.fromkeys(figure.part for figure in figures):
        lines += [f"\n## {part}\n", "| | official | ours | difference | |", "|---|---|---|---|---|"]
        lines += [
            f"| {' | '.join(cell.replace('|', ' ') for cell in figure.cells())} |"
            for figure in figures
            if figure.part == part
        ]
    return "\n".join(lines)


def page(figures: Sequence[Figure], seconds: float) -> str:
    """The whole file."""
    known = [figure for figure in figures if figure.ours is not None]
    wrong = [figure for figure in known if not figure.right]
    exact = [figure for figure in known if figure.digits != PUBLISHED_DIGITS]
    largest = max((abs((f.ours or 0.0) - f.official) for f in exact), default=math.nan)
    left = len(figures) - len(known)
    return (
        f"# Official scores: {len(known) - len(wrong)} of {len(known)} figures agree\n\n"
        "What the official evaluation scripts gave for the files of `tests/data/eval` (see its\n"
        "README), beside ours. A figure agrees when it does in all digits of the official one:\n"
        "six of VQA's, three of the published ones, nine are compared of the others.\n"
        f"Largest difference to a figure that is not from a publication: {largest:.0e}.\n"
        f"{left} more figures cannot be computed here; the tables say why.\n"
        f"{table(figures)}\n\n"
        f"commit {_commit()}, {time.strftime('%Y-%m-%d')}, {seconds:.0f} seconds; written by\n"
        "`python benchmarks/official_scores.py`.\n"
    )


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                        help=f"of: {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument("--no-java", dest="java", action="store_false", help="no METEOR")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the table goes")
    args = parser.parse_args(argv)
    start = time.monotonic()
    expected = read("expected_scores.json")
    parts = {**PARTS, "caption": partial(caption, java=args.java)}
    figures = [figure for name in args.only for figure in parts[name](expected)]
    text = page(figures, time.monotonic() - start)
    print(text)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    return int(not all(figure.right for figure in figures))


if __name__ == "__main__":
    sys.exit(main())

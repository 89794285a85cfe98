"""The playground in the files of GQA, OK-VQA, NoCaps and Flickr30k: true, balanced, readable."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavislite.common.errors import ConfigError
from lavislite.datasets.playground import PlaygroundCaptionBuilder
from lavislite.datasets.playground.benchmarks import (
    PlaygroundFlickr30kBuilder,
    PlaygroundGQABuilder,
    PlaygroundNoCapsBuilder,
    PlaygroundOKVQABuilder,
)
from lavislite.datasets.playground.documents import facts
from lavislite.datasets.playground.generate import WorldSpec, ensure_world
from lavislite.datasets.playground.novelty import HELD_OUT, novel_scenes
from lavislite.datasets.playground.scenes import COLOURS, SHAPES, Scene, SceneObject, split_of
from lavislite.datasets.playground.structured import structured_questions
from lavislite.datasets.playground.text import PlaygroundTextBuilder, PlaygroundTextConfig
from lavislite.datasets.playground.truth import named_objects

SIZES = {"num_train": 60, "num_val": 8, "num_test": 150, "num_nocaps": 48, "num_flickr30k": 10}
PLAIN = {"name": "blip_image_eval", "image_size": 64, "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAVISLITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield ensure_world(WorldSpec(**SIZES), progress=False)


def made(builder_class: Any, **options: Any) -> Any:
    vis = {"train": PLAIN, "eval": PLAIN}
    builder = builder_class(
        builder_class.Config(**SIZES, vis_processor=vis, **options), name="mine"
    )
    builder.prepare()
    return builder


def read(world: Path, name: str) -> Any:
    return json.loads((world / "annotations" / name).read_text())


# ---- an account of the questions that shares nothing with what wrote them: objects are dicts


def objects(graph: dict[str, Any]) -> list[dict[str, Any]]:
    """The scene's objects with their grid cell, worked out from the pixels of their boxes."""
    side = graph["width"] / 3
    return [
        {
            "id": key,
            "shape": thing["name"],
            "color": thing["attributes"][0],
            "size": thing["attributes"][1],
            "column": int((thing["x"] + thing["w"] / 2) // side),
            "row": int((thing["y"] + thing["h"] / 2) // side),
        }
        for key, thing in graph["objects"].items()
    ]


def one(things: list[dict[str, Any]], phrase: str) -> dict[str, Any]:
    """The only object of which all words of the phrase are true."""
    words = set(phrase.split()) - {"object"}
    found = [t for t in things if words <= {t["shape"], t["color"], t["size"]}]
    assert len(found) == 1, (phrase, things)
    return found[0]


def lies(a: dict[str, Any], relation: str, b: dict[str, Any]) -> bool:
    if relation in ("above", "below"):
        return a["row"] < b["row"] if relation == "above" else a["row"] > b["row"]
    return a["column"] < b["column"] if "left" in relation else a["column"] > b["column"]


RELATION = "above|below|to the left of|to the right of"


def yes(true: bool) -> str:
    return "yes" if true else "no"


def answered(question: str, things: list[dict[str, Any]]) -> str:
    """The answer to a GQA-like question."""

    def fits(pattern: str) -> tuple[str, ...] | None:
        match = re.fullmatch(pattern, question)
        return match.groups() if match else None

    if found := fits(rf"what shape is ({RELATION}) the (\w+)\?"):
        relation, other = found
        there = [t for t in things if lies(t, relation, one(things, other))]
        assert len(there) == 1
        return there[0]["shape"]
    if found := fits(r"what (color|size|shape) is the ([\w ]+)\?"):
        return one(things, found[1])[found[0]]
    if found := fits(r"is the (\w+) above or below the (\w+)\?"):
        a, b = (one(things, name) for name in found)
        assert a["row"] != b["row"]
        return "above" if lies(a, "above", b) else "below"
    if found := fits(r"is the (\w+) to the left or to the right of the (\w+)\?"):
        a, b = (one(things, name) for name in found)
        assert a["column"] != b["column"]
        return "left" if lies(a, "left", b) else "right"
    if found := fits(rf"is the (\w+) ({RELATION}) the (\w+)\?"):
        return yes(lies(one(things, found[0]), found[1], one(things, found[2])))
    if found := fits(r"is the ([\w ]+?) (?:a )?(\w+) or (?:a )?(\w+)\?"):
        thing = one(things, found[0])
        (chosen,) = {found[1], found[2]} & {thing["color"], thing["size"], thing["shape"]}
        return chosen
    if found := fits(r"is the (\w+) (\w+) and (\w+)\?"):
        thing = one(things, found[0])
        return yes({found[1], found[2]} <= {thing["color"], thing["size"]})
    if found := fits(r"is the (\w+) (\w+)\?"):
        thing = one(things, found[0])
        return yes(found[1] in (thing["color"], thing["size"]))
    if found := fits(r"is there a (\w+) (and|or) a (\w+)\?"):
        there = [any(t["shape"] == shape for t in things) for shape in (found[0], found[2])]
        return yes(all(there) if found[1] == "and" else any(there))
    if found := fits(r"is there an? (\w+) (\w+)\?"):
        return yes(any((t["color"], t["shape"]) == found for t in things))
    if found := fits(r"which is (larger|smaller), the (\w+) or the (\w+)\?"):
        a, b = one(things, found[1]), one(things, found[2])
        assert a["size"] != b["size"]
        return next(t["shape"] for t in (a, b) if (t["size"] == "large") == (found[0] == "larger"))
    if found := fits(r"do the (\w+) and the (\w+) have the same (color|size)\?"):
        a, b = one(things, found[0]), one(things, found[1])
        return yes(a[found[2]] == b[found[2]])
    raise AssertionError(f"unknown question: {question}")


def executed(program: list[dict[str, Any]], things: list[dict[str, Any]]) -> Any:
    """What the last step of a GQA program gives."""
    known = {thing["id"]: thing for thing in things}
    results: list[Any] = []
    for step in program:
        operation, argument = step["operation"], step["argument"]
        given = [results[k] for k in step["dependencies"]]
        verb, _, attribute = operation.partition(" ")
        if operation == "select":
            name, ids = re.fullmatch(r"(\w+) \((.+)\)", argument).groups()  # type: ignore[union-attr]
            chosen = [] if ids == "-" else [known[key] for key in ids.split(",")]
            assert all(name in (thing["shape"], "object") for thing in chosen)
            result: Any = chosen
        elif verb == "filter":
            result = [thing for thing in given[0] if thing[attribute] == argument]
            if len(given[0]) == 1 and len(program) == 3 and program[-1]["operation"] != "exist":
                assert [t for t in things if t[attribute] == argument] == result
        elif operation == "exist":
            result = yes(bool(given[0]))
        elif operation == "relate":
            relation, key = re.fullmatch(r"_,(.+),s \((.+)\)", argument).groups()  # type: ignore[union-attr]
            assert lies(known[key], relation, given[0][0])
            result = [known[key]]
        elif operation == "query":
            result = given[0][0]["shape" if argument == "name" else argument]
        elif operation in ("verify rel", "choose rel"):
            _, asked, key = re.fullmatch(r"(\w+),(.+),o \((.+)\)", argument).groups()  # type: ignore[union-attr]
            true = [r for r in asked.split("|") if lies(given[0][0], r, known[key])]
            result = yes(bool(true)) if verb == "verify" else true[0]
        elif verb == "verify":
            result = yes(given[0][0][attribute] == argument)
        elif operation in ("and", "or"):
            result = yes((all if operation == "and" else any)(g == "yes" for g in given))
        elif operation in ("choose larger", "choose smaller"):
            big = attribute == "larger"
            result = next(g[0]["shape"] for g in given if (g[0]["size"] == "large") == big)
        elif verb == "choose":
            values = {given[0][0]["shape" if attribute == "name" else attribute]}
            (result,) = values & set(argument.split("|"))
        else:
            assert verb == "same"
            result = yes(given[0][0][attribute] == given[1][0][attribute])
        results.append(result)
    return results[-1]


# ---- GQA


@cache
def gqa(world: Path, name: str) -> Any:
    return read(world, f"gqa_test_{name}.json")


def test_every_structured_answer_follows_from_the_scene_graph(world: Path) -> None:
    graphs, records = gqa(world, "sceneGraphs"), gqa(world, "all_questions")
    assert len(records) > 800
    for record in records.values():
        things = objects(graphs[record["imageId"]])
        assert answered(record["question"], things) == record["answer"], record
        assert executed(record["semantic"], things) == record["answer"], record


def test_all_sorts_of_questions_are_asked_and_balanced_ones_are_balanced(world: Path) -> None:
    records = gqa(world, "all_questions")
    balanced = {key: r for key, r in records.items() if r["isBalanced"]}
    assert balanced == gqa(world, "balanced_questions")
    types = [record["types"] for record in balanced.values()]
    structural = {"query", "verify", "logical", "choose", "compare"}
    assert {t["structural"] for t in types} == structural
    assert {t["semantic"] for t in types} == {"attr", "cat", "obj", "rel"}
    answers = Counter(record["answer"] for record in balanced.values())
    assert 0.9 < answers["yes"] / answers["no"] < 1.12
    assert answers["yes"] < 0.32 * len(balanced)


def test_what_a_question_entails_was_asked_about_the_same_picture_and_follows(world: Path) -> None:
    records = gqa(world, "all_questions")
    pairs = [(r, records[other]) for r in records.values() for other in r["entailed"]]
    assert len(pairs) > 300
    assert all(one["imageId"] == other["imageId"] for one, other in pairs)
    told = [
        (one, other)
        for one, other in pairs
        if one["types"]["detailed"] in ("color", "size") and other["types"]["structural"] != "query"
    ]
    assert told
    for one_, other in told:  # the answer alone settles the other question
        words = set(re.findall(r"\w+", other["question"]))
        if other["types"]["structural"] == "choose":
            assert other["answer"] == one_["answer"]
        elif other["types"]["detailed"] == "verifyAttr":
            assert other["answer"] == yes(one_["answer"] in words)


def test_a_color_entails_what_depends_on_it_and_nothing_else() -> None:
    star = SceneObject("star", "red", "large", "plain", "top left", 0.2, 0.2, 0.1)
    ring = SceneObject("ring", "blue", "small", "plain", "right", 0.8, 0.5, 0.1)
    asked = structured_questions(Scene(1, "s", (star, ring)), random.Random(0), 200)
    by_text = {question.text: question for question in asked}
    color = by_text["what color is the star?"]
    follows = {q.text for q in asked if color.entails(q) and q is not color}
    assert {"is the star red?", "is the star red or blue?", "is the star green?"} & follows
    assert all("star" in text and "size" not in text and "ring" not in text for text in follows)
    assert not by_text["is the star large?"].entails(color)


def test_pointers_say_which_words_stand_for_which_object(world: Path) -> None:
    graphs, found = gqa(world, "sceneGraphs"), 0
    for record in gqa(world, "all_questions").values():
        for field, text in (("question", record["question"]), ("fullAnswer", record["fullAnswer"])):
            words = re.findall(r"\w+", text.lower())
            for place, key in record["annotations"][field].items():
                start, _, end = place.partition(":")
                named = set(words[int(start) : int(end or int(start) + 1)])
                thing = graphs[record["imageId"]]["objects"][key]
                assert named <= {thing["name"], *thing["attributes"], "object"}, record
                found += 1
    assert found > 500


def test_choices_hold_the_answer(world: Path) -> None:
    records, choices = gqa(world, "all_questions"), gqa(world, "choices")
    assert records.keys() == choices.keys()
    for key, record in records.items():
        assert record["answer"] in choices[key]["plausible"], record
        assert set(choices[key]["plausible"]) <= set(choices[key]["valid"])


def test_the_gqa_builder_reads_balanced_or_all_questions() -> None:
    balanced = made(PlaygroundGQABuilder).build("test", train=False)
    everything = made(PlaygroundGQABuilder, questions="all").build("test", train=False)
    assert balanced.evaluation == "gqa"
    assert 150 < len(balanced) < len(everything)
    row = balanced.annotation(3)
    assert {"types", "groups", "entailed", "equivalent", "semantic"} <= row["details"].keys()
    assert Path(row["image"]).is_file()
    assert any(word in balanced.true_caption(3) for word in SHAPES)
    sample = made(PlaygroundGQABuilder).build("train", train=True)[0]
    assert sample["text_output"] in sample["answers"]
    with pytest.raises(ConfigError, match="questions: 'al'.*Did you mean 'all'"):
        made(PlaygroundGQABuilder, questions="al")


# ---- OK-VQA

KNOWN = {
    "fruit": "apple apricot banana lime blueberry plum blackberry coconut",
    "animal": "crab fox canary frog whale - crow swan",
    "thing": "ball box tent kite starfish windmill valentine donut",
    "corners": "0 4 3 4 5 12 - 0",
}


def test_every_fact_question_has_the_answer_that_scene_and_fact_give(world: Path) -> None:
    asked, told = read(world, "okvqa_questions_test.json"), read(world, "okvqa_answers_test.json")
    graphs = read(world, "scenes_test.json")
    facts_ = {kind: words.split() for kind, words in KNOWN.items()}
    answers = {a["question_id"]: a["answers"] for a in told["annotations"]}
    right = 0
    kinds = Counter()
    for row in asked["questions"]:
        things = objects(graphs[str(row["image_id"])])
        text = row["question"]
        if found := re.fullmatch(r"which (fruit|animal) has the color of the ([\w ]+)\?", text):
            expected = facts_[found[1]][COLOURS.index(one(things, found[2])["color"])]
        elif found := re.fullmatch(r"what (thing) has the shape of the ([\w ]+)\?", text):
            expected = facts_["thing"][SHAPES.index(one(things, found[2])["shape"])]
        else:
            found = re.fullmatch(r"how many (corners) does the ([\w ]+) have\?", text)
            assert found, text
            expected = facts_["corners"][SHAPES.index(one(things, found[2])["shape"])]
        given = [answer["answer"] for answer in answers[row["question_id"]]]
        assert len(given) == 10
        assert given[::2] == given[1::2]  # five annotators, each twice
        right += given.count(expected)
        kinds[found[1]] += 1
    assert set(kinds) == set(KNOWN)
    assert 0.8 < right / (10 * len(answers)) < 0.9


def test_the_ok_vqa_builder_reads_the_questions_with_their_categories() -> None:
    data = made(PlaygroundOKVQABuilder).build("test", train=False)
    assert data.evaluation == "ok_vqa"
    assert {data.annotation(k)["question_type"] for k in range(80)} == {
        "five", "eight", "three", "nine",
    }  # fmt: skip
    assert any(word in data.true_caption(0) for word in SHAPES)


def test_facts_are_told_where_they_are_asked_about() -> None:
    found = facts("a", 8)
    assert len(found.questions) >= 4
    for question in found.questions:
        assert question.kind == "fact"
        assert re.search(rf"\b{question.answer}\b", found.context), question
        assert re.search(rf"\b{question.answer}\b", found.caption), question
    builder = PlaygroundTextBuilder(PlaygroundTextConfig(num_train=32, num_val=4), name="text")
    train, val = (builder.build(split, train=False) for split in ("train", "val"))
    assert len(train) == 34
    assert {"fact"} == {kind for k in (32, 33) for kind in train[k]["kinds"]}
    assert "fact" not in {kind for k in range(len(val)) for kind in val[k]["kinds"]}


# ---- NoCaps


def pairs(caption: str) -> set[tuple[str, str]]:
    return {(named.colour, named.shape) for named in named_objects(caption)}


def test_captions_without_held_out_pairs_never_show_one(world: Path) -> None:
    assert len(HELD_OUT) == 16
    rows = read(world, "familiar_train.json")
    assert not {pair for row in rows for pair in pairs(row["caption"])} & HELD_OUT
    everything = {row["image"]: set() for row in read(world, "karpathy_train.json")}
    for row in read(world, "karpathy_train.json"):
        everything[row["image"]] |= pairs(row["caption"])
    left_out = everything.keys() - {row["image"] for row in rows}
    assert left_out
    assert all(everything[image] & HELD_OUT for image in left_out)
    for words in (0, 1):  # nothing is new but the pairs
        familiar = {(c, s) for c in COLOURS for s in SHAPES} - HELD_OUT
        assert len({pair[words] for pair in familiar}) == 8


def test_domains_differ_in_their_held_out_pairs_only() -> None:
    data = made(PlaygroundNoCapsBuilder).build("test", train=False)
    pictures = data.pictures()
    sizes: dict[str, Counter[int]] = {}
    for index, image_id in enumerate(pictures.image_ids):
        texts = pictures.references(index)
        assert len(set(texts)) == 10
        found = [pairs(text) for text in texts]
        shown = set.union(*found)
        new = shown & HELD_OUT
        domain = data.domains[image_id]
        expected = {"in-domain": not new, "out-domain": new == shown}
        expected["near-domain"] = bool(new) and new != shown
        assert expected[domain], (domain, texts)
        count = max(len(named_objects(text)) for text in texts)
        sizes.setdefault(domain, Counter())[count] += 1
    assert sizes["in-domain"] == sizes["near-domain"] == sizes["out-domain"] == {2: 12, 3: 4}
    captions = {
        image_id: pictures.references(k)[0] for k, image_id in enumerate(pictures.image_ids)
    }
    assert data.score_captions(captions)["objects_true"] == 100


def test_novel_scenes_are_not_trained_on() -> None:
    scenes = novel_scenes(30, seed=0)
    assert len({scene.signature for scene in scenes}) == 30
    assert {split_of(scene.signature) for scene in scenes} == {"test"}


def test_caption_training_can_leave_the_held_out_pairs_out(world: Path) -> None:
    kept = made(PlaygroundCaptionBuilder).build("train", train=True)
    dropped = made(PlaygroundCaptionBuilder, held_out="drop").build("train", train=True)
    assert len(kept) == 300
    assert 100 < len(dropped) < 250
    with pytest.raises(ConfigError, match="held_out: 'dorp'.*Did you mean 'drop'"):
        made(PlaygroundCaptionBuilder, held_out="dorp")


# ---- Flickr30k


def test_the_flickr_files_tell_the_same(world: Path) -> None:
    images = read(world, "dataset_flickr30k.json")["images"]
    assert Counter(image["split"] for image in images) == {"train": 10, "val": 2, "test": 10}
    told = [
        f"{i['filename']}#{k}\t{s['raw']}" for i in images for k, s in enumerate(i["sentences"])
    ]
    lines = (world / "annotations" / "results_20130124.token").read_text().splitlines()
    assert told == lines
    sentences = [sentence for image in images for sentence in image["sentences"]]
    assert [s["sentid"] for s in sentences] == list(range(110))
    assert all(s["imgid"] == k // 5 for k, s in enumerate(sentences))


def test_the_flickr_gallery_looks_different_and_is_read() -> None:
    builder = made(PlaygroundFlickr30kBuilder)
    gallery = builder.build("test", train=False)
    assert len(gallery) == 10
    assert [len(texts) for texts in gallery.image_to_texts] == [5] * 10
    assert len(builder.build("train", train=True)) == 50

    def noise(path: Path) -> float:
        grey = np.asarray(Image.open(path).convert("L")).astype(float)
        return float(np.median(np.abs(np.diff(grey, axis=1))))

    usual = sorted((builder.world.folder / "images" / "test").iterdir())[:10]
    assert np.mean([noise(p) for p in gallery.image_paths]) > 1.4 * np.mean(
        [noise(p) for p in usual]
    )

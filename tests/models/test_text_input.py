"""A Q-Former that reads the question: what it sees, where its weights come from, what it learns."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lavislite import load_model
from lavislite.build import _save_vocabulary, build_model
from lavislite.common.config import resolve
from lavislite.common.errors import CheckpointError, ConfigError, UserError
from lavislite.convert import convert, open_source
from lavislite.models.base import BaseModel, distinct_tensors
from lavislite.models.blip2.hf_export import export_hf
from lavislite.models.blip2.stage2 import Blip2LLM
from lavislite.models.blip2.text import build_tokenizer
from lavislite.models.blip2.weights import load_state, sources, to_lavis
from lavislite.models.language.base import LanguageConfig, build_language

from .exporting import tiny_vision
from .language.tiny import save_tiny
from .reference import FOLDER, reference_batch, reference_model, tensors, tiny_eva
from .reference_stage2 import DATA, KINDS, language_config, stage2_config, stage2_tensors

STAGE1 = str(FOLDER / "eva_state.safetensors")
STAGE2 = str(DATA / "lavis_opt" / "state.safetensors")
WORDS = "Qformer.bert.embeddings.word_embeddings.weight"
IMAGE = stage2_tensors("opt", "generate_tensors")["image"]
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
QUESTIONS = ["is it red", "what is the old man eating", "is it red", "how many dogs"]


def reading(kind: str, folder: Path, *, frozen: bool = True, **changes: Any) -> Blip2LLM:
    """A model whose Q-Former reads, with random weights."""
    cfg = stage2_config(kind, folder, qformer_text_input=True, tokenizer=str(FOLDER), **changes)
    return KINDS[kind][0](
        cfg,
        vision=tiny_eva(frozen=frozen),
        language=build_language(cfg.language),
        tokenizer=build_tokenizer(str(FOLDER)),
    ).eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Blip2LLM:
    torch.manual_seed(0)
    model = reading("opt", tmp_path_factory.mktemp("opt"))
    model.load_pretrained([STAGE1, STAGE2])
    return model


@pytest.fixture
def read(model: Blip2LLM, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts that the Q-Former was given, call by call."""
    seen: list[list[str]] = []
    pack = model.pack

    def watched(texts: list[str]) -> Any:
        seen.append(list(texts))
        return pack(texts)

    monkeypatch.setattr(model, "pack", watched)
    monkeypatch.setattr(model.reader, "pack", watched)
    return seen


# ---- what it sees


def test_queries_with_a_text_are_those_of_the_original(tmp_path: Path) -> None:
    """Matching in stage 1 reads pairs in the same way, and the original left its numbers."""
    model = reading("opt", tmp_path, max_question_len=16)
    model.load_pretrained(STAGE1)
    batch = reference_batch("eva_frozen")
    with torch.no_grad():
        prefix, mask = model.image_prefix(batch["image"], batch["text_input"])
        expected = model.llm_proj(tensors("eva_frozen_tensors")["itm_output_last_hidden"][:4, :8])
    torch.testing.assert_close(prefix, expected, **CLOSE)
    assert mask.all()


@torch.no_grad()
def test_each_picture_is_read_with_the_question_of_its_sample(model: Blip2LLM) -> None:
    whole, _ = model.image_prefix(IMAGE, QUESTIONS)
    for i, question in enumerate(QUESTIONS):
        alone, _ = model.image_prefix(IMAGE[i : i + 1], question)
        torch.testing.assert_close(whole[i : i + 1], alone, **CLOSE)
    other, _ = model.image_prefix(IMAGE, "how many dogs")
    assert not torch.allclose(whole[0], other[0], atol=1e-3)
    torch.testing.assert_close(whole[3], other[3], **CLOSE)
    several, mask = model.image_prefix([IMAGE[:1], IMAGE[1:4]], QUESTIONS[:2])
    assert mask.sum(1).tolist() == [8, 24]
    apart, _ = model.image_prefix(IMAGE[1:4], QUESTIONS[1])
    torch.testing.assert_close(several[1], apart.flatten(0, 1), **CLOSE)
    with pytest.raises(UserError, match="question: got 2 for 4 samples"):
        model.image_prefix(IMAGE, QUESTIONS[:2])


@torch.no_grad()
def test_a_picture_for_many_questions_is_looked_at_once(
    model: Blip2LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    encode = model.tower_features
    monkeypatch.setattr(model, "tower_features", lambda x: seen.append(len(x)) or encode(x))
    shared, _ = model.image_prefix(IMAGE[:1].expand(4, -1, -1, -1), QUESTIONS)
    apart, _ = model.image_prefix(IMAGE[:1].repeat(4, 1, 1, 1), QUESTIONS)
    torch.testing.assert_close(shared, apart, **CLOSE)
    assert seen == [1, 4]


def test_which_text_the_qformer_reads(model: Blip2LLM, read: list[list[str]]) -> None:
    asked = [f"Question: {q} Answer:" for q in QUESTIONS]
    once = list(dict.fromkeys(QUESTIONS))
    answers = {"image": IMAGE, "text_input": asked, "text_output": ["yes"] * 4}
    short = {"num_beams": 1, "max_len": 1}
    model(answers)
    model({**answers, "question": QUESTIONS})
    model.predict_answers({**answers, "question": QUESTIONS}, prompt="{}", **short)
    model.predict_answers(
        {"image": IMAGE, "text_input": QUESTIONS}, prompt="Question: {} Answer:", **short
    )
    assert read == [list(dict.fromkeys(asked)), once, once, once]
    read.clear()
    model({"image": IMAGE, "text_input": ["a photo of a cat"] * 4, "prompt": "a photo of"})
    model.generate({"image": IMAGE}, num_beams=1, max_new_tokens=1)
    model.generate({"image": IMAGE, "prompt": "a photo of"}, num_beams=1, max_new_tokens=1)
    messages = [{"role": "user", "content": "is it red"}]
    model.chat({"image": IMAGE}, messages, num_beams=1, max_new_tokens=1)
    assert read == [["a photo of"], [""], ["a photo of"], ["is it red"]]


def test_an_encoder_decoder_does_not_ask_with_the_caption(tmp_path: Path) -> None:
    """Its first words are read by the encoder in training, and nobody has them afterwards."""
    model = reading("t5", tmp_path)
    read = model.reader.texts({"text_input": ["a red cat sits"]}, 1, at_random=False)
    assert read.questions == [""]


def test_long_questions_are_cut(tmp_path: Path) -> None:
    model = reading("opt", tmp_path, max_question_len=4)
    assert model.pack(["what is the old man eating"]).ids.shape == (1, 4)
    with pytest.raises(ConfigError, match=r"model.max_question_len: expected 3 to 64, saw 65"):
        reading("opt", tmp_path, max_question_len=65)


# ---- where the weights come from


def test_sources_in_turn(model: Blip2LLM, tmp_path: Path) -> None:
    own = model.state_dict()
    assert torch.equal(own[WORDS], tensors("eva_state")[WORDS])
    assert torch.equal(own["query_tokens"], stage2_tensors("opt", "state")["query_tokens"])
    assert "Qformer.bert.encoder.layer.2.intermediate.dense.weight" in own
    unused = ("Qformer.bert.encoder.layer.3.intermediate.", "Qformer.cls.")
    assert not [name for name in own if name.startswith(unused)]
    other = reading("opt", tmp_path)
    other.load_pretrained([STAGE2, STAGE1])
    assert torch.equal(other.query_tokens, tensors("eva_state")["query_tokens"])
    assert torch.equal(other.llm_proj.weight, model.llm_proj.weight)


def test_a_stage_two_checkpoint_alone_cannot_read(tmp_path: Path) -> None:
    message = r"state.safetensors has no text branch.*add the stage-1 checkpoint first in model.pre"
    with pytest.raises(CheckpointError, match=message):
        reading("opt", tmp_path).load_pretrained(STAGE2)
    cfg = stage2_config("opt", tmp_path, qformer_text_input=True, pretrained=STAGE2)
    with pytest.raises(CheckpointError, match=message):
        KINDS["opt"][0].look(cfg)  # before anything is built
    cfg.pretrained = [STAGE1, STAGE2]
    KINDS["opt"][0].look(cfg)


def test_what_all_sources_lack_is_named_with_all(tmp_path: Path) -> None:
    parts = []
    for name in ("eva_state", "state"):
        state = dict(tensors(name) if name == "eva_state" else stage2_tensors("opt", name))
        del state["ln_vision.bias"]
        parts.append(str(tmp_path / f"{name}.safetensors"))
        save_file(state, parts[-1])
    with pytest.raises(CheckpointError, match=r"eva_state.* and .*/state.* lacks 'ln_vision.bias'"):
        reading("opt", tmp_path).load_pretrained(parts)
    reading("opt", tmp_path).load_pretrained([parts[0], STAGE2])


def test_a_plain_model_says_how_to_load_one_that_reads(model: Blip2LLM, tmp_path: Path) -> None:
    cfg = stage2_config("opt", tmp_path)
    plain = KINDS["opt"][0](cfg, vision=tiny_eva(), language=build_language(cfg.language))
    with pytest.raises(CheckpointError, match="Set model.qformer_text_input=true"):
        load_state(plain, model.state_dict(), "here")


@pytest.mark.parametrize("wrong", [3, [], [None], ["a", 3], ""])
def test_what_cannot_be_a_source(wrong: Any) -> None:
    if wrong in ([], [None]):
        assert sources(wrong) == []
        return
    with pytest.raises(ConfigError, match=r"model.pretrained: expected a run folder, file or URL"):
        sources(wrong)


def test_lists_in_project_files(tmp_path: Path) -> None:
    from lavislite.common.trained import remember_run

    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("")
    remember_run("projects/one.yaml", run)
    for key in ("pretrained", "finetuned"):
        model = {"arch": "blip2_opt", key: ["last_run:projects/one.yaml", "b.pth"]}
        cfg = resolve({"model": model}, origin="here")
        assert cfg.model.pretrained == [str(run), "b.pth"]
        again = resolve(cfg.to_dict(), origin="there")
        assert again.model.pretrained == cfg.model.pretrained


# ---- runs, and other formats


def project(folder: Path, **changes: Any) -> Any:
    """A configuration of which everything trains, so that its checkpoints need nothing else."""
    language = language_config("opt", folder, freeze=False)
    vision = replace(tiny_vision(), freeze=False)
    cfg = stage2_config("opt", folder, language=language, vision=vision, qformer_text_input=True)
    return resolve({"model": {**asdict(cfg), **changes}}, origin="here")


def save_run(model: BaseModel, run: Path, cfg: Any) -> Path:
    """A run folder with one checkpoint, as the runner and `build` leave it."""
    folder = run / "checkpoints" / "step_1"
    folder.mkdir(parents=True)
    state = {k: v.detach().clone() for k, v in model.trainable_state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "meta.json").write_text(json.dumps({"identity": model.identity()}))
    (run / "checkpoints" / "last").symlink_to("step_1")
    (run / "config.yaml").write_text(cfg.to_yaml())
    (run / "run.json").write_text("{}")
    _save_vocabulary(model, run)
    return run


def test_a_run_keeps_the_vocabulary_and_the_text_branch(tmp_path: Path) -> None:
    """Questions are read with the ids of stage 1, whatever words a later data set has."""
    first = reference_model()
    stage1 = save_run(first, tmp_path / "stage1", resolve({"model": {"arch": "blip2"}}, origin=""))
    cfg = project(tmp_path, pretrained=[str(stage1), STAGE2])
    built = build_model(cfg, captions=["other words"])
    assert built.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    assert torch.equal(built.state_dict()[WORDS], first.state_dict()[WORDS])
    with torch.no_grad():
        built.state_dict()[WORDS].mul_(0.5)
    run = save_run(built, tmp_path / "run", cfg)
    assert WORDS in load_file(run / "checkpoints/step_1/model.safetensors")
    again = load_model("blip2_opt", checkpoint=run)
    assert torch.equal(again.state_dict()[WORDS], built.state_dict()[WORDS])
    # going on in the run's folder
    cfg.model.pretrained, cfg.model.tokenizer = None, "from_data"
    resumed = build_model(cfg, captions=["other words"], vocabulary=run)
    resumed.check_identity(built.identity())
    resumed.load_trainable(built.trainable_state_dict())
    with pytest.raises(CheckpointError, match="trained with tokenizer 'wordpiece-"):
        build_model(cfg, captions=["other words"]).check_identity(built.identity())


def test_formats(model: Blip2LLM, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its Q-Former reads questions.*no place"):
        export_hf(model, tmp_path / "hf")
    cfg = project(tmp_path, pretrained=[STAGE1, STAGE2], tokenizer=str(FOLDER))
    built = build_model(cfg).eval()
    run = save_run(built, tmp_path / "run", cfg)
    for to, name in (("lavis", "model.pth"), ("lavislite", "folder")):
        written = convert(run, tmp_path / name, to, say=lambda _: None)
        again = open_source(written).model
        assert again.tokenizer.get_vocab() == built.tokenizer.get_vocab()
        for key, tensor in distinct_tensors(built).items():
            assert torch.equal(distinct_tensors(again)[key], tensor), key
    theirs = to_lavis(built.state_dict(), "opt", 64)
    lavis1, lavis2 = tensors("eva_state"), stage2_tensors("opt", "state")
    text = {n for n in theirs if n not in lavis2}
    assert text
    assert all(lavis1[n].shape == theirs[n].shape for n in text)  # the original's names


def test_weights_with_an_ffn_that_nothing_uses(model: Blip2LLM, tmp_path: Path) -> None:
    """InstructBLIP's files have one for the text in the last layer, too."""
    state = dict(model.state_dict())
    layer = "Qformer.bert.encoder.layer.3.intermediate.dense.weight"
    load_state(reading("opt", tmp_path), {**state, layer: tensors("eva_state")[layer]}, "here")


# ---- choosing from a list


def test_lists_of_answers_for_each_question(
    model: Blip2LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = [["red", "two dogs", "no"], ["an old man"], ["no", "pizza on the beach"], ["a", "red"]]
    samples = {"image": IMAGE, "text_input": QUESTIONS}
    looks: list[Any] = []
    look = model._look
    monkeypatch.setattr(model, "_look", lambda *args: looks.append(args) or look(*args))

    def rank(at_once: int, rows: slice = slice(None)) -> list[str]:
        part = {key: value[rows] for key, value in samples.items()}
        return model.predict_answers(
            part, inference_method="rank", answer_list=lists[rows], num_ans_candidates=at_once
        )

    chosen = rank(128)
    assert len(looks) == 1
    assert all(answer in choices for answer, choices in zip(chosen, lists, strict=True))
    for at_once in (1, 3):
        assert rank(at_once) == chosen
    assert [rank(2, slice(i, i + 1))[0] for i in range(4)] == chosen
    prefix, _ = model.image_prefix(IMAGE, QUESTIONS)
    for i, choices in enumerate(lists):
        rows = prefix[i : i + 1].expand(len(choices), -1, -1).detach()
        with torch.no_grad():
            nll = model.language.nll(rows, [QUESTIONS[i]] * len(choices), choices).total
        assert chosen[i] == choices[int(nll.argmin())]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([["a"]] * 3, "got 3 lists of answers for 4 questions"),
        ([["a"], [], ["a"], ["a"]], "for question 1, got none"),
        ([["a"], "b", ["a"], ["a"]], "for question 1, got 'b'"),
        ([["a"], ["b", 3], ["a"], ["a"]], r"for question 1, got \['b', 3\]"),
        (None, "needs a list of answers .answer_list., got none"),
    ],
)
def test_lists_that_cannot_be(model: Blip2LLM, answers: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.predict_answers(
            {"image": IMAGE, "text_input": QUESTIONS}, inference_method="rank", answer_list=answers
        )


# ---- learning


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_answer_and_its_end_are_learnt(kind: str, tmp_path: Path) -> None:
    model = reading(kind, tmp_path, max_txt_len=64)
    model.load_pretrained([STAGE1, str(DATA / f"lavis_{kind}" / "state.safetensors")])
    asked = [f"Question: {q} Answer:" for q in QUESTIONS]
    answers = ["yes", "a red cat", "no", "two"]
    samples = {"image": IMAGE, "text_input": asked, "question": QUESTIONS, "text_output": answers}
    with torch.no_grad():
        loss = model(samples)["loss"]
        prefix, _ = model.image_prefix(IMAGE, QUESTIONS)
        nll = model.language.nll(prefix, asked, answers)
    torch.testing.assert_close(loss, nll.total.sum() / nll.count.sum())
    codec = model.language.codec
    lengths = [
        len(codec.plain(codec.split(q, a)[1] if kind == "opt" else a)) + 1
        for q, a in zip(asked, answers, strict=True)
    ]
    assert nll.count.tolist() == lengths


def pairs() -> tuple[Tensor, list[str], list[str]]:
    """Two pictures, four questions about each, and answers that need both."""
    image = IMAGE[:2].repeat_interleave(4, 0)
    questions = ["what is it", "is it red", "how many", "where is it"] * 2
    return image, questions, ["cat", "yes", "two", "left", "dog", "no", "one", "right"]


def knowing(kind: str, folder: Path, questions: list[str], answers: list[str]) -> Any:
    """A frozen language model that gives the answer which its prefix spells."""
    cfg = LanguageConfig(name=str(save_tiny(folder, kind)), freeze=False)
    language: Any = build_language(cfg)
    optimizer = torch.optim.AdamW(language.parameters(), 5e-3)
    for _ in range(80):
        rows = [language.embed(torch.tensor(language.codec.plain(a))).mean(0) for a in answers]
        told = torch.stack(rows)[:, None].expand(-1, 8, -1)
        optimizer.zero_grad()
        language.nll(told, questions, answers).total.mean().backward()
        optimizer.step()
    return language.requires_grad_(False)


@pytest.mark.parametrize("kind", KINDS)
def test_eight_questions_are_learnt_by_heart(kind: str, tmp_path: Path) -> None:
    """The language model frozen, the Q-Former and the image encoder trained."""
    torch.manual_seed(0)
    image, questions, answers = pairs()
    model = KINDS[kind][0](
        stage2_config(kind, tmp_path, qformer_text_input=True),
        vision=tiny_eva(frozen=False),
        language=knowing(kind, tmp_path, questions, answers),
        tokenizer=build_tokenizer(str(FOLDER)),
    )
    model.load_pretrained(STAGE1)
    samples = {"image": image, "text_input": questions, "text_output": answers}
    groups = model.get_optimizer_params(0.05, lr_layer_decay=0.9)
    assert len({group["lr_scale"] for group in groups}) == 5  # patches, three blocks, the rest
    for group in groups:
        group["lr"] = 3e-3 * group["lr_scale"]
    optimizer = torch.optim.AdamW(groups)
    model.train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(40):
        optimizer.zero_grad()
        model(samples)["loss"].backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    assert model.predict_answers(samples, num_beams=1, max_len=6) == answers
    chosen = model.predict_answers(samples, inference_method="rank", answer_list=sorted(answers))
    assert chosen == answers
    still = {n.partition(".")[0] for n, p in model.named_parameters() if torch.equal(p, before[n])}
    assert still == {"language"}


def test_a_batch_of_questions_with_many_answers_has_one_answer_each(
    model: Blip2LLM, tmp_path: Path
) -> None:
    from PIL import Image

    from lavislite import load_dataset

    Image.new("RGB", (56, 56), "red").save(tmp_path / "a.png")
    several = [{"answer": a} for a in ("yes", "yes", "no", "maybe")]
    records = [
        {"image": "a.png", "question": q, "question_id": i, "answer": several[: i + 1]}
        for i, q in enumerate(QUESTIONS)
    ]
    (tmp_path / "train.json").write_text(json.dumps(records))
    image = {"name": "blip_image_eval", "image_size": 56}
    options = {
        "annotations": {"train": str(tmp_path / "train.json")},
        "images": str(tmp_path),
        "vis_processor": {"train": image, "eval": image},
    }
    (tmp_path / "data.yaml").write_text(json.dumps(options))
    dataset = load_dataset("image_vqa", cfg_path=tmp_path / "data.yaml")["train"]
    samples = dataset.collate([dataset[i] for i in range(4)])
    assert len(samples["text_output"]) == len(samples["text_input"]) == 4
    assert set(samples["text_output"]) <= {"yes", "no", "maybe"}
    assert model(samples)["loss"].isfinite()

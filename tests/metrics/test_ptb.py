"""The tokens are those of Stanford's tokenizer, without Java."""

# ruff: noqa: RUF001  (typographic quotes are what is tested)
from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest

from lavislite.metrics.java import find_java
from lavislite.metrics.ptb import DROPPED, tokenize

from .official_files import official


def truth() -> list[dict[str, str]]:
    return official("caption/ptb_tokenizer_truth.json")["cases"]


def test_agrees_with_every_recorded_caption() -> None:
    wrong = [(c, found) for c in truth() if (found := tokenize([c["caption"]])[0]) != c["tokens"]]
    assert len(truth()) == 900
    assert not wrong


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\u2028", "\u2029"])
def test_a_line_break_never_moves_a_caption(line_break: str) -> None:
    captions = [f"A dog{line_break}runs", f"{line_break}A cat", f"Birds fly{line_break}"]
    assert tokenize(captions) == ["a dog runs", "a cat", "birds fly"]


@pytest.mark.parametrize("caption", ["", "   ", ".", "...", '"-!"', "😀", "\ud83d"])
def test_a_caption_without_a_word_has_no_tokens_and_keeps_its_place(caption: str) -> None:
    assert tokenize(["a dog", caption, "a cat"]) == ["a dog", "", "a cat"]


def test_no_captions() -> None:
    assert tokenize([]) == []


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("The cat's on the dog.,", "the cat 's on the dog."),
        ("£5 or 5¢ (½ off)", "# 5 or 5 cents -lrb- 1/2 off -rrb-"),
        ("I cannot, they don’t: gonna rock 'n' roll", "i can not they do n't gon na rock 'n' roll"),
        ("St. Louis vs. U.S. on Oct. 5 at 5:30pm", "st. louis vs. u.s. on oct. 5 at 5:30 pm"),
        ("see http://a.com/b?c=d, a@b.com &amp; #tag", "see http://a.com/b?c=d a@b.com & #tag"),
    ],
)
def test_odd_captions(caption: str, tokens: str) -> None:
    assert tokenize([caption]) == [tokens]


def test_a_final_letter_depends_on_the_next_caption_as_in_the_original() -> None:
    assert tokenize(["plan b.", "A man", "plan b.", "two men"])[::2] == ["plan b", "plan b."]


@pytest.mark.parametrize("part", ["a.", "-", "<a ", "a@", "1-", "a'", "&amp;", "<a" + " " * 99])
def test_long_nonsense_takes_little_time(part: str) -> None:
    start = time.process_time()
    tokenize([part * (3000 // len(part)) + "!"])
    assert time.process_time() - start < 5


NOISE = (
    "dog's dogs' don't isn‘t it’s y'all 'em 'til '90s o'clock rock'n'roll more'n cannot gonna. "
    "'tis Mr. no. 5 etc.) U.S. a.m. 10A.M. e.g., Ph.D. Jan.-Feb. Mass. mass. AT&T R&B b&w S&P-500 "
    "C++ 1/2 1½ 5:30pm 5'10\" 1,000.5 (555) 123-4567 11/22/2003 $5.00 US$5 €5 5% #1 #tag @user -5 "
    "+5 www.a.com b.org http://x.com/a(b). a@b.com photo.jpg <b> </a> <3 :) ;-( ^_^ &amp; &quot; "
    "x² “hi” ‘a’ «a» a—b a–b -- --- ----- . . . .... ?! !! * ** _ a_b t-shirt mid-'90s and/or w/o "
    "café 東京 10°C ½ ™ 🐶 naïve\u00adly a\u00a0b"
)
ATOMS = NOISE.split(" ")
PIECES = [*".,;:!?'\"-()&/", "...", "--", "'s", "n't", "’s", "“", " ", " "]


def mangled(rng: random.Random, words: list[str]) -> str:
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(words))
        words[at] = rng.choice(
            (
                words[at] + rng.choice(PIECES),
                rng.choice(PIECES) + words[at],
                words[at] + " " + rng.choice(ATOMS),
                words[at].upper(),
                words[at].capitalize(),
                words[at] + rng.choice(PIECES) + rng.choice(words),
            )
        )
    return " ".join(words)


def stanford(captions: list[str], folder: Path) -> list[str]:
    import pycocoevalcap

    jar = Path(next(iter(pycocoevalcap.__path__))) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    source = folder / "captions.txt"
    source.write_text("\n".join(captions), encoding="utf-8")
    command = [find_java(), "-Dfile.encoding=UTF-8", "-cp", str(jar)]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    done = subprocess.run([*command, str(source)], capture_output=True, check=True)
    lines = done.stdout.decode("utf-8").split("\n")[: len(captions)]
    return [" ".join(w for w in line.rstrip().split(" ") if w not in DROPPED) for line in lines]


@pytest.mark.java
def test_agrees_with_the_original_on_mangled_captions(tmp_path: Path) -> None:
    rng = random.Random(0)
    captions = [mangled(rng, rng.choice(truth())["caption"].split() or ["a"]) for _ in range(3000)]
    pairs = zip(captions, stanford(captions, tmp_path), tokenize(captions), strict=True)
    wrong = [(caption, theirs, ours) for caption, theirs, ours in pairs if theirs != ours]
    assert len(wrong) <= 3, wrong[:10]  # one in a thousand of such noise; recorded captions: none

"""METEOR and SPICE: the two caption metrics that exist as Java programs only.

Both programs come with `pycocoevalcap`; nothing is downloaded, and nothing is written beside them.
Whatever goes wrong in one ends as `Unavailable` with the reason, for the caller to pass on.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Timer
from typing import IO

Tokens = Mapping[str, Sequence[str]]

TIMEOUT = 1800.0  # seconds; 1,000 images take METEOR under 20
# The same numbers and the same bytes whatever the system's language is.
_LOCALE = ["-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US"]


class Unavailable(Exception):
    """A metric could not be computed; the message says why."""


def find_java() -> str:
    """Path of the `java` program: below JAVA_HOME, else on the PATH.

    Raises:
        Unavailable: there is none.
    """
    home = os.environ.get("JAVA_HOME")
    found = (home and shutil.which("java", path=str(Path(home) / "bin"))) or shutil.which("java")
    if not found:
        raise Unavailable("no Java found (looked in JAVA_HOME and on the PATH)")
    return found


def meteor(
    hypotheses: Mapping[str, str], references: Tokens, *, timeout: float = TIMEOUT
) -> tuple[float, dict[str, float]]:
    """METEOR 1.5 for English over tokenized captions.

    Args:
        hypotheses: id to tokens joined by spaces.
        references: the same ids to the tokens of one or more references.

    Returns:
        The score of the whole set, from summed statistics (no mean), and each image's own.

    Raises:
        Unavailable: no Java, or the program failed or took longer than `timeout` seconds.
    """
    jar = _folder("meteor") / "meteor-1.5.jar"
    command = [find_java(), "-Xmx2G", *_LOCALE, "-jar", str(jar)]
    command += ["-", "-", "-stdio", "-l", "en", "-norm"]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=jar.parent
        )
        timer = Timer(timeout, process.kill)
        timer.start()
        try:
            return _ask_meteor(process, hypotheses, references)
        except (OSError, ValueError) as error:  # it went away, or wrote something else than numbers
            reason = _last_words(errors) or str(error)
            late = "" if timer.is_alive() else f" after {timeout:.0f} s"
            raise Unavailable(f"METEOR's Java program failed{late}: {reason}") from error
        finally:
            timer.cancel()
            process.kill()
            process.communicate()


def spice(
    hypotheses: Mapping[str, str], references: Tokens, *, timeout: float = TIMEOUT
) -> tuple[float, dict[str, float]]:
    """SPICE 1.0 over tokenized captions: mean F-score of scene-graph tuples, and each image's.

    It needs two files of Stanford CoreNLP 3.6.0 that `pycocoevalcap` lacks, beside its own.

    Raises:
        Unavailable: no Java, the files are missing, or the program failed or took too long.
    """
    folder = _folder("spice")
    java = find_java()
    missing = missing_spice_models()
    if missing:
        raise Unavailable(
            f"SPICE needs {' and '.join(missing)} in {folder / 'lib'}. They are part of "
            "stanford-corenlp-full-2015-12-09.zip (nlp.stanford.edu/software)"
        )
    with tempfile.TemporaryDirectory() as scratch:
        rows = [
            {"image_id": key, "test": hypotheses[key], "refs": list(references[key])}
            for key in hypotheses
        ]
        source, target = Path(scratch) / "in.json", Path(scratch) / "out.json"
        source.write_text(json.dumps(rows), encoding="utf-8")
        command = [java, "-Xmx8G", *_LOCALE, "-jar", str(folder / "spice-1.0.jar"), str(source)]
        command += ["-cache", scratch, "-out", str(target), "-subset", "-silent"]
        _run(command, folder, timeout)
        try:
            scored = json.loads(target.read_text(encoding="utf-8"))
            found = {row["image_id"]: _number(row["scores"]["All"]["f"]) for row in scored}
            values = [found[key] for key in hypotheses]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"SPICE wrote no scores that can be read: {error!r}") from error
    return sum(values) / len(values), dict(zip(hypotheses, values, strict=True))


def missing_spice_models() -> list[str]:
    """Names of the CoreNLP files that SPICE needs and that are not installed."""
    lib = _folder("spice") / "lib"
    names = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
    return [name for name in names if not (lib / name).is_file()]


def _ask_meteor(
    process: subprocess.Popen[bytes], hypotheses: Mapping[str, str], references: Tokens
) -> tuple[float, dict[str, float]]:
    assert process.stdin is not None
    assert process.stdout is not None

    def tell(*parts: str) -> None:
        line = " ||| ".join(parts) + "\n"
        process.stdin.write(line.encode("utf-8", "replace"))  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]

    def answer() -> str:
        line = process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise OSError("it ended without an answer")
        return line.decode("utf-8", "replace").strip()

    statistics = []
    for key, hypothesis in hypotheses.items():
        tell("SCORE", *references[key], hypothesis)
        statistics.append(answer())
    tell("EVAL", *statistics)
    each = {key: float(answer()) for key in hypotheses}
    return float(answer()), each


def _run(command: list[str], folder: Path, timeout: float) -> None:
    # Java 16 and later keep SPICE's serialization out of java.base unless told otherwise.
    opens = " ".join(
        f"--add-opens=java.base/java.{part}=ALL-UNNAMED" for part in ("lang", "util", "math")
    )
    try:
        subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "JDK_JAVA_OPTIONS": opens},
            timeout=timeout,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"SPICE took longer than {timeout:.0f} s") from error
    except subprocess.CalledProcessError as error:
        words = error.stderr.decode("utf-8", "replace").strip()[-500:]
        raise Unavailable(f"SPICE's Java program failed: {words}") from error
    except OSError as error:
        raise Unavailable(f"SPICE's Java program could not start: {error}") from error


def _folder(part: str) -> Path:
    package = find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        raise Unavailable("pycocoevalcap is not installed")
    return Path(next(iter(package.submodule_search_locations))) / part


def _last_words(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read().decode("utf-8", "replace").strip()[-500:]


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan

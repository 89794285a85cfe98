"""Annotations whose own layout no data set reads, written as records."""

from __future__ import annotations

import json
from pathlib import Path

from lavislite.common.errors import DataError
from lavislite.common.io import atomic_write_text, read_json
from lavislite.download.description import Triples


def write_records(entry: Triples, root: Path) -> None:
    """Write the questions of `entry` as the records that ``builder: image_vqa`` reads.

    Raises:
        DataError: they are not [question, answer, number].
    """
    path = root / entry.path
    records = []
    for index, triple in enumerate(read_json(path)):
        if not (isinstance(triple, list) and len(triple) == 3):
            raise DataError(
                f"{path}, row {index}: expected [question, answer, number], saw {str(triple)[:80]}"
            )
        question, answer, number = triple
        image = entry.image.format(number)
        records.append(
            {"question_id": index, "question": question, "answer": answer, "image": image}
        )
    atomic_write_text(root / entry.writes, json.dumps(records, ensure_ascii=False))

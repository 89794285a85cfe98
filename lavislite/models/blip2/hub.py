"""Where bert-base-uncased is found: our cache, the Hugging Face cache, or the hub."""

from __future__ import annotations

import urllib.request
from pathlib import Path

from lavislite.common.errors import UserError
from lavislite.common.io import cache_dir

BERT = "bert-base-uncased"
BERT_REPOS = ("google-bert/bert-base-uncased", BERT)
HUB_TIMEOUT_SECONDS = 3


def find_bert(filename: str) -> Path:
    """A file of bert-base-uncased: in our cache, in the Hugging Face cache, or from the hub.

    Raises:
        UserError: nowhere to be had; the message says where to put it.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    own = cache_dir() / BERT / filename
    if own.exists():
        return own
    for repo in BERT_REPOS:
        found = try_to_load_from_cache(repo, filename)
        if isinstance(found, str):
            return Path(found)
    try:
        _probe_hub()
        return Path(hf_hub_download(BERT_REPOS[0], filename))
    except Exception as error:  # every kind of network trouble has a class of its own
        raise UserError(
            f"{BERT}'s {filename} is not in the Hugging Face cache and the hub cannot be reached "
            f"({error}). Put it into {own.parent}, or name a folder that holds it."
        ) from error


def _probe_hub() -> None:
    """Raise when the hub is out of reach; its own client would retry for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    with urllib.request.urlopen(constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS):
        pass

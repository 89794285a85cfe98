"""Without a network the Hugging Face hub's client tries again for minutes; one look is enough."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from lavislite.common.logging import get_logger

logger = get_logger(__name__)

TIMEOUT_SECONDS = 3


_seen: list[str] = []  # the trouble, once there was some


def hub_trouble() -> str | None:
    """Why the hub cannot be reached, or None.

    At the first trouble the hub's client is set to its offline mode, for the rest of the process:
    what is in the Hugging Face cache is still found, and everything else fails at once.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return _seen[0] if _seen else "HF_HUB_OFFLINE is set"
    host, port = _gate(constants.ENDPOINT)
    try:
        socket.create_connection((host, port), TIMEOUT_SECONDS).close()
    except OSError as error:
        constants.HF_HUB_OFFLINE = True
        trouble = f"no connection to {host}: {error.strerror or error}"
        logger.info("The Hugging Face hub cannot be reached (%s): only its cache is used.", trouble)
        _seen[:] = [trouble]
        return trouble
    return None


def _gate(endpoint: str) -> tuple[str, int]:
    """Host and port that a request to `endpoint` first goes to: a proxy's, or its own."""
    url = urlsplit(endpoint)
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)

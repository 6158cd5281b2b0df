"""Where a judge is and with which key it may be asked; the key shows in no repr, message, pickle or file.

A key from the environment goes only where it belongs: NVIDIA's to NVIDIA's hosts, and none over plain http to another
machine. A key that is given explicitly goes where it was given for.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from contrl.errors import EnvironmentFault, UserError

NVIDIA_URL = "https://integrate.api.nvidia.com/v1"
"""Base address of NVIDIA's hosted models."""
NEMOTRON = "nvidia/llama-3.1-nemotron-70b-reward"
"""NVIDIA's hosted reward model."""
KEY_VARIABLES = ("NVIDIA_API_KEY", "NEMOTRON_API_KEY")
"""Environment variables with the key for NVIDIA's hosts, the first one wins; OPENAI_API_KEY serves all others."""


class Secret:
    """A key that is only seen by asking for ``value``; a copy or pickle of it is empty."""

    __slots__ = ("value",)

    def __init__(self, value: str | None = None) -> None:
        self.value = (value or "").strip() or None
        if self.value is not None and not (self.value.isascii() and self.value.isprintable()):
            raise UserError("the judge's key holds characters that no key has", fix="copy it again, without line ends")

    def __repr__(self) -> str:
        return "Secret(hidden)" if self.value else "Secret(none)"

    def __reduce__(self) -> tuple[type[Secret], tuple[()]]:
        return Secret, ()


def judge_key(environment: Mapping[str, str], url: str = NVIDIA_URL) -> str | None:
    """The key that the environment holds for the judge at ``url``; None when there is none."""
    host = urlsplit(url).hostname or ""
    if host == "nvidia.com" or host.endswith(".nvidia.com"):
        names: tuple[str, ...] = KEY_VARIABLES
    else:
        names = ("OPENAI_API_KEY",) if urlsplit(url).scheme == "https" or is_this_machine(url) else ()
    return next((key for name in names if (key := environment.get(name, "").strip())), None)


def judge_url(url: str | None, key: str | None) -> str:
    """The base address to ask at, without ``/chat/completions``; NVIDIA's when none is given and there is a key.

    Raises:
        EnvironmentFault: neither an address nor a key.
        UserError: the address is none, or holds a password or a query, which would end up in files.
    """
    if url is None:
        if key is None:
            raise EnvironmentFault(
                "there is no judge to ask",
                why=f"{NVIDIA_URL} needs a key and there is none in {' or '.join(KEY_VARIABLES)}",
                fix="set NVIDIA_API_KEY, or name a server of your own: --judge http://127.0.0.1:8000/v1",
            )
        return NVIDIA_URL
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for a port that is no number
    except ValueError:
        raise UserError("the judge's address cannot be read", fix="write it like http://127.0.0.1:8000/v1") from None
    if parts.username is not None or parts.query or parts.fragment:
        raise UserError(
            f"the address of the judge at {parts.hostname} holds a user name, a password or a query",
            why="the address is written into configuration and messages, a key never is",
            fix="leave it out and give the key as NVIDIA_API_KEY, OPENAI_API_KEY or --nemotron_api_key",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{url!r} is no address of a judge", fix="write it like http://127.0.0.1:8000/v1")
    return url.rstrip("/").removesuffix("/chat/completions").rstrip("/")


def is_this_machine(url: str) -> bool:
    """Whether the address stays on this machine: such a server is asked directly, whatever proxy is set."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""One request to an OpenAI-style chat endpoint, and what came of it: a reply, or why there is none.

The client's own retries are off, because every request counts against a budget. Nothing that it raises leaves this
file: its errors carry the request, and the request carries the key.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from contrl.errors import EnvironmentFault
from contrl.rewards.judge_address import Secret, is_this_machine
from contrl.rewards.patience import retry_after
from contrl.rewards.replies import Message

if TYPE_CHECKING:
    import openai

MAX_REPLY_BYTES = 1 << 20
"""A longer reply is no score."""

# What the client tells about this machine; a judge needs none of it.
_UNSAID = ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version")


@dataclass(frozen=True)
class Answer:
    """What one request gave.

    Attributes:
        text: the reply; None when there is none.
        reason: why there is none: timeout, connection, rate_limit, server_error, garbled or refused.
        detail: the same in words, without the key.
        again: whether asking again may help.
        wait: seconds the server asked to wait, if it did.
        fault: set when no further request can succeed either.
    """

    text: str | None = None
    reason: str = ""
    detail: str = ""
    again: bool = True
    wait: float | None = None
    fault: EnvironmentFault | None = None


def require_openai() -> None:
    """Raises EnvironmentFault when the client is not installed."""
    if importlib.util.find_spec("openai") is None:
        raise EnvironmentFault("a judge is asked through the package openai", fix="pip install 'contrl[judge]'")


class Endpoint:
    """A server and a model on it, for the length of a context; ``ask`` may be called from many threads.

    Args:
        url: base address.
        model: the name the server knows it by.
        secret: the key; empty where none is needed.
        seconds: longest time of one request, connecting and reading together.
    """

    def __init__(self, url: str, model: str, secret: Secret, seconds: float) -> None:
        self.url, self.model, self.seconds = url, model, seconds
        self._secret = secret

    def __enter__(self) -> Endpoint:
        require_openai()
        import openai

        headers: dict[str, Any] = {f"X-Stainless-{name}": openai.Omit() for name in _UNSAID}
        if "openai.com" not in self.url:
            headers |= {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
        self._client = openai.OpenAI(
            base_url=self.url,
            # Never None: the client would then take a key from the environment, whoever it was meant for.
            api_key=self._secret.value or "none",
            max_retries=0,
            timeout=self.seconds,
            default_headers=headers,
            http_client=openai.DefaultHttpxClient(
                timeout=self.seconds,
                trust_env=not is_this_machine(self.url),
                follow_redirects=False,  # a key goes to no address that the user has not written
                verify=urlsplit(self.url).scheme != "http",  # without TLS there are no certificates to load
            ),
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def ask(self, messages: Sequence[Message], **options: Any) -> Answer:
        """Send one conversation; ``options`` such as the temperature go into the request as they are."""
        import openai

        deadline = time.monotonic() + self.seconds
        request: dict[str, Any] = {"model": self.model, "messages": list(messages), **options}
        try:
            with self._client.chat.completions.with_streaming_response.create(**request) as response:
                body = self._body(response, deadline)
        except openai.APITimeoutError:
            return self._late()
        except openai.APIStatusError as error:
            return self._status(error)
        except openai.OpenAIError as error:
            return Answer(reason="connection", detail=f"no connection to {self.url}: {self.said(error.__cause__)}")
        return body if isinstance(body, Answer) else self._read(body)

    def _body(self, response: Any, deadline: float) -> bytes | Answer:
        """The reply's bytes. The client bounds each read, but not their sum nor their length: that is done here."""
        body = bytearray()
        try:
            for part in response.iter_bytes():
                body += part
                if time.monotonic() > deadline:
                    return self._late()
                if len(body) > MAX_REPLY_BYTES:
                    return Answer(reason="garbled", detail="the reply does not end")
        except Exception as error:  # its transport's own errors, whose package differs between versions
            if "Timeout" in type(error).__name__:
                return self._late()
            return Answer(reason="connection", detail=f"the connection to {self.url} broke: {self.said(error)}")
        return bytes(body)

    def _read(self, body: bytes) -> Answer:
        try:
            text = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            whole = body.decode("utf-8", "replace")
            return Answer(reason="garbled", detail=f"{self.url} answers no chat completion: {self.said(whole)}")
        return Answer(text)

    def _late(self) -> Answer:
        return Answer(reason="timeout", detail=f"{self.url} did not answer within {self.seconds:g} s")

    def _status(self, error: openai.APIStatusError) -> Answer:
        status = error.status_code
        said = f"{self.url} answers {status}: {self.said(error.message)}"
        wait = retry_after(error.response.headers)
        if status == 429:
            return Answer(reason="rate_limit", detail=said, wait=wait)
        if status >= 500 or status in (408, 409, 425):
            return Answer(reason="server_error", detail=said, wait=wait)
        if status in _FAULTS or status < 400:
            why, fix = _FAULTS.get(status, _MOVED)
            return Answer(reason="refused", again=False, fault=EnvironmentFault(said, why=why, fix=fix))
        return Answer(reason="refused", detail=said, again=False)

    def said(self, words: object) -> str:
        """What a server or the transport said, in one short line; servers repeat a wrong key in their answer."""
        # The key is taken out before the line is cut, or half of it could stay.
        text = " ".join(str(words or "").split())
        return (text.replace(self._secret.value, "***") if self._secret.value else text)[:200]


_OTHER_KEY = "set NVIDIA_API_KEY (other servers: OPENAI_API_KEY) or --nemotron_api_key to a valid one"
_OTHER_PLACE = "the address is the part before /chat/completions and mostly ends in /v1; check the model's name too"
_MOVED = ("the judge has moved, and a key is not sent after it", "write the new address")
_FAULTS = {
    401: ("the judge does not accept the key, or there is none", _OTHER_KEY),
    402: ("the account has no credits left", "what is answered is kept: run the same command again with credits"),
    403: ("the key may not use this model", _OTHER_KEY),
    404: ("there is no such address or no such model", _OTHER_PLACE),
    405: ("this is no address of a chat endpoint", _OTHER_PLACE),
}

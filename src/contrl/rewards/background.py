"""Running a function where it can be waited for: async ones on one event loop, others in a thread of their own.

The loop lives in a thread of its own for the whole run: async functions run side by side, a client that a function
keeps open stays on the loop it was opened on, and it works where the caller is itself inside a running loop.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import inspect
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any


class TooLong(Exception):
    """There was no answer within the time limit. The function cannot be stopped; what it says later is dropped."""


@dataclass(frozen=True)
class _Outcome:
    """What a function returned or raised. Raised into a loop or a thread, Ctrl-C and exits would get lost there."""

    value: Any = None
    error: BaseException | None = None


def is_async(call: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine: an ``async def``, an object whose ``__call__`` is one, or a partial."""
    while isinstance(call, functools.partial):
        call = call.func
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__)


def wait(future: Future, seconds: float | None) -> Any:
    """The result of ``in_thread`` or ``on_loop``. Raises what the function raised; TooLong after ``seconds``."""
    try:
        outcome = future.result(seconds)
    except TimeoutError:
        future.cancel()
        _leave_blocked_loop()
        raise TooLong from None
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


def in_thread(call: Callable[..., Any], arguments: Mapping[str, Any]) -> Future:
    """Call it in a daemon thread, which does not keep the program alive."""
    future: Future = Future()
    device = _device()

    def work() -> None:
        try:
            with device:
                outcome = _Outcome(call(**arguments))
        except BaseException as error:
            outcome = _Outcome(error=error)
        with contextlib.suppress(Exception):  # cancelled: nobody waits any more
            future.set_result(outcome)

    threading.Thread(target=work, name="contrl-reward", daemon=True).start()
    return future


def on_loop(awaitable: Awaitable[Any]) -> Future:
    """Run it on the rewards' event loop."""
    return asyncio.run_coroutine_threadsafe(_outcome(awaitable), _running_loop())


async def _outcome(awaitable: Awaitable[Any]) -> _Outcome:
    try:
        return _Outcome(await awaitable)
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return _Outcome(error=error)


def _device() -> contextlib.AbstractContextManager[Any]:
    """The CUDA device in use here: it is a thread's own, and a new thread would take the first."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return contextlib.nullcontext()
    return torch.cuda.device(torch.cuda.current_device())


_loops: dict[int, asyncio.AbstractEventLoop] = {}  # by process: a thread does not survive a fork


def _running_loop() -> asyncio.AbstractEventLoop:
    if (loop := _loops.get(os.getpid())) is not None and loop.is_running():
        return loop
    loop, ready = asyncio.new_event_loop(), threading.Event()
    thread = threading.Thread(target=_serve, args=(loop, ready), name="contrl-rewards-loop", daemon=True)
    thread.start()
    ready.wait()
    _loops[os.getpid()] = loop
    atexit.register(_stop, loop, thread)
    return loop


def _serve(loop: asyncio.AbstractEventLoop, ready: threading.Event) -> None:
    asyncio.set_event_loop(loop)
    loop.call_soon(ready.set)
    loop.run_forever()
    for task in (tasks := asyncio.all_tasks(loop)):
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if loop.is_running():
        loop.call_soon_threadsafe(loop.stop)
        thread.join(1.0)


def _leave_blocked_loop() -> None:
    """Let go of the loop if an async function holds it without ever awaiting: the next call gets a new one."""
    loop = _loops.get(os.getpid())
    if loop is None:
        return
    alive = threading.Event()
    loop.call_soon_threadsafe(alive.set)
    if not alive.wait(1.0):
        del _loops[os.getpid()]

"""NVML with a limit to patience: a driver that hangs (a GPU off the bus) becomes an error like any other.

Each call is made in one thread of its own and waited for. While a call hangs every other fails at once, so a page, a
supervisor and a run pay for it once. The thread is made at the first call: a fork server must have none.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pynvml

INIT_S, CALL_S = 10.0, 5.0  # a driver that was asleep wakes up in the first


class Watched:
    """The functions of an NVML module; one that does not return in time raises NVMLError_Timeout."""

    def __init__(self, nvml: Any = pynvml, *, init_s: float = INIT_S, call_s: float = CALL_S) -> None:
        self._nvml, self._init_s, self._call_s = nvml, init_s, call_s
        self._lock = threading.Lock()
        self._pid = 0  # of the process that the thread lives in: a fork leaves it behind
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._hanging: Future[Any] | None = None

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._nvml, name)
        if not name.startswith("nvml"):
            return function
        patience_s = self._init_s if name == "nvmlInit" else self._call_s
        return lambda *arguments: self._call(lambda: function(*arguments), patience_s)

    def _call(self, call: Callable[[], Any], patience_s: float) -> Any:
        answer: Future[Any] = Future()
        with self._lock:
            if self._pid != os.getpid():
                self._begin()
            if self._hanging is not None and not self._hanging.done():
                raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
            self._calls.put((answer, call))
        try:
            return answer.result(patience_s)
        except TimeoutError:
            self._hanging = answer
            raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT) from None

    def _begin(self) -> None:
        self._pid, self._calls, self._hanging = os.getpid(), queue.SimpleQueue(), None
        threading.Thread(target=_serve, args=(self._calls,), name="nvml", daemon=True).start()


def _serve(calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]]) -> None:
    while True:
        answer, call = calls.get()
        try:
            answer.set_result(call())
        except BaseException as error:  # it is raised again where the call was made
            answer.set_exception(error)


NVML = Watched()

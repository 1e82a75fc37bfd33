"""NVML with a time-out for each call, and the handles of the GPUs.

A driver can hang, for example when a GPU fell off the bus. All calls run in one thread, and the caller waits a limited
time. While one call hangs, all others fail at once, so a page, the supervisor or a run waits only once. The thread
starts at the first call, because a process that is to be forked must have no threads.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import pynvml

INIT_S, CALL_S = 10.0, 5.0  # time-outs; nvmlInit has to wake a driver that sleeps
_NO_GPU = "The NVIDIA driver finds no GPU on this machine."
T = TypeVar("T")
Found = tuple[tuple[Any, ...], str | None]  # handles, and the reason where there is none


class Watched:
    """The functions of an NVML module. A call that does not return in time raises NVMLError_Timeout."""

    def __init__(self, nvml: Any = pynvml, *, init_s: float = INIT_S, call_s: float = CALL_S) -> None:
        self._nvml, self._init_s, self._call_s = nvml, init_s, call_s
        self._lock = threading.Lock()
        self._pid = 0  # of the process that has the thread: a forked child has none
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
        except Exception as error:  # noqa: BLE001 - `result()` raises it in the thread that made the call
            answer.set_exception(error)


NVML = Watched()


# --- the GPUs ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_nvml(nvml: Any = NVML, environ: Mapping[str, str] = os.environ) -> Iterator[Found]:
    """Context manager: the NVML handles of cuda:0, cuda:1, ..., or none and the reason.

    NVML numbers GPUs by PCI bus and ignores CUDA_VISIBLE_DEVICES, so this applies that variable. CUDA puts the fastest
    GPU first unless CUDA_DEVICE_ORDER is PCI_BUS_ID: on a machine that mixes models, a number means the same GPU to both
    only with that setting.
    """
    with _initialised(nvml, lambda: _visible_gpus(nvml, environ.get("CUDA_VISIBLE_DEVICES"))) as found:
        yield found


@contextlib.contextmanager
def open_every_gpu(nvml: Any = NVML) -> Iterator[Found]:
    """As `open_nvml`, but with all GPUs of the machine in NVML's order, also those that this process cannot use.

    A GPU that does not answer has its NVMLError in place of its handle.
    """
    with _initialised(nvml, lambda: _every_gpu(nvml)) as found:
        yield found


@contextlib.contextmanager
def _initialised(nvml: Any, find: Callable[[], Found]) -> Iterator[Found]:
    """Context manager: what `find` returns between nvmlInit and nvmlShutdown; no handle and the reason without a driver."""
    try:
        nvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield (), _no_driver(error)
        return
    try:
        yield find()
    finally:
        with contextlib.suppress(pynvml.NVMLError):  # nvmlShutdown also fails after a GPU was lost
            nvml.nvmlShutdown()


def _every_gpu(nvml: Any) -> Found:
    try:
        count = nvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        return (), _no_answer(error)
    return tuple(_handle_or_error(nvml, index) for index in range(count)), None if count else _NO_GPU


def _handle_or_error(nvml: Any, index: int) -> Any:
    try:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError as error:
        return error


def visible_entries(value: str) -> list[int] | list[str]:
    """The entries of CUDA_VISIBLE_DEVICES as CUDA reads them: indices, or beginnings of UUIDs.

    Entries after an invalid one are ignored. A repeated entry hides every GPU. `1abc` is 1, as in strtoul (CUDA C++
    programming guide, "CUDA environment variables"; torch.cuda reads it the same way).
    """
    named = next((prefix for prefix in ("GPU-", "MIG-") if value.startswith(prefix)), None)
    entries: list[Any] = []
    for text in (part.strip() for part in value.split(",")):
        number = re.match(r"\+?\d+", text)
        entry = text if named and text.startswith(named) else int(number[0]) if number and not named else None
        if entry is None:
            break
        if entry in entries:
            return []
        entries.append(entry)
    return entries


def _visible_gpus(nvml: Any, visible: str | None) -> Found:
    try:
        count = nvml.nvmlDeviceGetCount()
        if not count:
            return (), _NO_GPU
        handles = _handles(nvml, list(range(count)) if visible is None else visible_entries(visible), count)
    except pynvml.NVMLError as error:
        return (), _no_answer(error)
    return handles, None if handles else f"CUDA_VISIBLE_DEVICES hides every GPU of this machine (it has {count})."


def _handles(nvml: Any, entries: list[int] | list[str], count: int) -> tuple[Any, ...]:
    """The handles of the entries up to the first one that names no device."""
    handles = []
    for entry in entries:
        handle = _handle_by_index(nvml, entry, count) if isinstance(entry, int) else _handle_by_uuid(nvml, entry, count)
        if handle is None:
            break
        handles.append(handle)
    return tuple(handles)


def _handle_by_index(nvml: Any, index: int, count: int) -> Any | None:
    return nvml.nvmlDeviceGetHandleByIndex(index) if index < count else None


def _handle_by_uuid(nvml: Any, uuid: str, count: int) -> Any | None:
    """The handle of the one GPU whose UUID begins with `uuid`. A slice of a GPU (MIG-...) needs its whole UUID."""
    if uuid.startswith("MIG-"):
        return or_none(lambda: nvml.nvmlDeviceGetHandleByUUID(uuid.encode()))
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    fitting = [handle for handle in handles if nvml.nvmlDeviceGetUUID(handle).startswith(uuid)]
    return fitting[0] if len(fitting) == 1 else None


def or_none(read: Callable[[], T]) -> T | None:
    """What `read` returns; None when NVML raises, because one missing field must not hide the others."""
    try:
        return read()
    except pynvml.NVMLError:
        return None


def _no_driver(error: Exception) -> str:
    if isinstance(error, pynvml.NVMLError_LibraryNotFound):
        return "No NVIDIA driver on this machine (libnvidia-ml.so was not found)."
    return _no_answer(error)


def _no_answer(error: Exception) -> str:
    return f"The NVIDIA driver does not answer: {str(error).rstrip('.')}."  # some of NVML's texts end with a full stop

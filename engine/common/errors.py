"""Errors that a user can act on. Each one says what happened, with the value, and what to do."""


class EngineError(Exception):
    """Base class of errors that the user can correct. Any other exception is a bug and is not caught.

    `message` says what is wrong, `fix` what to do about it ("" if there is nothing to do).
    """

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()

    def __reduce__(self) -> tuple[object, ...]:  # pickling: the default cannot pass the keyword-only `fix`
        return (_rebuild, (type(self), self.message, self.fix))


def _rebuild(kind: type[EngineError], message: str, fix: str) -> EngineError:
    return kind(message, fix=fix)


class ConfigError(EngineError):
    """A configuration is not allowed. The message names the field, its value and what is allowed."""


class DeviceError(EngineError):
    """A device is not on this machine or cannot be used."""


class OutOfMemory(EngineError):
    """A run needs more memory than there is: as estimated before it, or as the allocator reported during it."""


class LimitReached(EngineError):
    """A run used, or would use, more than a limit allows. The message names the limit."""


class Diverged(EngineError):
    """The loss became NaN or infinite."""


class WorkerLost(EngineError):
    """The process of a run ended without writing the final event."""


class RankLost(EngineError):
    """A rank of a data-parallel run died, stopped responding or kept the others waiting. The message names it."""


class StoreError(EngineError):
    """The store, or one run in it, cannot be read or written."""


class StoreFull(StoreError):
    """The store's disk is too full to record more."""


class StoreGone(StoreError):
    """The store's folder was moved, deleted or replaced while it was in use."""

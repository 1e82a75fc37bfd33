"""Errors a user can act on: each says what happened, with the value, and what to do."""


class EngineError(Exception):
    """A mistake or a limit the user can do something about; anything else is a bug and surfaces as itself."""

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()

    def __reduce__(self) -> tuple[object, ...]:  # the fix is keyword-only: say how to rebuild across processes
        return (_rebuild, (type(self), self.message, self.fix))


def _rebuild(kind: type[EngineError], message: str, fix: str) -> EngineError:
    return kind(message, fix=fix)


class ConfigError(EngineError):
    """A configuration that is not allowed: names the field, the value and what is allowed."""


class DeviceError(EngineError):
    """A device that is not on this machine or cannot be used."""


class OutOfMemory(EngineError):
    """A run that does not fit, said before or after trying."""


class LimitReached(EngineError):
    """A run that used, or would use, more than it may: names the limit."""


class Diverged(EngineError):
    """The loss became NaN or infinite."""


class WorkerLost(EngineError):
    """The process that ran a run vanished without a last word."""


class RankLost(EngineError):
    """A rank of a data-parallel run died, froze, or kept the others waiting: names it."""


class StoreError(EngineError):
    """The store, or one run in it, cannot be read or written."""


class StoreFull(StoreError):
    """The store's disk has no room left for what was to be recorded."""


class StoreGone(StoreError):
    """The store's folder was moved, deleted or replaced while it was in use."""

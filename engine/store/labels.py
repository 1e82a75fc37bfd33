"""Tags and notes of a run."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from engine.common.errors import ConfigError
from engine.common.sanitize import clean_name, encodable, visible

LABELS_FILE = "labels.json"  # beside the log: what people say of the run
MOST_TAGS, LONGEST_TAG, LONGEST_NOTES = 20, 40, 4_000


class Labels(BaseModel):
    """What people say of a run. It lies beside the log, which only grows and only by who runs it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str | None = None  # None: as it was called when it was asked for
    tags: tuple[str, ...] = ()
    notes: str = ""
    pinned: bool = False


def clean_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags without blanks around them, each once. Raises ConfigError for too many, too long or invisible ones."""
    found = tuple(dict.fromkeys(clean_name(tag) for tag in tags if tag.strip()))
    if long := next((tag for tag in found if len(tag) > LONGEST_TAG or "," in tag), None):
        raise ConfigError(
            f"The tag {visible(long, 30)!r} is too long or holds a comma.",
            fix=f"A tag may have {LONGEST_TAG} characters.",
        )
    if len(found) > MOST_TAGS:
        raise ConfigError(f"{len(found)} tags are too many.", fix=f"A run may have {MOST_TAGS}.")
    return found


def clean_notes(text: str) -> str:
    if len(text) > LONGEST_NOTES:
        raise ConfigError(f"The notes have {len(text):,} characters.", fix=f"They may have {LONGEST_NOTES:,}.")
    return encodable(text.strip())

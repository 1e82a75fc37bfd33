"""Tags and notes of a run."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from engine.common.errors import ConfigError
from engine.common.sanitize import clean_name, encodable, visible

LABELS_FILE = "labels.json"  # in the run's folder
MOST_TAGS, LONGEST_TAG, LONGEST_NOTES = 20, 40, 4_000


class Labels(BaseModel):
    """What users add to a run. A file of its own, because only the process that runs the run appends to the event log."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str | None = None  # None: the name that the run was submitted with
    tags: tuple[str, ...] = ()
    notes: str = ""
    pinned: bool = False


def clean_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags without surrounding blanks and duplicates.

    Raises:
        ConfigError: a tag is too long, invisible or contains a comma, or there are too many.
    """
    found = tuple(dict.fromkeys(clean_name(tag) for tag in tags if tag.strip()))
    if long := next((tag for tag in found if len(tag) > LONGEST_TAG or "," in tag), None):
        raise ConfigError(
            f"The tag {visible(long, 30)!r} is too long or contains a comma.",
            fix=f"A tag can have {LONGEST_TAG} characters.",
        )
    if len(found) > MOST_TAGS:
        raise ConfigError(f"{len(found)} tags are too many.", fix=f"A run can have {MOST_TAGS}.")
    return found


def clean_notes(text: str) -> str:
    """Notes without surrounding blanks.

    Raises:
        ConfigError: the notes are too long.
    """
    if len(text) > LONGEST_NOTES:
        raise ConfigError(f"The notes have {len(text):,} characters.", fix=f"They can have {LONGEST_NOTES:,}.")
    return encodable(text.strip())

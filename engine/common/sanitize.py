"""Text that somebody else wrote (a name, a path, a column, a device's name, an error) and what keeps it only text.

A terminal obeys control characters, a direction override turns the rest of a line around, a line break forges another
row of a table, a lone surrogate cannot be written as UTF-8. All of these are shown as escapes, and refused in names.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Sequence

from engine.common.errors import ConfigError

LONGEST_NAME = 200
_MOST_MARKS = 4  # on one letter: more than any language stacks; dozens run over the lines above and below

_SURROGATE = re.compile("[\ud800-\udfff]")
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)  # controls, breaks, directions, invisible ones; not the joiners of emoji and of Indian and Arabic scripts


def visible(text: str, most: int | None = None) -> str:
    """The text on one line with nothing hidden in it, cut after `most` characters: `\\x1b`, `\\n` and `\\u202e` for what
    a reader would not see but a terminal or browser would obey."""
    shown = _HIDDEN.sub(_escape, text if most is None else text[: most + 1])
    if not shown.isascii():
        shown = _without_piles(shown)
    return shown if most is None or len(shown) <= most else f"{shown[: most - 1]}…"


def _escape(found: re.Match[str]) -> str:
    return _escaped(found[0])


def _escaped(character: str) -> str:
    """As Python, JSON and shells write it; \\x80 to \\xff are a byte to some of them and a character to others."""
    code = ord(character)
    return f"\\u{code:04x}" if 0x80 <= code < 0x100 else character.encode("unicode_escape").decode("ascii")


def _without_piles(text: str) -> str:
    out, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.category(character) in {"Mn", "Me"} else 0
        out.append(character if marks <= _MOST_MARKS else _escaped(character))
    return "".join(out)


def encodable(text: str) -> str:
    """The text as it is but for lone surrogates, which have no UTF-8: file names and JSON can hold them."""
    return _SURROGATE.sub(_escape, text)


def visible_json(document: str) -> str:
    """The same JSON with what `visible` shows as JSON's own escapes: nothing is lost, nothing reaches a terminal."""

    def escape(found: re.Match[str]) -> str:
        utf16 = found[0].encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{utf16[i : i + 2].hex()}" for i in range(0, len(utf16), 2))

    return _HIDDEN.sub(escape, document)


def clean_name(text: str) -> str:
    """A name without blanks around it. Raises ConfigError for one that is too long or holds what cannot be seen."""
    name = text.strip()
    if len(name) > LONGEST_NAME:
        raise ConfigError(
            f"The name {visible(name, 30)!r} has {len(name):,} characters.",
            fix=f"A name may have at most {LONGEST_NAME}: shorten it.",
        )
    if found := _HIDDEN.search(name):
        raise ConfigError(
            f"The name '{visible(name)}' holds the character U+{ord(found[0]):04X}, which cannot be seen.",
            fix="Leave out control characters, line breaks and direction marks.",
        )
    return name


def shell_words(words: Sequence[str]) -> str:
    """A command to copy into a shell. A word that holds something invisible is written as $'…', as bash and zsh read it."""
    return " ".join(map(_shell_word, words))


def _shell_word(word: str) -> str:
    if not _HIDDEN.search(word):
        return shlex.quote(word)
    return "$'{}'".format(visible(word.replace("\\", "\\\\").replace("'", "\\'")))

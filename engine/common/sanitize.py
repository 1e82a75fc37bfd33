"""Makes untrusted text (names, paths, column names, device names, error messages) safe to show and to store.

A terminal executes control characters, a direction override reverses the rest of a line, a line break adds a false row
to a table, and a lone surrogate cannot be encoded as UTF-8. All of these are shown as escapes, and refused in names.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Sequence

from engine.common.errors import ConfigError

LONGEST_NAME = 200
_MOST_MARKS = 4  # on one letter: no language uses more; dozens would cover the lines above and below

_SURROGATE = re.compile("[\ud800-\udfff]")
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)  # controls, line breaks, direction marks, invisible characters; not the joiners of emoji, Indic and Arabic scripts


def visible(text: str, most: int | None = None) -> str:
    """The text on one line, with an escape such as `\\x1b`, `\\n` or `\\u202e` for each hidden character.

    Hidden characters are those that a reader does not see but a terminal or browser executes. A text of more than
    `most` characters is cut and ends with an ellipsis.
    """
    shown = _HIDDEN.sub(_escape, text if most is None else text[: most + 1])
    if not shown.isascii():
        shown = _with_few_marks(shown)
    return shown if most is None or len(shown) <= most else f"{shown[: most - 1]}…"


def _escape(found: re.Match[str]) -> str:
    return _escaped(found[0])


def _escaped(character: str) -> str:
    """The escape that Python, JSON and shells share: `\\u0080`, not `\\x80`, which some of them read as a byte."""
    code = ord(character)
    return f"\\u{code:04x}" if 0x80 <= code < 0x100 else character.encode("unicode_escape").decode("ascii")


def _with_few_marks(text: str) -> str:
    """`text` with an escape for each combining mark beyond `_MOST_MARKS` on one letter."""
    out, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.category(character) in {"Mn", "Me"} else 0
        out.append(character if marks <= _MOST_MARKS else _escaped(character))
    return "".join(out)


def encodable(text: str) -> str:
    """The text with lone surrogates escaped, because UTF-8 cannot encode them. File names and JSON can contain them."""
    return _SURROGATE.sub(_escape, text)


def visible_json(document: str) -> str:
    """The same JSON with hidden characters as JSON escapes: it decodes to the same value and is safe to print."""

    def escape(found: re.Match[str]) -> str:
        utf16 = found[0].encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{utf16[i : i + 2].hex()}" for i in range(0, len(utf16), 2))

    return _HIDDEN.sub(escape, document)


def clean_name(text: str) -> str:
    """A name without blanks around it.

    Raises:
        ConfigError: The name is longer than `LONGEST_NAME` or contains a hidden character.
    """
    name = text.strip()
    if len(name) > LONGEST_NAME:
        raise ConfigError(
            f"The name {visible(name, 30)!r} has {len(name):,} characters.",
            fix=f"Shorten it to at most {LONGEST_NAME}.",
        )
    if found := _HIDDEN.search(name):
        raise ConfigError(
            f"The name '{visible(name)}' contains the invisible character U+{ord(found[0]):04X}.",
            fix="Leave out control characters, line breaks and direction marks.",
        )
    return name


def shell_words(words: Sequence[str]) -> str:
    """A command to copy into a shell. Words with hidden characters are written as $'...', which bash and zsh decode."""
    return " ".join(map(_shell_word, words))


def _shell_word(word: str) -> str:
    if not _HIDDEN.search(word):
        return shlex.quote(word)
    return "$'{}'".format(visible(word.replace("\\", "\\\\").replace("'", "\\'")))

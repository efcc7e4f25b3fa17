"""What can be stored at most, and how a value is shown that cannot."""

from __future__ import annotations

import reprlib

#: Levels of arrays and objects. The reader stops at 200, and an escaped object takes three levels for one.
MAX_DEPTH = 64
#: Bytes. Above it an array of small numbers needs more memory as jsonb than PostgreSQL gives to one value.
MAX_BYTES = 32 * 1024 * 1024
#: What Python and the reader convert at most (`sys.int_info.default_max_str_digits`).
MAX_DIGITS = 4300
#: Causes of causes that an error report keeps.
MAX_CAUSES = 10

INT_LIMIT: int = 10**MAX_DIGITS

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def shown(value: object) -> str:
    """Show a value in at most 80 or so characters; never raises."""
    try:
        return visible(_REPR.repr(value))
    except Exception:
        return f"<{type(value).__name__}>"


def visible(text: object) -> str:
    r"""Write NUL as \x00 and a lone surrogate as \udXXX; what is not a text is shown shortly."""
    if not isinstance(text, str):
        return shown(text)
    return str.__str__(text).replace("\0", r"\x00").encode("utf-8", "backslashreplace").decode()

"""Messages for people: one line each, without characters that a terminal would obey."""

import re


def one_line(message: object) -> str:
    """
    Return a message on one line that is safe to print.

    Line breaks become spaces. Control characters, invisible characters and lone surrogates are escaped, such as
    `\\x1b`. An exception without a message is named by its class.
    """
    text = re.sub(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*", " ", str(message).strip()).replace("\t", " ")
    if not text and isinstance(message, BaseException):
        return type(message).__name__
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, safe to print, or the name of its class if it has no message."""
    return one_line((str(error).strip().splitlines() or [type(error).__name__])[0])


def shortened(value: object, most: int = 40) -> str:
    """Return `repr(value)`, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:
        return "a huge number"
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def describe(error: Exception) -> str:
    """Return the error message for the user, on one line."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return one_line(f"{error.filename}: {error.strerror}")
    # Writing to a full disk raises a SafetensorError.
    if isinstance(error, (ValueError, OSError)) or type(error).__name__ == "SafetensorError":
        return one_line(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return one_line(f"out of memory: {first_line(error)}")
    return f"unexpected {type(error).__name__}: {first_line(error)} (set AUDIOX_TRACEBACK=1 for the traceback)"


def _escape(char: str) -> str:
    # Joiners belong to emoji and to several scripts, and a no-break space looks as it should.
    return char if char in "\u200c\u200d\xa0" else char.encode("unicode_escape").decode()

"""Messages of errors that other libraries raise."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message as valid Unicode, or the name of its class if it has no message."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.encode(errors="backslashreplace").decode()

"""Every error this package raises on purpose.

All derive from `RmtspecError`, so one ``except`` catches them; each also derives from the
built-in a caller would expect (`ValueError`, `TypeError`, `OSError`, `ImportError`).
"""


class RmtspecError(Exception):
    """Base of all errors raised by rmtspec."""


class InvalidValueError(RmtspecError, ValueError):
    """A value outside its range, or an array whose content cannot be used."""


class InvalidTypeError(RmtspecError, TypeError):
    """An argument of the wrong type, or an array of an unsupported dtype."""


class FileError(RmtspecError, OSError):
    """A file that cannot be read or written: missing, truncated, another format, no permission."""


class MissingDependencyError(RmtspecError, ImportError):
    """An optional package is needed; the message names the extra to install."""


class RmtspecWarning(UserWarning):
    """Something was left undone, or done another way than asked; the message says what to do."""

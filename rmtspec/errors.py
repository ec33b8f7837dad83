"""Every error this package raises on purpose.

::

    RmtspecError
    ├── InvalidValueError (ValueError)
    │   └── InvalidOptionError (OptionError)
    ├── InvalidTypeError (TypeError)
    │   └── InvalidOptionTypeError (OptionError)
    ├── OptionError
    ├── FileError (OSError)
    └── MissingDependencyError (ImportError)

    RmtspecWarning (UserWarning)

One ``except RmtspecError`` catches them all; each also derives from the built-in a caller would
expect. An option that was given wrong is an `OptionError`; data that cannot be used is not.
"""


class RmtspecError(Exception):
    """Base of all errors raised by rmtspec."""


class InvalidValueError(RmtspecError, ValueError):
    """A value outside its range, or an array whose content cannot be used."""


class InvalidTypeError(RmtspecError, TypeError):
    """An argument of the wrong type, or an array of an unsupported dtype."""


class OptionError(RmtspecError):
    """An option outside its range, of the wrong type, or that does not go with another one.

    Attributes
    ----------
    problem : str
        What was given, options in backticks: "`n_jobs` is 0".
    expected : str
        What was expected instead: "a whole number other than 0". It may be empty.
    hint : str
        What to do, in whole sentences. It may be empty.
    command_hint : str
        What to do on the command line, `hint` unless given.
    """

    def __init__(
        self, problem: str, expected: str = "", hint: str = "", *, command_hint: str | None = None
    ) -> None:
        self.problem, self.expected, self.hint = problem, expected, hint
        self.command_hint = hint if command_hint is None else command_hint
        words = f"{problem}; expected {expected}." if expected else problem
        super().__init__(f"{words} {hint}" if hint else words)


class InvalidOptionError(OptionError, InvalidValueError):
    """An option outside its range, or that does not go with another one."""


class InvalidOptionTypeError(OptionError, InvalidTypeError):
    """An option of the wrong type."""


class FileError(RmtspecError, OSError):
    """A file that cannot be read or written: missing, truncated, another format, no permission."""


class MissingDependencyError(RmtspecError, ImportError):
    """An optional package is needed; the message names the extra to install."""


class RmtspecWarning(UserWarning):
    """Something was left undone, or done another way than asked; the message says what to do."""

"""All errors that this package raises on purpose.

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

``except RmtspecError`` catches them all; each also derives from the built-in error that a caller
would expect. A wrong option raises an `OptionError`; data that cannot be used does not.
"""


class RmtspecError(Exception):
    """Base of all errors raised by rmtspec."""


class InvalidValueError(RmtspecError, ValueError):
    """A value outside its range, or an array whose contents cannot be used."""


class InvalidTypeError(RmtspecError, TypeError):
    """An argument of the wrong type, or an array of an unsupported dtype."""


class OptionError(RmtspecError):
    """An option outside its range, of the wrong type, or incompatible with another one.

    Attributes
    ----------
    problem : str
        What was given, options in backticks: "`n_jobs` is 0".
    expected : str
        What was expected instead: "a whole number other than 0"; may be empty.
    hint : str
        What to do, in full sentences; may be empty.
    command_hint : str
        What to do on the command line; `hint` by default.
    """

    def __init__(
        self, problem: str, expected: str = "", hint: str = "", *, command_hint: str | None = None
    ) -> None:
        self.problem, self.expected, self.hint = problem, expected, hint
        self.command_hint = hint if command_hint is None else command_hint
        words = f"{problem}; expected {expected}." if expected else problem
        super().__init__(f"{words} {hint}" if hint else words)


class InvalidOptionError(OptionError, InvalidValueError):
    """An option outside its range, or incompatible with another one."""


class InvalidOptionTypeError(OptionError, InvalidTypeError):
    """An option of the wrong type."""


class FileError(RmtspecError, OSError):
    """A file that cannot be read or written: missing, truncated, wrong format, no permission."""


class MissingDependencyError(RmtspecError, ImportError):
    """An optional package is missing; the message names the extra to install."""


class RmtspecWarning(UserWarning):
    """Something was not done, or not done as asked; the message says what to do."""

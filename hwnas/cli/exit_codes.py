"""What each way of ending a command is called by its exit code."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import typer

from hwnas.errors import BudgetError, HwnasError, VerificationError


class ExitCode(IntEnum):
    """How a command ended."""

    DONE = 0
    FAILURE = 1
    USAGE = 2
    NO_ARCHITECTURE = 3
    NOT_VERIFIED = 4
    INTERRUPTED = 130


class UsageError(HwnasError):
    """The value of an option or an argument cannot be used."""


@contextmanager
def exit_codes(*, debug: bool = False, resume: list[str] | None = None) -> Iterator[None]:
    """Turn whatever ends the block into one message on stderr and an exit code.

    Parameters
    ----------
    debug : bool, default False
        Show the traceback before the message.
    resume : list of str, optional
        Arguments which, added to those of this process, make it go on where it was interrupted.

    Raises
    ------
    typer.Exit
        With the code, in place of errors of hwnas, errors of the operating system and interrupts. Other
        exceptions are faults of the program; they pass.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read the output has seen enough
    except (HwnasError, OSError) as error:
        _end(error, f"error: {error}", _code_of(error), debug)
    except (KeyboardInterrupt, SystemExit) as error:
        if not _is_interrupt(error):
            _end(error, f"error: the program was ended from within, {error!r}", ExitCode.FAILURE, debug)
        message = "interrupted"
        if resume is not None:
            arguments = sys.argv[1:]
            again = shlex.join(["hwnas", *arguments, *(word for word in resume if word not in arguments)])
            message = f"interrupted; what was finished is kept, go on with:\n  {again}"
        _end(error, message, ExitCode.INTERRUPTED, debug)


def _end(error: BaseException, message: str, code: ExitCode, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    print(message, file=sys.stderr)
    raise typer.Exit(code) from error


def _code_of(error: Exception) -> ExitCode:
    if isinstance(error, BudgetError):
        return ExitCode.NO_ARCHITECTURE
    if isinstance(error, VerificationError):
        return ExitCode.NOT_VERIFIED
    if isinstance(error, UsageError):
        return ExitCode.USAGE
    if isinstance(error, HwnasError):
        # Loads PyTorch, which is there already wherever such an error comes from.
        from hwnas.experiment import TaskError

        if isinstance(error, TaskError):
            return ExitCode.USAGE
    return ExitCode.FAILURE


def _is_interrupt(error: BaseException) -> bool:
    """Tell whether an exception is an interrupt, or what Lightning has made of one."""
    # On SIGINT Lightning winds up and calls sys.exit; on SIGTERM it raises a SystemExit of its own.
    if type(error).__name__ == "SIGTERMException":
        return True
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return True
        cause = cause.__cause__ or cause.__context__
    return False

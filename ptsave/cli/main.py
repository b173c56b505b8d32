"""Running a command line: its errors → words and exit codes of the contract."""

import os
import sys
import traceback
from functools import cache
from typing import Any, NoReturn

import typer

from ptsave import stopping, streams
from ptsave.cli.app import app
from ptsave.cli.options import with_patterns
from ptsave.distributed.group import is_under_torchrun, let_first_speak
from ptsave.errors import (
    EXIT_INTERRUPTED,
    EXIT_NO,
    EXIT_OK,
    PtsaveError,
    RefusedError,
    UsageError,
    not_installed,
)
from ptsave.own_process import own_process
from ptsave.render.terminal import failure
from ptsave.storage.reads import noted

try:
    from typer._click.exceptions import UsageError as TyperUsageError
except ModuleNotFoundError:  # before 0.26, Typer used the Click that is installed
    from click.exceptions import UsageError as TyperUsageError  # type: ignore[assignment,import-not-found,unused-ignore]


def main() -> NoReturn:
    """Run the command line and leave with an exit code of the contract."""
    stopping.install()
    try:
        streams.prepare()
        code = run(sys.argv[1:])
        streams.flush()
    except PtsaveError as problem:
        failure(problem, json=False)
        code = problem.exit_code
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except SystemExit as left:  # a rank that lets another one speak
        code = int(left.code or 0)
    stopping.finish()
    if is_under_torchrun():
        # Threads of torch.distributed may outlive its groups, and abort a Python that is being taken down.
        stopping.die()
        os._exit(stopping.exit_code() if stopping.received else code)
    stopping.leave(code)


@cache
def _command() -> Any:
    """Return what parses a command line and runs it; Typer reads it from the signatures in `flags`, once."""
    return typer.main.get_command(app)


def run(arguments: list[str]) -> int:
    """Run one command, and say what went wrong if something did; returns the exit code."""
    try:
        with noted(), own_process():
            words = with_patterns(arguments)
            left = _command()(words, prog_name="ptsave", standalone_mode=False, obj=arguments)
            code: int = left or EXIT_OK
        if code == EXIT_NO and not {"--show-completion", "--install-completion"}.isdisjoint(arguments):
            hint = "run it in one of them, or name it: --show-completion zsh"
            raise UsageError("completion is for bash, zsh, fish and PowerShell", "", hint)
        return code
    except TyperUsageError as error:  # its `message` is empty where an argument is missing
        what, hint = _usage(error, arguments)
        problem: PtsaveError = UsageError(what, "", hint)
    except PtsaveError as error:
        problem = error
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except OSError as error:
        problem = _refused_by_the_system(error)
    except MemoryError as error:
        problem = _out_of_memory(error)
    except ImportError as error:
        # the loader's words where a library does not fit into the memory that is left
        is_memory = "failed to map segment" in str(error)
        problem = _out_of_memory(error) if is_memory else not_installed(error) or _bug(error)
    except Exception as error:
        problem = _bug(error)
    if stopping.received:  # code in between made another error of the interrupt
        return stopping.exit_code()
    if isinstance(problem, UsageError) and "rank" not in problem.details:
        let_first_speak()  # the same command line on every rank: one says so
    if os.environ.get("PTSAVE_DEBUG"):
        traceback.print_exception(problem.__cause__ or problem)
    failure(problem, json="--json" in arguments)
    return problem.exit_code


def _usage(error: TyperUsageError, arguments: list[str]) -> tuple[str, str]:
    """What is wrong with a command line, and the hint."""
    from ptsave.cli.elsewhere import meant  # only for a command line that is wrong

    commands = _command().commands
    name = next((word for word in arguments if word in commands), "")
    flags = {flag for p in commands[name].params for flag in p.opts} if name else set()
    return meant(error.format_message().rstrip("."), flags, f"see `{f'ptsave {name}'.rstrip()} --help`")


def _refused_by_the_system(error: OSError) -> PtsaveError:
    what = error.strerror or str(error)
    problem = RefusedError(
        f"the system reports: {what}", str(error.filename or ""), "check the disk and the path"
    )
    problem.__cause__ = error
    return problem


def _out_of_memory(error: Exception) -> PtsaveError:
    what = "there is not enough memory"
    problem = RefusedError(what, "", "close other programs, or raise the limit of memory (ulimit -v)")
    problem.__cause__ = error
    return problem


def _bug(error: Exception) -> PtsaveError:
    problem = PtsaveError(
        f"a bug in ptsave: {type(error).__name__}: {error}",
        "",
        "run it again with PTSAVE_DEBUG=1 for a traceback, and report it",
    )
    problem.__cause__ = error
    return problem

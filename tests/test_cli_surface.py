"""The surface of the command line: the five commands, the flags of all, a line of help for each."""

from __future__ import annotations

from typing import Any

import pytest
import typer.main

from ptsave.cli.app import app

COMMANDS = ("save", "load", "inspect", "convert", "verify")


def parameters(command: str) -> list[Any]:
    """The arguments and options of a command, as Typer made them."""
    group: Any = typer.main.get_command(app)
    return list(group.commands[command].params)


def test_the_commands_are_those_of_the_contract() -> None:
    group: Any = typer.main.get_command(app)
    assert tuple(group.commands) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_how_it_talks(command: str) -> None:
    flags = {flag for parameter in parameters(command) for flag in parameter.opts}
    assert {"--json", "-q", "--quiet", "-v", "--verbose"} <= flags


@pytest.mark.parametrize("command", COMMANDS)
def test_every_parameter_has_a_sentence_of_help(command: str) -> None:
    for parameter in parameters(command):
        assert parameter.help, parameter.name
        assert parameter.help.rstrip("…").rstrip()[-1] in ".,=", parameter.help


@pytest.mark.parametrize("command", COMMANDS)
def test_no_flag_has_two_meanings(command: str) -> None:
    flags = [
        flag for parameter in parameters(command) for flag in (*parameter.opts, *parameter.secondary_opts)
    ]
    assert len(flags) == len(set(flags))

"""Calls the program as a user does, in this process."""

from typer.testing import CliRunner

from allrec.cli.commands import app
from allrec.errors import InputError


def call(*arguments: object) -> str:
    """What a command prints on standard output; a refusal is raised as it is."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, InputError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout

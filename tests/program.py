"""Calls the program as a user does, in this process."""

from typer.testing import CliRunner, Result

from allrec.cli.commands import app


def run(*arguments: object) -> Result:
    """What a command printed; what it raises, a refusal among others, is raised as it is."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def call(*arguments: object) -> str:
    """What a command prints on standard output."""
    return run(*arguments).stdout

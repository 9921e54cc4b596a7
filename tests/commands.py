"""Commands, called in this process as a user would type them."""

from typer.testing import CliRunner

from slipstream.cli.app import app


def slipstream(*arguments, code=0):
    """Run a command, and check its exit code."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def complaint(result):
    """What a command wrote to the standard error, on one line and without a frame."""
    return " ".join(result.stderr.replace("│", " ").split())

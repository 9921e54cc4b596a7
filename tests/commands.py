"""Commands, called in this process as a user would type them."""

from typer.testing import CliRunner

from slipstream.cli.app import app


def slipstream(*arguments, code=0, env=None):
    """Run a command, and check its exit code: one, or one of several."""
    words = [str(a) for a in arguments]
    result = CliRunner().invoke(app, words, catch_exceptions=False, env=env)
    allowed = code if isinstance(code, tuple) else (code,)
    assert result.exit_code in allowed, f"{words}: {result.output}"
    return result


def complaint(result):
    """What a command wrote to the standard error, on one line and without a frame."""
    return " ".join(result.stderr.replace("│", " ").split())

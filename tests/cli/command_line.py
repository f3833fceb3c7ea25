"""The command, run as in a shell."""

from click.testing import CliRunner, Result

from saecodec.cli.app import app


def run(*arguments: object, ok: bool = True) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert (result.exit_code == 0) is ok, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result

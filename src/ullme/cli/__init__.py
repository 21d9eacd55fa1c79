"""The command line: one file per subcommand. Nothing here imports torch before a command runs."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import cast

import typer

from ullme import __version__
from ullme.cli.check import check
from ullme.cli.data import data
from ullme.cli.demo import demo
from ullme.cli.encode import encode
from ullme.cli.eval import evaluate
from ullme.cli.export import export
from ullme.cli.quickstart import quickstart
from ullme.cli.report import report
from ullme.cli.reproduce import reproduce
from ullme.cli.search import search
from ullme.cli.train import train

USAGE_ERROR = 2
INTERRUPTED = 130

#: click's UsageError, by way of a public name: newer releases of typer carry click within themselves.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])

#: Commands that a second run continues, and from where.
_CONTINUED = {
    "train": "resume from the last checkpoint",
    "encode": "continue after the last finished shard",
    "demo": "continue indexing",
    "data": "run it again (what data mine has embedded is kept)",
    "reproduce": "continue with the row that was interrupted",
}

app = typer.Typer(
    name="ullme",
    help="Turn any decoder-only LLM into a text embedder: train, score, encode, search.",
    pretty_exceptions_enable=False,
)
app.command("quickstart")(quickstart)
app.command("train")(train)
app.command("eval")(evaluate)
app.command("encode")(encode)
app.command("search")(search)
app.command("demo")(demo)
app.command("export")(export)
app.command("check")(check)
app.add_typer(data, name="data")
app.command("reproduce")(reproduce)
app.command("report")(report)


@app.callback(invoke_without_command=True)
def _options(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(f"ullme {__version__}")
        raise typer.Exit


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for a mistake of the user's, 130 when interrupted.

    A mistake (a ValueError, a file that cannot be read or written, a wrong option) is one line on stderr;
    ``ULLME_TRACEBACK=1`` shows where it was raised. Anything else is a bug and keeps its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    _quiet_libraries()
    _look_for_modules_here()
    try:
        code = app(args=arguments, prog_name="ullme", standalone_mode=False) or 0
    except KeyboardInterrupt:
        code = INTERRUPTED
    except _UsageError as error:
        command = " ".join(["ullme", *(a for a in arguments[:1] if a in _command_names())])
        return _fail(f"{error.format_message()} (see {command} --help)")
    except (ValueError, OSError) as error:
        if os.environ.get("ULLME_TRACEBACK"):
            raise
        return _fail(_one_line(error))
    if code == INTERRUPTED:  # typer turns Ctrl-C into this code without a word
        return _fail("interrupted" + _resume_hint(arguments), INTERRUPTED)
    return code


def _fail(message: str, code: int = USAGE_ERROR) -> int:
    sys.stderr.write(f"error: {message}\n")
    return code


def _one_line(error: ValueError | OSError) -> str:
    """An error's message without line breaks; what the system says of a file gets the file's name and a cure."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{str(error.filename)!r}: " if error.filename is not None else ""
        return f"{where}{error.strerror}; check that the path exists, may be used and has room"
    return " ".join(str(error).split()) or type(error).__name__


def _resume_hint(arguments: Sequence[str]) -> str:
    if arguments and arguments[0] in _CONTINUED:
        return f"; {_CONTINUED[arguments[0]]} with the same command: ullme {' '.join(arguments)}"
    return "; nothing half-done was kept, run the command again"


def _command_names() -> list[str]:
    named = [command.name for command in app.registered_commands] + [group.name for group in app.registered_groups]
    return [name for name in named if name]


def _look_for_modules_here() -> None:
    """Let import paths name modules of the working directory, unless Python was told not to (``-P``).

    It comes last: a file there takes no library's place.
    """
    here = os.getcwd()
    if here not in sys.path and not getattr(sys.flags, "safe_path", False):
        sys.path.append(here)


def _quiet_libraries() -> None:
    """Leave stderr to our own messages; progress bars only where someone watches them."""
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    if not sys.stderr.isatty():
        quiet |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    for category in (FutureWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(transformers|peft|accelerate|torch)\b")

"""The command line: the one place that prints an error and exits.

Exit codes: 0 done; 1 the study ended with cells that are failed or invalid; 2 bad input (nothing was started);
3 an error of qMeter or its surroundings; 130 interrupted.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
from typing import Any

from qmeter.errors import QMeterError, SpecError, UnknownName

EXIT_OK, EXIT_INCOMPLETE, EXIT_BAD_INPUT, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 3, 130

COMMANDS: dict[str, tuple[str, str, str]] = {
    "quickstart": ("qmeter.cli.run", "quickstart", "Measure"),
    "run": ("qmeter.cli.run", "run", "Measure"),
    "resume": ("qmeter.cli.run", "resume", "Measure"),
    "init": ("qmeter.cli.init", "init", "Measure"),
    "doctor": ("qmeter.cli.doctor", "doctor", "Measure"),
    "calibrate": ("qmeter.cli.calibrate", "calibrate", "Measure"),
    "roofline": ("qmeter.cli.roofline", "roofline", "Measure"),
    "report": ("qmeter.cli.report", "report", "Read"),
    "show": ("qmeter.cli.read", "show", "Read"),
    "profiles": ("qmeter.cli.profiles", "profiles", "Read"),
    "query": ("qmeter.cli.read", "query", "Read"),
    "reanalyse": ("qmeter.cli.reanalyse", "reanalyse", "Read"),
    "methods": ("qmeter.cli.catalog", "methods", "Catalog"),
    "models": ("qmeter.cli.catalog", "models", "Catalog"),
    "devices": ("qmeter.cli.catalog", "devices", "Catalog"),
    "engines": ("qmeter.cli.catalog", "engines", "Catalog"),
    "synth": ("qmeter.cli.synth", "synth", "Models"),
    "quantize": ("qmeter.cli.quantize", "quantize", "Models"),
    "quality": ("qmeter.cli.quality", "quality", "Measure"),
    "calibrate-model": ("qmeter.cli.calibrate_model", "calibrate_model", "Predict"),
    "simulate": ("qmeter.cli.simulate", "simulate", "Predict"),
    "tune": ("qmeter.cli.tune", "tune", "Decide"),
    "plan": ("qmeter.cli.plan", "plan", "Decide"),
    "schedule": ("qmeter.cli.schedule", "schedule", "Decide"),
    "serve-schedule": ("qmeter.cli.serve_schedule", "serve_schedule_command", "Decide"),
}
"""Command → (module, function, help panel). A command's module is imported only when it is asked for."""

SUMMARIES: dict[str, str] = {
    "quickstart": "Fetch a small model, measure nine methods on this machine, write the report.",
    "run": "Run a study: every cell that its folder lacks.",
    "resume": "Go on with a study folder that was interrupted.",
    "init": "Write a commented study file to start from.",
    "doctor": "Say what this host can measure and what makes it noisy.",
    "calibrate": "Measure this host's load-client limits against a ground-truth server.",
    "roofline": "Measure the GPU's copy bandwidth and matrix rate by type.",
    "report": "Write a study's report: one HTML file, charts, CSV.",
    "show": "Print a study's records in the terminal.",
    "profiles": "List measured reference profiles, or add records made elsewhere.",
    "query": "Run SQL over a study's records and tables.",
    "reanalyse": "Analyse a study's tables again, by this version's analysis.",
    "methods": "List quantization methods, and where they run.",
    "models": "List model shapes.",
    "devices": "List devices.",
    "engines": "List engines, and whether this host has them.",
    "synth": "Write a checkpoint of random weights in a method's real format.",
    "quantize": "Quantize a model by a method.",
    "quality": "Measure quality on a served endpoint.",
    "calibrate-model": "Fit the simulator to measured records.",
    "simulate": "Predict a deployment's latency, goodput and energy.",
    "tune": "Search configurations for the best trade-offs, and what to deploy.",
    "plan": "Choose deployments, replicas and routing for given traffic.",
    "schedule": "Schedule a day of load on a fleet at least energy, beside what people do today.",
    "serve-schedule": "Start a schedule's deployments and a router that carries it out.",
}


def build(argv: list[str]) -> Any:
    """The typer app for ``argv``: only the command asked for is imported, so that ``--help`` stays quick."""
    import typer

    app = typer.Typer(
        name="qmeter",
        help="Online characterization of LLM quantization: performance, energy and quality, measured together.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    asked = next((word for word in argv if not word.startswith("-")), None)
    for name, (module, function, panel) in COMMANDS.items():
        body = getattr(importlib.import_module(module), function) if name == asked else _placeholder
        app.command(name, help=None if name == asked else SUMMARIES[name], rich_help_panel=panel)(body)

    @app.callback(invoke_without_command=True)
    def root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
        if version:
            from qmeter import __version__

            typer.echo(f"qmeter {__version__}")
            raise typer.Exit

    return app


def _placeholder() -> None:
    """Stands for a command that was not asked for."""


def main() -> None:
    """Entry point of ``qmeter``: run the command, print what went wrong, exit with the documented code."""
    sys.exit(_run(sys.argv[1:]))


def _run(argv: list[str]) -> int:
    import typer

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show "→" is no reason to end a study
    try:
        code = build(argv)(args=argv, standalone_mode=False)
        return code if isinstance(code, int) else EXIT_OK
    except typer.Exit as ended:
        return ended.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        _flush()
        return EXIT_INTERRUPTED
    except (SpecError, UnknownName) as error:
        _print_error(error)
        return EXIT_BAD_INPUT
    except QMeterError as error:
        _print_error(error)
        return EXIT_ERROR
    except BrokenPipeError:
        _flush()
        return EXIT_OK
    except Exception as error:
        if callable(getattr(error, "format_message", None)):
            _print_usage_error(error)
            return EXIT_BAD_INPUT
        _print_unexpected(error)
        return EXIT_ERROR


def _flush() -> None:
    """Write out what is left, into nothing where nobody reads any more, so that Python's own flush does not fail."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_unexpected(error: Exception) -> None:
    """What qMeter did not raise on purpose: the host's refusal in a sentence, anything else with its traceback."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        _print_error(
            QMeterError(f"{where}{error.strerror}", hint="check the path, its permissions and the disk's space")
        )
        return
    traceback.print_exception(error)
    _print_error(
        QMeterError(
            f"unexpected {type(error).__name__}: {error}",
            hint="this is a fault of qMeter: please report it with the lines above",
        )
    )


def _print_usage_error(error: Any) -> None:
    """A wrong command line, as typer words it (typer keeps its error base class private)."""
    from typer.rich_utils import rich_format_error

    rich_format_error(error)


def _print_error(error: QMeterError) -> None:
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    console.print(f"[bold red]error[/] {_plain(error.message)}", soft_wrap=True)
    if isinstance(error, SpecError):
        for path, message in error.faults:
            console.print(f"  [bold]{_plain(path)}[/]: {_plain(message)}", soft_wrap=True)
    if error.hint:
        console.print(f"  [bold]next[/] {_plain(error.hint)}", soft_wrap=True)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()

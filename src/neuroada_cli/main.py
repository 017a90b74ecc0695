"""The application: its commands, and the one place where errors become messages."""

import logging
import sys
import warnings
from typing import Annotated

import typer
from typer.core import TyperGroup

from neuroada_cli import bench, evaluate, merge, plan, recipes, report, study, train, tune
from neuroada_cli.output import lenient_output


class _Boundary(TyperGroup):
    """Prints the family of NeuroAdaError plainly; every other exception keeps its traceback."""

    def invoke(self, ctx):
        with lenient_output():
            return self._invoke(ctx)

    def _invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _say("Interrupted.")
            raise SystemExit(130) from None
        except Exception as error:
            errors = sys.modules.get("neuroada.errors")
            if errors is None or not isinstance(error, errors.NeuroAdaError):
                raise
            _say(f"[bold red]Error:[/] {_escape(error)}")
            raise SystemExit(2) from None


def _say(message: str) -> None:
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(message)


def _escape(error: Exception) -> str:
    from rich.markup import escape

    return escape(str(error))


# Plain help answers in 100 ms; the panels that Rich draws take 220 ms.
app = typer.Typer(
    cls=_Boundary,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _say_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"neuroada {version('neuroada')}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say it.")] = False,
) -> None:
    """Fine-tune Hugging Face models by training a handful of bypass weights per neuron."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # It tells every program on some CPUs of a kernel that makes 4-bit weights faster.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("merge")(merge.merge)
app.command("plan")(plan.plan)
app.command("recipes")(recipes.recipes)
app.command("report")(report.report)
app.command("study")(study.study)
app.command("tune")(tune.tune)
app.add_typer(bench.app, name="bench")

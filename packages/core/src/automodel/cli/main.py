"""The command `automodel`: finds the verb, imports only that, and turns expected failures into one message."""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from automodel.errors import AutoModelError, InputError
from automodel.launch.failures import end_agent, is_lost_connection, is_one_of_many, is_ours_to_tell, prefix
from automodel.launch.signals import stop_with_agent
from automodel.suggest import did_you_mean

VERBS = {
    "train": ("automodel.cli.train:train", "Fine-tune a model as a recipe says."),
    "finetune": ("automodel.cli.train:finetune", "The same as train."),
    "evaluate": ("automodel.cli.evaluate:evaluate", "Measure a model on a recipe's validation data."),
    "checkpoints": ("automodel.cli.checkpoints:checkpoints", "List, verify, prune and compare checkpoints."),
    "plan": ("automodel.cli.plan:plan", "Say what a recipe needs on so many devices."),
    "launch": ("automodel.cli.launch:launch", "Hand a run to a cluster's scheduler."),
    "validate": ("automodel.cli.validate:validate", "Check a recipe without running it."),
    "plugins": ("automodel.cli.plugins:plugins", "List the plugins, or show what one of them takes."),
}
"""Verb: where its `click.Command` is, and its line of help."""

TRACEBACK = "--traceback"
INTERRUPTED = 130


class Verbs(click.Group):
    """A group whose commands are imported when they run; plugins add to them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Core's verbs, then those of plugins."""
        return [*VERBS, *(name for name in _plugin_commands() if name not in VERBS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb."""
        if cmd_name in VERBS:
            module, _, attribute = VERBS[cmd_name][0].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        if cmd_name in (commands := _plugin_commands()):
            provider, plugin = commands[cmd_name]
            try:
                loaded: click.Command = provider.load()
            except (ImportError, AttributeError) as error:
                text = f"the command `{cmd_name}` of the plugin {plugin.name} cannot be imported: {error}"
                raise AutoModelError(text) from error
            return loaded
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb of the command line; a word that is none gets a suggestion."""
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            ctx.fail(f"there is no command `{args[0]}`{did_you_mean(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs without importing any."""
        rows = [(name, summary) for name, (_, summary) in VERBS.items()]
        rows += [(name, p.summary) for name, (p, _) in _plugin_commands().items() if name not in VERBS]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _plugin_commands() -> dict[str, Any]:
    from automodel.plugins import installed  # not needed by `automodel train --help` and the like

    return installed().commands


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(TRACEBACK, is_flag=True, help="Show where in the code an expected failure arose. Stands anywhere.")
@click.version_option(package_name="automodel-core", prog_name="automodel", message="%(prog)s %(version)s")
def cli(traceback: bool) -> None:
    """Fine-tune Hugging Face LLMs and VLMs from one YAML recipe."""


def run() -> NoReturn:
    """The command as a process of its own, which ends when all is done without freeing every object.

    Freeing the half million of torch takes Python 1 to 2 s, and the system no time. By then threads have been waited
    for, what was registered to be called at exit meanwhile has been, and files that were left open are flushed. After
    an unexpected exception Python ends as it always does.
    """
    codes: list[int] = []
    atexit.register(_leave, codes)  # the first to be registered is the last to be called
    codes.append(main())
    sys.exit(codes[0])


def _leave(codes: list[int]) -> None:
    if not codes:  # an exception ends the process
        return
    logging.shutdown()  # which has registered itself before
    # by type(): some objects do not take being asked for their __class__
    files = [each for each in gc.get_objects() if issubclass(type(each), io.TextIOWrapper | io.BufferedWriter)]
    try:
        for file in files:
            if not file.closed:
                file.flush()
    except (OSError, ValueError):  # Python tells it, and what the exit code is then
        return
    os._exit(codes[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    0 if all went well, 1 for a failed run, 2 for wrong input, 130 after ctrl-c. Unexpected exceptions propagate.
    """
    stop_with_agent()
    words = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = TRACEBACK in words
    words = [word for word in words if word != TRACEBACK]
    try:
        result = cli.main(words, prog_name="automodel", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except AutoModelError as error:
        if is_ours_to_tell(error) and str(error):
            if show_traceback:
                traceback.print_exc()
            print(f"error: {prefix()}{error}", file=sys.stderr, flush=True)
        if isinstance(error, InputError):
            end_agent(error.exit_code)
        return error.exit_code
    except click.Abort:
        return _interrupted()
    except KeyboardInterrupt:
        return _interrupted()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has gone (`| head`); keep Python from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # whatever it is, one process tells it
        if not is_one_of_many():
            raise
        ours = is_ours_to_tell(error)
        if ours and not is_lost_connection(error):
            print(f"error: {prefix()}failed first, by this:", file=sys.stderr, flush=True)
            raise
        if ours:
            if show_traceback:
                traceback.print_exc()
            print(
                f"error: {prefix()}lost the connection to another process. If none says why, it was killed, its "
                "machine is gone, or it did not answer within dist_env.timeout_minutes. torch.distributed says: "
                f"{str(error).splitlines()[0]}",
                file=sys.stderr,
                flush=True,
            )
        return AutoModelError.exit_code


def _interrupted() -> int:
    if os.environ.get("RANK", "0") == "0":
        print("interrupted", file=sys.stderr)
    return INTERRUPTED


if __name__ == "__main__":
    run()

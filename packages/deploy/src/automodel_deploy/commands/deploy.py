"""`automodel deploy`: serve a trained model, and show that it answers."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from automodel import InputError, RunError
from automodel.cli.options import RecipeCommand, recipe_options
from automodel.errors import StoppedError
from automodel.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from automodel_deploy.interfaces import Model, Server

SECTION = "deployment.serving_config"
PROGRAM = "python"
"""A parameter of servers that names a program. A recipe from a colleague must not run one that nobody chose."""
_PROMPT = "What is the capital of France?"
_MAX_TOKENS = 32
_LOGS = Path("logs")


@click.command(cls=RecipeCommand)
@recipe_options
@click.option(
    "--checkpoint",
    metavar="PATH",
    help="A run's directory (its best or newest whole checkpoint is taken), one checkpoint step_<n>, a model's "
    "directory or a PEFT adapter. The recipe's own run without.",
)
@click.option("--prompt", metavar="TEXT", default=_PROMPT, show_default=True, help="What the model is asked at first.")
@click.option("--check", is_flag=True, help="Stop after the first answer.")
@click.option("--print-only", is_flag=True, help="Show the command, and start nothing.")
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write a systemd unit and a Kubernetes manifest into DIR, and start nothing.",
)
def deploy(
    config: tuple[str, ...],
    allow_target: tuple[str, ...],
    overrides: tuple[str, ...],
    checkpoint: str | None,
    prompt: str,
    check: bool,
    print_only: bool,
    output: Path | None,
) -> None:
    """Serve a trained model by the server of the recipe's section `deployment.serving_config`.

    The server is started and, when it is healthy, asked a question. It runs until Ctrl-C or SIGTERM.
    """
    recipe = load_recipe(config, overrides, allow_targets=allow_target, needs=(SECTION,))
    from automodel_deploy.serving import shell_line

    if not print_only and output is None:
        server_of(recipe).prepare()  # before an export, which may take long
    server, model = server_and_model(recipe, checkpoint, allow_target)
    if print_only:
        click.echo(shell_line(server, model))
    if output is not None:
        write_units(server, model, output)
    if not print_only and output is None:
        serve(server, model, prompt, stop_after_answer=check)


def server_and_model(
    recipe: Recipe, checkpoint: str | None, allow_targets: tuple[str, ...] = ()
) -> tuple[Server, Model]:
    """The recipe's server, and what it is to serve.

    Raises:
        InputError: the section is wrong, or there is no such model.
    """
    from automodel_deploy.served import served_model

    return server_of(recipe), served_model(recipe, checkpoint, allow_targets)


def server_of(recipe: Recipe) -> Server:
    """The recipe's server.

    Raises:
        InputError: the section is wrong, or a recipe's file names a program to run.
    """
    place = recipe.where(*SECTION.split("."), PROGRAM)
    if PROGRAM in recipe.targets[SECTION].kwargs and place.partition(":")[0] not in ("command line", "overrides"):
        raise InputError(
            f"{place}: {SECTION}.{PROGRAM} names a program to run, which a recipe's file may not: give it on the "
            f"command line, {SECTION}.{PROGRAM}=PATH"
        )
    server: Server = recipe.targets[SECTION].build()
    return server


def serve(server: Server, model: Model, prompt: str = _PROMPT, *, stop_after_answer: bool) -> None:
    """Start the server, ask it, say how to reach it, and wait for Ctrl-C or SIGTERM unless told to stop.

    Raises:
        InputError: it cannot run here.
        RunError: it failed; with the last lines of its log.
        StoppedError: a signal came before it had answered.
    """
    from automodel_deploy.openai_api import ask, base_url, request_for
    from automodel_deploy.served import chats
    from automodel_deploy.serving import serving, shell_line
    from automodel_deploy.units import unit_name

    log = _LOGS / f"{unit_name(model.name)}-{server.port}.log"
    request = request_for(server.asked_for(model), prompt, _MAX_TOKENS, chat=chats(model))
    url = base_url(server)
    click.echo(f"starting {shell_line(server, model)}\nits log: {log}")
    began = time.monotonic()
    with serving(server, model, log) as process:
        click.echo(f"ready after {time.monotonic() - began:.0f} s: {url}/v1, model {server.asked_for(model)}")
        began = time.monotonic()
        try:
            answer = ask(url, request)
        except RunError as error:
            raise RunError(f"{error}{process.told()}") from error
        click.echo(f"asked: {prompt}\nanswered in {time.monotonic() - began:.1f} s: {answer.strip()}")
        body = shlex.quote(json.dumps(request.body))
        click.echo(f"try it: curl {url}{request.path} -H 'Content-Type: application/json' -d {body}")
        if stop_after_answer:
            return
        try:
            click.echo("Ctrl-C stops it")
            process.wait()
        except StoppedError as stopped:
            how = str(stopped)
    click.echo(f"{how}; the server has ended")


def write_units(server: Server, model: Model, directory: Path) -> None:
    """Write `<name>.service` and `<name>.yaml`, and say so.

    Raises:
        InputError: the directory cannot be written.
    """
    from automodel_deploy.units import kubernetes_manifest, systemd_unit, unit_name

    name = unit_name(model.name)
    texts = {f"{name}.service": systemd_unit(server, model), f"{name}.yaml": kubernetes_manifest(server, model)}
    for file, text in texts.items():
        if text is None:
            click.echo(f"no Kubernetes manifest: {SECTION}.image names no container image")
            continue
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / file).write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"--output: {directory / file} cannot be written ({error.strerror})") from error
        click.echo(f"wrote {directory / file}")

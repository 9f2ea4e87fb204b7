"""`automodel plugins`: what is installed, what works, and what each provider takes."""

from __future__ import annotations

import sys

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from automodel.errors import InputError
from automodel.plugins import Plugin, Plugins, installed
from automodel.providers import Registered
from automodel.recipe.modules import TargetNotFoundError
from automodel.recipe.signature import Parameter, read_signature
from automodel.suggest import did_you_mean

WIDTH_OF_A_FILE = 10_000
"""Columns where the output is no terminal: nothing is cut or wrapped for a reader that is a program."""


@click.group(invoke_without_command=True)
@click.pass_context
def plugins(ctx: click.Context) -> None:
    """List the installed plugins, what they bring, and those that could not be loaded and why."""
    if ctx.invoked_subcommand is not None:
        return
    found = installed()
    table = _table("plugin", "version", "module", "brings", "state")
    for plugin in found.plugins:
        state = Text(f"broken: {plugin.problem}", style="red") if plugin.problem else Text("ok", style="green")
        brings = "\n".join(f"{kind}: {', '.join(names)}" for kind, names in _brings(found, plugin).items())
        if not sys.stdout.isatty():
            brings = brings.replace("\n", "; ")
        table.add_row(*map(Text, (plugin.name, plugin.version, plugin.module, brings)), state)
    _console().print(table)


@plugins.command()
@click.argument("name")
def show(name: str) -> None:
    """Show a provider's parameters (by name, alias or plugin:name), or a plugin's providers."""
    found = installed()
    plugin = next((plugin for plugin in found.plugins if plugin.name == name), None)
    entries = found.registry.find_any(name)
    if plugin is None and not entries:
        known = [p.name for p in found.plugins] + [
            spelling
            for kind in found.registry.kinds
            for entry in found.registry.providers(kind)
            for spelling in (entry.provider.name, *entry.provider.aliases)
        ]
        raise InputError(f"no plugin or provider is called `{name}`{did_you_mean(name, known, most=100)}")
    console = _console()
    if plugin is not None:
        _show_plugin(console, found, plugin)
    for entry in entries:
        _show_provider(console, entry)


def _show_plugin(console: Console, found: Plugins, plugin: Plugin) -> None:
    console.print(Text(f"{plugin.name} {plugin.version} ({plugin.module})", style="bold"))
    if plugin.problem:
        console.print(Text(f"broken: {plugin.problem}", style="red"))
        return
    table = _table("kind", "provider", "summary")
    for kind in found.registry.kinds:
        for entry in found.registry.providers(kind):
            if entry.plugin == plugin.name:
                table.add_row(*map(Text, (kind, entry.provider.name, entry.provider.summary)))
    for name, (provider, origin) in found.commands.items():
        if origin.name == plugin.name:
            table.add_row(*map(Text, ("command", name, provider.summary)))
    console.print(table)


def _show_provider(console: Console, entry: Registered) -> None:
    provider = entry.provider
    console.print(Text(f"{provider.name}: {entry.kind} provider of {entry.plugin}", style="bold"))
    if provider.summary:
        console.print(Text(provider.summary))
    for alias in provider.aliases:
        console.print(Text(f"also called {alias}"))
    try:
        signature = read_signature(provider.target)
    except TargetNotFoundError as error:
        raise InputError(f"the parameters of `{provider.name}` cannot be read: {error}") from error
    given = installed().registry.kinds[entry.kind].injected
    table = _table("parameter", "type", "default", "")
    for parameter in signature.parameters.values():
        if parameter.name not in given:
            table.add_row(*map(Text, _row(parameter)))
    if signature.open:
        table.add_row(Text("..."), Text(""), Text(""), Text("any further key"))
    console.print(table if table.row_count else Text("it takes no parameters"))


def _row(parameter: Parameter) -> tuple[str, str, str, str]:
    default = "required" if parameter.required else parameter.default_text
    return parameter.name, parameter.annotation_text, default, " ".join(parameter.doc.split())


def _brings(found: Plugins, plugin: Plugin) -> dict[str, list[str]]:
    brings: dict[str, list[str]] = {}
    for kind in found.registry.kinds:
        names = [entry.provider.name for entry in found.registry.providers(kind) if entry.plugin == plugin.name]
        if names:
            brings[kind] = names
    commands = [name for name, (_, origin) in found.commands.items() if origin.name == plugin.name]
    return brings | ({"command": commands} if commands else {})


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE, soft_wrap=False, highlight=False)

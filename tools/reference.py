"""Write docs/reference.md from the providers' signatures and docstrings.

tools/reference.py --write    write it
tools/reference.py --check    fail unless it is up to date
"""

import sys
from pathlib import Path

from automodel.plugins import installed
from automodel.recipe.signature import read_signature

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference.md"
HEAD = """\
# Reference of providers

Made by `tools/reference.py` from signatures and docstrings; do not edit. `automodel plugins show NAME` prints the same
for what is installed with you.
"""


def reference() -> str:
    """The page."""
    registry = installed().registry
    parts = [HEAD]
    for kind in registry.kinds.values():
        entries = registry.providers(kind.name)
        if not entries:
            continue
        sections = ", ".join(f"`{section}`" for section in kind.sections)
        parts.append(f"\n## {kind.name}" + (f" (section {sections})" if sections else "") + "\n")
        for entry in entries:
            provider = entry.provider
            default = " (default)" if provider.name == kind.default else ""
            parts.append(f"\n### `{provider.name}`{default}\n\nFrom {entry.plugin}: {provider.summary}.\n")
            if provider.aliases:
                parts.append("\nAlso: " + ", ".join(f"`{alias}`" for alias in provider.aliases) + ".\n")
            parts.append("\n" + parameters(provider.target, kind.injected))
    return "".join(parts)


def parameters(target: str, injected: tuple[str, ...]) -> str:
    """A table of what a recipe may set."""
    rows = [
        f"| `{name}` | `{cell(one.annotation_text or 'any')}` | "
        f"{'needed' if one.required else f'`{cell(one.default_text)}`'} | {cell(one.doc or '')} |\n"
        for name, one in read_signature(target).parameters.items()
        if name not in injected
    ]
    return "| parameter | type | default | |\n|---|---|---|---|\n" + "".join(rows) if rows else "Takes no parameters.\n"


def cell(text: str) -> str:
    """Text that does not end a cell."""
    return " ".join(text.split()).replace("|", "\\|")


def main(option: str) -> int:
    """Do what the option says; return the exit code."""
    page = reference()
    if option == "--write":
        PAGE.write_text(page, encoding="utf-8")
        return 0
    if option == "--check":
        if PAGE.read_text(encoding="utf-8") == page:
            return 0
        print("docs/reference.md is out of date; run tools/reference.py --write", file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) == 2 else ""))

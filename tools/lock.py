"""Keep `uv.lock` free of registry hosts, and true.

    tools/lock.py --write    resolve, then write uv.lock in portable form
    tools/lock.py --check    resolve, and fail unless the portable form of the result is the committed file
    tools/lock.py --clean    the git filter: full lock on standard input, portable form on standard output

A lock in portable form names no host: `uv sync` resolves again with its versions preferred and writes the full lock
into the working tree, which the clean filter (`git config filter.portable-lock.clean`) turns back on `git add`.
uv does not compare the hashes of such a lock, so --check does.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "uv.lock"


def portable(lock: str) -> str:
    """The lock without registries' hosts."""
    lock = re.sub(r'registry = "[^"]*"', 'registry = "."', lock)
    lock = re.sub(r'url = "[^"]*/([^/"]+)"', r'filename = "\1"', lock)
    return re.sub(r"(?ms)^\[manifest\]\n.*?\n\n", "", lock)


def resolve() -> str:
    """Run `uv lock` and return the portable form of its result."""
    subprocess.run(["uv", "lock", "--quiet"], cwd=ROOT, check=True)
    return portable(LOCK.read_text(encoding="utf-8"))


def main(option: str) -> int:
    """Do what the option says; return the exit code."""
    if option == "--clean":
        sys.stdout.write(portable(sys.stdin.read()))
        return 0
    if option == "--write":
        LOCK.write_text(resolve(), encoding="utf-8")
        return 0
    if option != "--check":
        print(__doc__, file=sys.stderr)
        return 2
    committed = subprocess.run(
        ["git", "show", "HEAD:uv.lock"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    if "://" in committed:
        print("uv.lock names a host; run tools/lock.py --write", file=sys.stderr)
        return 1
    if resolve() != committed:
        print("uv.lock is not what the pyproject files resolve to; run tools/lock.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) == 2 else ""))

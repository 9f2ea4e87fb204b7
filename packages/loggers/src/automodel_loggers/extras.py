"""Packages that only one logger needs."""

from __future__ import annotations

from importlib.util import find_spec

from automodel import InputError


def require(package: str, extra: str) -> None:
    """Check, without importing it, that a package is installed.

    Raises:
        InputError: it is not; says how to install it.
    """
    if find_spec(package) is None:
        raise InputError(f'the package {package} is not installed: pip install "automodel-loggers[{extra}]"')

"""A plugin that cannot be imported, since its author forgot a dependency."""

import a_package_that_nobody_has
from automodel import Provider, hookimpl


@hookimpl
def dataset_providers() -> tuple[Provider, ...]:
    return (Provider("broken-rows", "automodel_broken:rows", summary="rows of a package that is not there"),)


def rows() -> list[dict[str, list[int]]]:
    return a_package_that_nobody_has.rows()

"""The model registry `mlflow`: a version with recipe, metrics, lineage and files, in a database or on a server."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from automodel import InputError, RunError
from automodel.checkpoint.manifest import MANIFEST, read_manifest
from automodel.training.metrics import read_metrics
from ruamel.yaml import YAML

from automodel_deploy.interfaces import Version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

TAG = "automodel."
"""How the names of our tags begin."""
FILES = "files"
"""The version's files are in this directory of its run's artifacts, each export in one of its own."""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # its own 7 take minutes to say that nothing listens there
}
_MAX_PARAMS = 100
_MAX_METRICS = 1000
_MAX_PARAM_CHARACTERS = 6000
_MAX_NAME_CHARACTERS = 250
"""Limits of MLflow 3.17 (mlflow/utils/validation.py)."""


@dataclass(frozen=True)
class MLflow:
    """MLflow's model registry.

    Without `tracking_uri` and MLFLOW_TRACKING_URI it is MLflow's own default, a SQLite file `mlflow.db` in the working
    directory, with the files in `mlruns` beside it. Credentials of a server are MLFLOW_TRACKING_USERNAME and _PASSWORD,
    or MLFLOW_TRACKING_TOKEN.

    Args:
        experiment_name: the experiment that gets a run for each version; made if it is not there.
        tracking_uri: a server (https://...), or a database (sqlite:///mlflow.db); null is MLFLOW_TRACKING_URI.
        registered_model_name: what the versions are of; null is the experiment's name.
        alias: a name for the newest version, such as champion; clients load `models:/NAME@ALIAS`.
    """

    experiment_name: str
    tracking_uri: str | None = None
    registered_model_name: str | None = None
    alias: str | None = None

    def __post_init__(self) -> None:
        if bad := re.search(r"[/:]", self.name):
            raise InputError(f"MLflow takes no `{bad[0]}` in a model's name: give a registered_model_name without")
        if self.tracking_uri is not None and urlsplit(self.tracking_uri).username:
            raise InputError(
                "tracking_uri holds credentials, and recipes are logged: put the URI into MLFLOW_TRACKING_URI instead, "
                "and leave the key out"
            )

    @property
    def name(self) -> str:
        """Of the registered model."""
        return self.registered_model_name or self.experiment_name

    def register(self, checkpoint: Path, exports: list[Path], digest: str) -> Version:
        """Make a version of the registered model, or find the one that holds the same.

        A run of the experiment gets the checkpoint's recipe as parameters and file, the run's metrics up to the
        checkpoint, manifest, versions, lineage as tags, and the files; the version is made from it.

        Raises:
            InputError: mlflow is not installed.
            RunError: the registry refused or cannot be reached; no version was made.
        """
        if find_spec("mlflow") is None or find_spec("sqlalchemy") is None:
            raise InputError('mlflow is not installed: pip install "automodel-deploy[mlflow]"')
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient  # takes seconds, and is an extra
        from mlflow.exceptions import MlflowException

        _hush()
        client = MlflowClient(self.tracking_uri)
        where = _without_password(client.tracking_uri)
        try:
            version, is_new = self._version(client, checkpoint, exports, digest)
            if self.alias is not None:
                client.set_registered_model_alias(self.name, self.alias, version)
        except (MlflowException, OSError) as error:
            text = _without_password(str(error).splitlines()[0])
            raise RunError(f"MLflow at {where} did not register {checkpoint}: {text}") from error
        return Version(self.name, version, f"models:/{self.name}/{version}", where, is_new)

    def _version(self, client: MlflowClient, checkpoint: Path, exports: list[Path], digest: str) -> tuple[str, bool]:
        """The version's number, and whether it was made now."""
        known = client.search_model_versions(f"name = '{_escaped(self.name)}' and tags.`{TAG}digest` = '{digest}'")
        if known:
            return str(known[0].version), False
        tags = {f"{TAG}digest": digest, **lineage(checkpoint)}
        run = client.create_run(self._experiment(client), run_name=f"{self.name} {checkpoint.name}", tags=tags).info
        status = "FAILED"
        try:
            _log(client, run.run_id, checkpoint, exports)
            if not client.search_registered_models(f"name = '{_escaped(self.name)}'"):
                client.create_registered_model(self.name)
            made = client.create_model_version(self.name, f"{run.artifact_uri}/{FILES}", run.run_id, tags)
            status = "FINISHED"
        finally:
            client.set_terminated(run.run_id, status)
        return str(made.version), True

    def _experiment(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(self.experiment_name)
        experiment: str = found.experiment_id if found else client.create_experiment(self.experiment_name)
        return experiment


def lineage(checkpoint: Path) -> dict[str, str]:
    """Where a checkpoint comes from, as tags: run, step, recipe, base model, and the versions that made it."""
    manifest = read_manifest(checkpoint)
    model = _recipe(checkpoint).get("model") or {}
    base = model.get("pretrained_model_name_or_path") or model.get("_target_")
    tags = {
        "run_directory": str(checkpoint.resolve().parent),
        "checkpoint": checkpoint.name,
        "step": manifest["step"],
        "recipe_digest": manifest["recipe_digest"],
        "base_model": base,
    }
    versions = {f"version.{name}": version for name, version in manifest["versions"].items()}
    return {f"{TAG}{key}": str(value) for key, value in (tags | versions).items()}


def _log(client: MlflowClient, run_id: str, checkpoint: Path, exports: Sequence[Path]) -> None:
    from mlflow.entities import Param

    params = [Param(key, value) for key, value in _flat(_recipe(checkpoint))]
    for start in range(0, len(params), _MAX_PARAMS):
        client.log_batch(run_id, params=params[start : start + _MAX_PARAMS])
    history = _history(checkpoint)
    while some := list(islice(history, _MAX_METRICS)):
        client.log_batch(run_id, metrics=some)
    environment = checkpoint.parent / "environment.json"
    for file in (checkpoint / "recipe.yaml", checkpoint / MANIFEST, environment):
        if file.exists():
            client.log_artifact(run_id, str(file))
    for directory in exports or [checkpoint / "model"]:
        client.log_artifacts(run_id, str(directory), f"{FILES}/{directory.name}")


def _recipe(checkpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe", pure=True).load((checkpoint / "recipe.yaml").read_text(encoding="utf-8"))
    return found


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values, as MLflow takes them."""
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from _flat(child, f"{prefix}.{key}" if prefix else str(key))
        return
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    yield re.sub(r"[^\w\-. /]", "_", prefix)[:_MAX_NAME_CHARACTERS], text[:_MAX_PARAM_CHARACTERS]


def _history(checkpoint: Path) -> Iterator[Metric]:
    """The metrics of the run up to the checkpoint; the file says when none was measured, so all are of now."""
    from mlflow.entities import Metric

    last, now = read_manifest(checkpoint)["step"], int(time.time() * 1000)
    path = checkpoint.parent / "metrics.jsonl"
    for line in read_metrics(path):
        if line["step"] <= last:
            for name, value in line.items():
                if name != "step" and isinstance(value, int | float):
                    yield Metric(name, float(value), now, line["step"])


def _hush() -> None:
    """Keep MLflow's and its database library's progress off the console; warnings are shown."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _without_password(text: str) -> str:
    return re.sub(r"://[^/@\s]*@", "://***@", text)


def _escaped(name: str) -> str:
    return name.replace("'", "\\'")

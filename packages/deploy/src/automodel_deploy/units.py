"""The units a team runs a server by: a service of systemd and a manifest for Kubernetes."""

from __future__ import annotations

import getpass
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from automodel_deploy.interfaces import Model, Server

_MODELS = "/models"


def unit_name(name: str) -> str:
    """A name that systemd and Kubernetes take: lower-case letters, digits and dashes, at most 50."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-") or "model"


def systemd_unit(server: Server, model: Model) -> str:
    """A service of systemd that runs the server on this machine, as the user who wrote it.

    Raises:
        InputError: the server cannot serve this model so.
    """
    environment = [f"Environment={_quoted(f'{name}={value}')}" for name, value in server.environment(model).items()]
    lines = [
        f"# cp {unit_name(model.name)}.service /etc/systemd/system/",
        f"# systemctl daemon-reload && systemctl enable --now {unit_name(model.name)}",
        "[Unit]",
        f"Description={model.name.replace('%', '%%')}, served by AutoModel",
        "Wants=network-online.target",
        "After=network-online.target",
        "",
        "[Service]",
        "Type=exec",
        f"User={getpass.getuser()}",
        *environment,
        "# for secrets, such as HF_TOKEN=...; it need not be there",
        f"EnvironmentFile=-/etc/automodel/{unit_name(model.name)}.env",
        f"ExecStart={' '.join(_quoted(word, is_command=True) for word in server.command(model))}",
        "# the server is told to end and ends its workers; what is left after a while is killed",
        "KillMode=mixed",
        "TimeoutStopSec=30",
        "Restart=on-failure",
        "RestartSec=10",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
        "",
    ]
    return "\n".join(lines)


def _quoted(word: str, *, is_command: bool = False) -> str:
    """A word as systemd reads it back (systemd.service(5), systemd.syntax(7))."""
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    if is_command:
        text = text.replace("$", "$$")
    return f'"{text}"' if re.search(r"[\s\"'\\;]", word) else text


def kubernetes_manifest(server: Server, model: Model) -> str | None:
    """A Deployment and a Service; None if the server has no container image.

    A model that lies in a directory is read from a volume claim `<name>-model`; a header says what to put on it.

    Raises:
        InputError: the server cannot serve this model so.
    """
    name = unit_name(model.name)
    inside, copies = _in_container(model)
    container = server.container(inside)
    if container is None:
        return None
    probe = {"httpGet": {"path": server.health, "port": "http"}}
    pod: dict[str, Any] = {
        "name": "server",
        "image": container.image,
        "command": container.command,
        "env": [{"name": key, "value": value} for key, value in container.environment.items()],
        "envFrom": [{"secretRef": {"name": name, "optional": True}}],
        "ports": [{"name": "http", "containerPort": server.port}],
        # a server that loads is left alone for as long as it may take; then it must stay healthy
        "startupProbe": {**probe, "periodSeconds": 10, "failureThreshold": max(1, -(-server.start_timeout_s // 10))},
        "readinessProbe": {**probe, "periodSeconds": 10},
        "livenessProbe": {**probe, "periodSeconds": 30, "failureThreshold": 4},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}]
    if container.gpus:
        pod["resources"] = {"limits": {"nvidia.com/gpu": container.gpus}}
    if copies:
        pod["volumeMounts"].append({"name": "model", "mountPath": _MODELS, "readOnly": True})
        volumes.append({"name": "model", "persistentVolumeClaim": {"claimName": f"{name}-model", "readOnly": True}})
    labels = {"app.kubernetes.io/name": name}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                # of a service called vllm, Kubernetes would make a variable VLLM_PORT, which vLLM reads
                "spec": {"enableServiceLinks": False, "containers": [pod], "volumes": volumes},
            },
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    # false keeps the order that people write; ruamel types the attribute by its default alone
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.representer.ignore_aliases = lambda data: True
    stream = io.StringIO()
    yaml.dump_all([deployment, service], stream)
    return _header(name, copies) + stream.getvalue()


def _in_container(model: Model) -> tuple[Model, dict[str, str]]:
    """The model with its paths in the container, and what lies where: {path there: path here}."""
    copies = {}
    location, adapter = model.location, model.adapter
    if Path(location).is_absolute():
        location = f"{_MODELS}/{'base' if adapter else 'model'}"
        copies[location] = model.location
    if adapter is not None:
        copies[f"{_MODELS}/adapter"] = str(adapter.directory)
        adapter = replace(adapter, directory=Path(_MODELS) / "adapter")
    return replace(model, location=location, adapter=adapter), copies


def _header(name: str, copies: dict[str, str]) -> str:
    lines = [f"# kubectl apply -f {name}.yaml; clients in the cluster then reach http://{name}/v1"]
    if copies:
        lines += [f"# The volume claim {name}-model, mounted at {_MODELS}, must hold:"]
        lines += [f"#   {there.removeprefix(_MODELS + '/')}/: the files of {here}" for there, here in copies.items()]
    lines += [f"# Keys of a secret {name}, if there is one, become environment variables (HF_TOKEN)."]
    return "\n".join([*lines, ""])

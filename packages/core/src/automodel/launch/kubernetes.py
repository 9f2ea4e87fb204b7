"""The launcher `kubernetes`: a Kubeflow PyTorchJob with the recipe inside."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from automodel.errors import InputError
from automodel.launch.slurm import run_tool

_RECIPES = "/recipe"


@dataclass(frozen=True)
class Kubernetes:
    """A PyTorchJob of the Kubeflow training operator (kubeflow.org/v1).

    Args:
        image: the container image, with AutoModel installed.
        name: of the job.
        namespace: where it runs.
        nodes: pods.
        min_nodes: pods with which the run goes on when others are lost; null is `nodes`.
        gpus_per_node: GPUs of a pod, each with a process.
        cpus: cores of a pod, as Kubernetes writes them.
        memory: of a pod, as Kubernetes writes it.
        max_restarts: how often processes are started anew when one has died.
        volumes: persistent volume claims by the path they are mounted at; checkpoint.checkpoint_dir must lie on one.
        secrets: names of secrets whose keys become environment variables (tokens).
        env: further environment variables.
        grace_seconds: how long a pod may take to save after SIGTERM.
        shared_memory: size of /dev/shm, which data loader workers and NCCL use.
    """

    image: str
    name: str = "automodel"
    namespace: str = "default"
    nodes: int = 1
    min_nodes: int | None = None
    gpus_per_node: int = 1
    cpus: str | None = None
    memory: str | None = None
    max_restarts: int = 3
    volumes: dict[str, str] | None = None
    secrets: list[str] | None = None
    env: dict[str, str] | None = None
    grace_seconds: int = 300
    shared_memory: str = "16Gi"

    def __post_init__(self) -> None:
        if not 1 <= (self.min_nodes or 1) <= self.nodes:
            raise InputError(f"min_nodes must be at least 1 and at most nodes: {self.min_nodes}, {self.nodes}")

    def script(self, command: Sequence[str], files: Mapping[str, str]) -> str:
        """The manifest: a ConfigMap with the recipe files (path: text), and the job that runs `command` on them."""
        places = {path: f"{number}-{Path(path).name}" for number, path in enumerate(files)}
        words = [f"{_RECIPES}/{places[word]}" if word in places else word for word in command]
        recipes = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"{self.name}-recipe", "namespace": self.namespace},
            "data": {places[path]: text for path, text in files.items()},
        }
        job = {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                "nprocPerNode": str(max(1, self.gpus_per_node)),
                "elasticPolicy": {
                    "rdzvBackend": "c10d",
                    "minReplicas": self.min_nodes or self.nodes,
                    "maxReplicas": self.nodes,
                    "maxRestarts": self.max_restarts,
                },
                "runPolicy": {"cleanPodPolicy": "None"},
                "pytorchReplicaSpecs": {
                    "Worker": {
                        "replicas": self.nodes,
                        "restartPolicy": "OnFailure",
                        "template": {"spec": self._pod(words)},
                    }
                },
            },
        }
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        stream = io.StringIO()
        yaml.dump_all([recipes, job], stream)
        return stream.getvalue()

    def submit(self, script: str, directory: Path) -> str:
        """Hand the manifest to kubectl and return what it says.

        Raises:
            InputError: there is no kubectl here.
            RunError: it refused.
        """
        return run_tool(["kubectl", "apply", "-f", "-"], script)

    def _pod(self, words: list[str]) -> dict[str, Any]:
        limits = {"nvidia.com/gpu": self.gpus_per_node or None, "cpu": self.cpus, "memory": self.memory}
        mounts = {"recipe": _RECIPES, "shm": "/dev/shm"}
        claims = {
            f"volume-{number}": (path, claim) for number, (path, claim) in enumerate((self.volumes or {}).items())
        }
        container: dict[str, Any] = {
            "name": "pytorch",  # the operator looks for this name
            "image": self.image,
            # torchrun's agent in it reads the PET_ variables in which the operator gives rendezvous, pods and restarts
            "command": ["automodel", *words, "--nproc-per-node", str(max(1, self.gpus_per_node))],
            "resources": {"limits": {name: value for name, value in limits.items() if value is not None}},
            "env": [{"name": name, "value": value} for name, value in (self.env or {}).items()],
            "envFrom": [{"secretRef": {"name": name}} for name in self.secrets or ()],
            "volumeMounts": [
                *({"name": name, "mountPath": path} for name, path in mounts.items()),
                *({"name": name, "mountPath": path} for name, (path, _) in claims.items()),
            ],
        }
        return {
            "terminationGracePeriodSeconds": self.grace_seconds,
            "containers": [container],
            "volumes": [
                {"name": "recipe", "configMap": {"name": f"{self.name}-recipe"}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": self.shared_memory}},
                *({"name": name, "persistentVolumeClaim": {"claimName": claim}} for name, (_, claim) in claims.items()),
            ],
        }

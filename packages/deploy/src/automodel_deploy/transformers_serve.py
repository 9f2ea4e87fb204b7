"""The server `transformers`: `transformers serve`, which needs no more than training does."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

from automodel import InputError
from automodel.notices import notice

from automodel_deploy.interfaces import Container, Model
from automodel_deploy.machine import num_accelerators, require_port


@dataclass(frozen=True)
class TransformersServe:
    """`transformers serve`: simple, on any device, one answer after the other; for trying out and for tests.

    Clients ask for the model by its directory.

    Args:
        max_batch_size: has no effect, which a note says: the server has no limit.
        tensor_parallel_size: only 1.
        host: the address to listen on; 0.0.0.0 is all.
        port: the port to listen on.
        device: such as cpu or cuda:0; auto takes an accelerator where there is one.
        dtype: of weights and activations; auto is the model's own.
        trust_remote_code: run Python code that comes with the model. A recipe that sets it is refused without the flag
            `--allow-target transformers_modules`.
        start_timeout_s: seconds after which a server that is not ready is given up.
        image: a container image with transformers[serving]; null writes no Kubernetes manifest.
    """

    max_batch_size: int | None = None
    tensor_parallel_size: int = 1
    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False
    start_timeout_s: int = 600
    image: str | None = None

    health: ClassVar[str] = "/health"

    def __post_init__(self) -> None:
        require_port(self.port)
        if self.tensor_parallel_size != 1:
            raise InputError(
                f"tensor_parallel_size: {self.tensor_parallel_size}: `transformers serve` does not lay a model over "
                "several devices; use framework: vllm, or tensor_parallel_size: 1"
            )
        if self.max_batch_size is not None:
            notice(
                f"max_batch_size: {self.max_batch_size} has no effect: `transformers serve` has no limit, and answers "
                "one request after the other"
            )

    def asked_for(self, model: Model) -> str:
        """The directory or Hub id: the server knows no other name."""
        return model.location

    def command(self, model: Model) -> list[str]:
        """The words that start it here.

        Raises:
            InputError: the model is an adapter that is not merged.
        """
        own = Path(sys.executable).parent / "transformers"  # of this environment, which need not be active
        found = str(own) if own.exists() else shutil.which("transformers")
        device = self.device if self.device != "auto" or num_accelerators() else "cpu"
        return [found or "transformers", *replace(self, device=device)._words(model)]

    def environment(self, model: Model) -> dict[str, str]:
        """No network for what lies here."""
        return {"HF_HUB_OFFLINE": "1"} if Path(model.location).is_absolute() else {}

    def prepare(self) -> None:
        """Make sure that what serving needs is installed, and that `/v1/models` has a cache to list.

        Raises:
            InputError: it is not installed.
        """
        if missing := [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]:
            raise InputError(
                f"`transformers serve` needs {' and '.join(missing)}: "
                'pip install "automodel-deploy[transformers-serve]"'
            )
        # /v1/models of transformers 5.23 answers 500 until there is one; the end-to-end test tells if that changes
        home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
        Path(os.environ.get("HF_HUB_CACHE", home / "hub")).mkdir(parents=True, exist_ok=True)

    def container(self, model: Model) -> Container | None:
        """How it runs in a cluster.

        Raises:
            InputError: the model is an adapter that is not merged.
        """
        words = replace(self, host="0.0.0.0")._words(model)
        if self.image is None:
            return None
        return Container(self.image, ["transformers", *words], self.environment(model), int(self.device != "cpu"))

    def _words(self, model: Model) -> list[str]:
        if model.adapter is not None:
            raise InputError(
                f"`transformers serve` serves no adapter beside its base ({model.adapter.directory}): export the "
                "checkpoint merged (a section checkpoint_management.export_config, or `automodel merge`) and serve "
                "that, or use framework: vllm"
            )
        words = ["serve", model.location, "--host", self.host, "--port", str(self.port)]
        words += ["--device", self.device, "--dtype", self.dtype]
        return words + (["--trust-remote-code"] if self.trust_remote_code else [])

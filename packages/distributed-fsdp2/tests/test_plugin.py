"""What the plugin promises to core: light discovery, documented parameters, NeMo's names."""

import inspect
import subprocess
import sys

from automodel.plugin import KINDS
from automodel_distributed_fsdp2 import plugin

[FSDP2] = plugin.parallelism_providers()


def test_discovery_does_not_import_torch():
    code = "import sys, automodel_distributed_fsdp2.plugin; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"False\n"


def test_every_parameter_is_typed_and_documented():
    [injected] = [kind.injected for kind in KINDS if kind.name == "parallelism"]
    target = FSDP2.load()
    for name, parameter in inspect.signature(target).parameters.items():
        assert parameter.annotation is not parameter.empty, name
        assert f"\n        {name}: " in target.__doc__, name
    assert set(injected) <= inspect.signature(target).parameters.keys()


def test_the_name_of_nemo_is_known():
    assert "nemo_automodel.components.distributed.fsdp2.FSDP2Manager" in FSDP2.aliases

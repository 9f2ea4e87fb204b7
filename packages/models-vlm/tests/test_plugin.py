"""What the plugin promises to core: light discovery, loadable targets, documented parameters, NeMo's names."""

import inspect
import subprocess
import sys

import pytest
from automodel.plugins import installed
from automodel_models_vlm import plugin
from automodel_models_vlm.collate import conversations
from automodel_models_vlm.image_text import cord_v2, medpix, rdr
from automodel_models_vlm.image_text_to_text import from_config, from_pretrained

PROVIDERS = [*plugin.model_providers(), *plugin.dataset_providers(), *plugin.collate_providers()]


def test_discovery_and_the_model_import_neither_torch_nor_transformers():
    code = (
        "import sys, automodel_models_vlm.plugin; heavy = {'torch', 'transformers', 'pyarrow', 'datasets', 'PIL'};"
        "print(sorted({'numpy', *heavy} & set(sys.modules)));"
        "import automodel_models_vlm.image_text_to_text; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
def test_every_parameter_is_typed_and_documented(provider):
    target = provider.load()
    for name, parameter in inspect.signature(target).parameters.items():
        assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD, name
        assert parameter.annotation is not parameter.empty, name
        assert f"\n        {name}: " in target.__doc__, name
    assert provider.summary


VLM = "nemo_automodel.components.datasets.vlm"


@pytest.mark.parametrize(
    ("kind", "name", "target"),
    [
        ("model", "nemo_automodel.NeMoAutoModelForImageTextToText.from_pretrained", from_pretrained),
        ("model", "nemo_automodel.NeMoAutoModelForImageTextToText.from_config", from_config),
        (
            "model",
            "nemo_automodel.components._transformers.auto_model.NeMoAutoModelForImageTextToText.from_pretrained",
            from_pretrained,
        ),
        ("dataset", f"{VLM}.datasets.make_cord_v2_dataset", cord_v2),
        ("dataset", f"{VLM}.datasets.make_rdr_dataset", rdr),
        ("dataset", f"{VLM}.datasets.make_medpix_dataset", medpix),
        ("collate", f"{VLM}.collate_fns.default_collate_fn", conversations),
        ("collate", f"{VLM}.collate_fns.qwen2_5_collate_fn", conversations),
    ],
)
def test_names_of_nemo_are_known(kind, name, target):
    assert installed().registry.load(kind, name) is target

"""What the plugin promises to core: light discovery, loadable targets, documented parameters, NeMo's names."""

import inspect
import subprocess
import sys

import pytest
from automodel_models_llm import plugin

PROVIDERS = [*plugin.model_providers(), *plugin.dataset_providers()]
INJECTED = {"processor", "seed"}


def run(code):
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_discovery_and_data_sets_import_neither_torch_nor_transformers():
    code = (
        "import sys, automodel_models_llm.plugin; heavy = {'torch', 'transformers', 'pyarrow', 'datasets'};"
        "print(sorted({'numpy', *heavy} & set(sys.modules)));"
        "import automodel_models_llm.text_instruction, automodel_models_llm.causal_lm;"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run(code).split("\n")[:2] == ["[]", "[]"]


def test_the_tokenizer_of_a_plain_directory_loads_without_torch(smollm_tokenizer):
    code = (
        "import sys; from automodel_models_llm.causal_lm import from_config;"
        f"source = from_config({{'model_type': 'llama'}}, tokenizer={smollm_tokenizer.name_or_path!r});"
        "source.load_processor(); print('torch' in sys.modules)"
    )
    assert run(code).strip() == "False"


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
def test_every_parameter_is_typed_and_documented(provider):
    target = provider.load()
    for name, parameter in inspect.signature(target).parameters.items():
        assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD, name
        assert parameter.annotation is not parameter.empty, name
        assert f"\n        {name}: " in target.__doc__, name
    assert provider.summary


def test_names_of_nemo_are_known():
    names = {alias for provider in PROVIDERS for alias in provider.aliases}
    assert {
        "nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained",
        "nemo_automodel.NeMoAutoModelForCausalLM.from_config",
        "nemo_automodel.components.datasets.llm.text_instruction_dataset.TextInstructionDataset",
        "nemo_automodel.components.datasets.llm.column_mapped_text_instruction_dataset.ColumnMappedTextInstructionDataset",
    } <= names

"""What this plugin brings to AutoModel: causal language models and text data sets."""

from automodel import Provider, hookimpl

AUTOMODEL_HOOKS = 1

_NEMO_MODEL = (
    "nemo_automodel.NeMoAutoModelForCausalLM",
    "nemo_automodel._transformers.NeMoAutoModelForCausalLM",
    "nemo_automodel._transformers.auto_model.NeMoAutoModelForCausalLM",
    "nemo_automodel.components._transformers.NeMoAutoModelForCausalLM",
    "nemo_automodel.components._transformers.auto_model.NeMoAutoModelForCausalLM",
    "transformers.AutoModelForCausalLM",
)
_NEMO_DATA = ("nemo_automodel.components.datasets.llm", "nemo_automodel.datasets.llm")


@hookimpl
def model_providers() -> tuple[Provider, ...]:
    """Causal language models of transformers."""
    return (
        Provider(
            "causal-lm",
            "automodel_models_llm.causal_lm:from_pretrained",
            aliases=tuple(f"{path}.from_pretrained" for path in _NEMO_MODEL),
            summary="a pretrained causal language model: Hub id, directory, GGUF file, or `package:` location",
        ),
        Provider(
            "causal-lm-from-config",
            "automodel_models_llm.causal_lm:from_config",
            aliases=tuple(f"{path}.from_config" for path in _NEMO_MODEL),
            summary="a causal language model with random weights, for pre-training and tests",
        ),
    )


@hookimpl
def dataset_providers() -> tuple[Provider, ...]:
    """Text data sets from files or the Hub."""
    return (
        Provider(
            "text-instruction",
            "automodel_models_llm.text_instruction:text_instruction",
            aliases=(
                *(f"{path}.text_instruction_dataset.TextInstructionDataset" for path in _NEMO_DATA),
                *(f"{path}.TextInstructionDataset" for path in _NEMO_DATA),
            ),
            summary="instructions and answers, prompts, questions, chats or texts; loss on the answers",
        ),
        Provider(
            "chat",
            "automodel_models_llm.text_instruction:chat",
            aliases=tuple(f"{path}.ChatDataset" for path in _NEMO_DATA),
            summary="conversations in `messages` rendered by the chat template; loss on the assistant's turns",
        ),
        Provider(
            "column-mapped",
            "automodel_models_llm.text_instruction:column_mapped",
            aliases=(
                *(
                    f"{path}.column_mapped_text_instruction_dataset.ColumnMappedTextInstructionDataset"
                    for path in _NEMO_DATA
                ),
                *(f"{path}.ColumnMappedTextInstructionDataset" for path in _NEMO_DATA),
            ),
            summary="NeMo's ColumnMappedTextInstructionDataset: columns named by `column_mapping`",
        ),
        Provider(
            "plain-text",
            "automodel_models_llm.text_instruction:plain_text",
            summary="running text for continued pre-training; loss on every token, long texts are split",
        ),
    )

"""What this plugin brings to AutoModel: vision-language models, data sets of images and text, and their batches."""

from automodel import Provider, hookimpl

AUTOMODEL_HOOKS = 1

_NEMO_MODEL = (
    "nemo_automodel.NeMoAutoModelForImageTextToText",
    "nemo_automodel._transformers.NeMoAutoModelForImageTextToText",
    "nemo_automodel._transformers.auto_model.NeMoAutoModelForImageTextToText",
    "nemo_automodel.components._transformers.NeMoAutoModelForImageTextToText",
    "nemo_automodel.components._transformers.auto_model.NeMoAutoModelForImageTextToText",
    "transformers.AutoModelForImageTextToText",
)
_NEMO_DATA = ("nemo_automodel.components.datasets.vlm", "nemo_automodel.datasets.vlm")


@hookimpl
def model_providers() -> tuple[Provider, ...]:
    """Vision-language models of transformers."""
    return (
        Provider(
            "image-text-to-text",
            "automodel_models_vlm.image_text_to_text:from_pretrained",
            aliases=tuple(f"{path}.from_pretrained" for path in _NEMO_MODEL),
            summary="a pretrained vision-language model: Hub id, directory, or `package:` location",
        ),
        Provider(
            "image-text-to-text-from-config",
            "automodel_models_vlm.image_text_to_text:from_config",
            aliases=tuple(f"{path}.from_config" for path in _NEMO_MODEL),
            summary="a vision-language model with random weights, for pre-training and tests",
        ),
    )


@hookimpl
def dataset_providers() -> tuple[Provider, ...]:
    """Data sets of images and text from files or the Hub."""
    return (
        Provider(
            "image-chat",
            "automodel_models_vlm.image_text:image_chat",
            summary="conversations with images; loss on the assistant's turns",
        ),
        Provider(
            "image-text-pairs",
            "automodel_models_vlm.image_text:image_text_pairs",
            summary="an image and a text a row, by the names of their columns; loss on the text",
        ),
        Provider(
            "cord-v2",
            "automodel_models_vlm.image_text:cord_v2",
            aliases=tuple(f"{path}.datasets.make_cord_v2_dataset" for path in _NEMO_DATA),
            summary="receipts in the structure of CORD-v2, and what is written on them",
        ),
        Provider(
            "rdr",
            "automodel_models_vlm.image_text:rdr",
            aliases=tuple(f"{path}.datasets.make_rdr_dataset" for path in _NEMO_DATA),
            summary="NeMo's make_rdr_dataset: images and their descriptions",
        ),
        Provider(
            "medpix",
            "automodel_models_vlm.image_text:medpix",
            aliases=tuple(f"{path}.datasets.make_medpix_dataset" for path in _NEMO_DATA),
            summary="NeMo's make_medpix_dataset: questions about medical images",
        ),
    )


@hookimpl
def collate_providers() -> tuple[Provider, ...]:
    """How conversations with images become a micro-batch."""
    names = ("default_collate_fn", "qwen2_5_collate_fn")
    return (
        Provider(
            "conversations",
            "automodel_models_vlm.collate:conversations",
            aliases=tuple(f"{path}.collate_fns.{name}" for path in _NEMO_DATA for name in names),
            summary="conversations with images, by the model's processor; loss on the assistant's turns",
        ),
    )

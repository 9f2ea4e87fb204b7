"""What is frozen by name or pattern is exactly that part of the model."""

import pytest
import torch
from automodel import InputError
from automodel_models_vlm.image_text_to_text import from_pretrained

CPU = torch.device("cpu")
PROJECTORS = {
    "gemma3": ("model.multi_modal_projector.",),
    "qwen3_vl": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
}
TOWERS = {"gemma3": ("model.vision_tower.",), "qwen3_vl": ("model.visual.",)}
TEXT = ("model.language_model.", "lm_head.")
EMBEDDINGS = ("model.language_model.embed_tokens.",)


@pytest.fixture(params=["gemma3", "qwen3_vl"])
def family(request):
    return request.param


@pytest.fixture
def frozen(family, directory_of):
    """(names that are frozen, all names) of the model with `freeze`."""

    def load(freeze, make="load_module"):
        module = getattr(from_pretrained(str(directory_of(family)), freeze=freeze), make)(CPU)
        parameters = dict(module.named_parameters())
        return {name for name, value in parameters.items() if not value.requires_grad}, set(parameters)

    return load


def starting(names, prefixes):
    found = {name for name in names if name.startswith(prefixes)}
    assert found
    return found


def test_nothing_is_frozen_unasked(frozen):
    for freeze in (None, []):
        assert frozen(freeze)[0] == set()


def test_the_vision_tower_is_frozen_without_its_projector(family, frozen):
    names, everything = frozen("vision_tower")
    assert names == starting(everything, TOWERS[family]) - starting(everything, PROJECTORS[family])


def test_the_projector_is_frozen_wherever_it_lies(family, frozen):
    names, everything = frozen("projector")
    assert names == starting(everything, PROJECTORS[family])


def test_the_language_model_is_frozen_with_its_embeddings_and_output_matrix(frozen):
    names, everything = frozen(["language_model"])
    assert names == starting(everything, TEXT)


def test_the_embeddings_are_frozen_alone(frozen):
    names, everything = frozen("embeddings")
    assert names == starting(everything, EMBEDDINGS)


def test_the_output_matrix_is_frozen_with_the_embeddings_only_where_it_is_the_same(directory_of):
    trained = {}
    for family in ("gemma3", "qwen3_vl"):
        module = from_pretrained(str(directory_of(family)), freeze="embeddings").load_module(CPU)
        trained[family] = module.get_output_embeddings().weight.requires_grad
    assert trained == {"gemma3": False, "qwen3_vl": True}


def test_a_pattern_freezes_the_parameters_it_matches(frozen):
    names, everything = frozen("*.layers.0.mlp.*_proj.weight")
    assert names == {f"model.language_model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    assert names < everything


def test_the_name_of_a_module_freezes_what_is_in_it(frozen):
    assert frozen(["model.language_model.layers.0"]) == frozen(["model.language_model.layers.0.*"])


def test_several_names_are_frozen_together(family, frozen):
    names, everything = frozen(["vision_tower", "projector", "*norm*"])
    assert names == starting(everything, (*TOWERS[family], *PROJECTORS[family])) | {
        n for n in everything if "norm" in n
    }


def test_a_model_without_values_is_frozen_alike(frozen):
    assert frozen(["vision_tower", "embeddings"]) == frozen(["vision_tower", "embeddings"], "empty_module")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("vision_towr", "did you mean `vision_tower`"),
        ("projection", "did you mean `projector`"),
        ("model.language_modl.norm.*", r"did you mean `model\.language_model\.norm`"),
        ("*.nothing.*", "means no parameter of this model"),
    ],
)
def test_names_that_mean_nothing_are_told(name, near, frozen):
    with pytest.raises(InputError, match=r"freeze: `.*` means no parameter of this model") as error:
        frozen(["projector", name])
    assert error.match(near)

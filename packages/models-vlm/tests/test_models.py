"""Vision-language models by place and by configuration: what is loaded, and what is refused."""

import json
import shutil

import pytest
import tiny_vlm
import torch
import transformers
from automodel import InputError
from automodel.parallel.weights import give_memory, parameter_slots
from automodel_huggingface.conversations import Conversation
from automodel_models_vlm.collate import conversations
from automodel_models_vlm.image_text_to_text import from_config, from_pretrained
from PIL import Image

CPU = torch.device("cpu")
FAMILIES = ["gemma3", "qwen3_vl", "smolvlm", "llava"]


def batch_of(processor, size=(60, 50)):
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Seven"}]}
    sample = {"conversation": Conversation([question, answer]), "images": [Image.new("RGB", size, "red")]}
    return conversations(processor)([{**sample, "place": "train.jsonl:1"}])


def tensors(module):
    return dict(module.named_parameters()) | dict(module.named_buffers())


def assert_equal(one, other, batch):
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
        assert ours[name].requires_grad == value.requires_grad, name
    with torch.no_grad():
        assert torch.equal(one.eval()(**batch).logits, other.eval()(**batch).logits)


def loaded_whole(source):
    torch.manual_seed(1)
    return source.load_module(CPU)


def filled(source):
    module = source.empty_module(CPU)
    assert all(parameter.is_meta for parameter in module.parameters())
    slots = parameter_slots(module)
    give_memory(module, CPU)
    torch.manual_seed(1)
    source.load_weights(module, {name: getattr(owner, key) for name, (owner, key) in slots.items()})
    return module


@pytest.mark.parametrize("family", FAMILIES)
def test_a_directory_gives_the_model_and_processor_of_transformers(family, directory_of):
    directory = directory_of(family)
    source = from_pretrained(str(directory))
    processor = transformers.AutoProcessor.from_pretrained(directory)
    plain = transformers.AutoModelForImageTextToText.from_pretrained(directory)
    assert type(source.load_processor()) is type(processor)
    batch = batch_of(source.load_processor())
    assert batch["input_ids"].tolist() == batch_of(processor)["input_ids"].tolist()
    assert_equal(source.load_module(CPU), plain, batch)
    assert source.name == str(directory)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_directory_is_read_in_parts_as_it_is_read_whole(family, dtype, directory_of, processor_of):
    source = from_pretrained(str(directory_of(family)), torch_dtype=dtype, freeze="vision_tower")
    module = filled(source)
    assert module.dtype == getattr(torch, dtype)
    assert_equal(module, loaded_whole(source), batch_of(processor_of(family)))


@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl"])
def test_random_weights_are_the_same_in_parts_and_whole(family, directory_of, processor_of):
    source = from_config(str(directory_of(family)), freeze="projector")
    assert_equal(filled(source), loaded_whole(source), batch_of(processor_of(family)))
    plain = transformers.AutoModelForImageTextToText.from_pretrained(directory_of(family))
    assert not torch.equal(loaded_whole(source).get_input_embeddings().weight, plain.get_input_embeddings().weight)


def test_a_mapping_configures_a_model_with_the_processor_of_a_place(directory_of):
    directory = directory_of("qwen3_vl")
    settings = json.loads((directory / "config.json").read_text())
    settings["text_config"]["num_hidden_layers"] = 1
    source = from_config(settings, processor_name_or_path=str(directory), torch_dtype="bfloat16")
    module = source.load_module(CPU)
    assert len(module.model.language_model.layers) == 1
    assert module.dtype == torch.bfloat16
    assert source.load_processor().image_processor is not None
    assert source.name == "random qwen3_vl"


def test_settings_of_the_processor_change_how_images_are_read(directory_of):
    lengths = []
    for settings in (None, {"size": {"shortest_edge": 32 * 32, "longest_edge": 32 * 64}}):
        source = from_pretrained(str(directory_of("qwen3_vl")), processor=settings)
        lengths.append(batch_of(source.load_processor(), (96, 96))["input_ids"].shape[1])
    assert lengths[0] > lengths[1]


def test_settings_that_no_part_of_the_processor_takes_are_told(directory_of):
    for family in ("gemma3", "qwen3_vl", "smolvlm", "llava"):
        for setting, near in (("image_men", "image_mean"), ("nonsense", "known")):
            source = from_pretrained(str(directory_of(family)), processor={setting: 5})
            with pytest.raises(InputError, match=rf"takes no `{setting}`.*{near}"):
                source.load_processor()


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_of_text(directory_of, tmp_path):
    directory = shutil.copytree(directory_of("llava"), tmp_path / "model")
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    for gone in (["pad_token"], ["eos_token"]):
        for name in gone:
            del settings[name]
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        source = from_pretrained(str(directory))
        if gone == ["pad_token"]:
            assert source.load_processor().tokenizer.pad_token == "</s>"
    with pytest.raises(InputError, match="neither a pad nor an end-of-text token"):
        source.load_processor()


@pytest.fixture
def text_model(tmp_path):
    """The directory of a model that reads no images."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tiny_vlm.byte_level(["</s>"]), eos_token="</s>")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    return str(tmp_path / "text")


def test_a_model_of_text_is_refused(text_model):
    with pytest.raises(InputError, match=rf"{text_model} has no processor of images: .*\(model: causal-lm\)"):
        from_pretrained(text_model).load_processor()
    for make in ("load_module", "empty_module"):
        with pytest.raises(InputError):
            getattr(from_pretrained(text_model), make)(CPU)


def test_a_model_without_its_processor_is_refused(directory_of, tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(directory_of("gemma3") / name, directory)
    with pytest.raises(InputError, match=f"the processor of {directory} cannot be loaded"):
        from_pretrained(str(directory)).load_processor()


def test_gguf_files_are_refused(tmp_path):
    (tmp_path / "model.gguf").touch()
    for make in (from_pretrained, from_config):
        with pytest.raises(InputError, match="is a GGUF file, which transformers reads for models of text only"):
            make(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "gemma3"}, "needs `processor_name_or_path:`"),
        ({"hidden_size": 8}, "needs `processor_name_or_path:`"),
        ("nowhere/at/all", "there is no model directory nowhere/at/all"),
    ],
)
def test_configurations_without_a_processor_or_a_place_are_refused(config, why):
    with pytest.raises(InputError, match=why):
        from_config(config)


def test_mappings_that_mean_no_such_model_are_refused(directory_of):
    place = str(directory_of("gemma3"))
    with pytest.raises(InputError, match="the config mapping has no `model_type`"):
        from_config({"hidden_size": 8}, processor_name_or_path=place)
    with pytest.raises(InputError, match="knows no model_type gema3; did you mean `gemma3`"):
        from_config({"model_type": "gema3"}, processor_name_or_path=place).load_module(CPU)
    with pytest.raises(InputError, match="no vision-language model can be made"):
        from_config({"model_type": "gpt2"}, processor_name_or_path=place).load_module(CPU)


def test_wrong_options_are_told(directory_of):
    place = str(directory_of("gemma3"))
    for make in (from_pretrained, from_config):
        with pytest.raises(InputError, match="'bfloat17' is no data type for a model; did you mean `bfloat16`"):
            make(place, torch_dtype="bfloat17")
        with pytest.raises(InputError, match="attn_implementation: 'spda' is not known; did you mean `sdpa`"):
            make(place, attn_implementation="spda")


def test_what_a_recipe_of_nemo_may_say_without_effect_is_told(directory_of, capsys):
    from_pretrained(str(directory_of("gemma3")), use_sdpa_patching=False)
    assert "use_sdpa_patching: false has no effect here" in capsys.readouterr().err

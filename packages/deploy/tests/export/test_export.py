"""Exported files are what their level says, load in plain transformers, and say what the trained model says."""

import json
from importlib.util import find_spec

import pytest
import torch
from automodel import InputError
from automodel.checkpoint import manifest
from automodel.checkpoint.trained import base_model, trained_model
from automodel_deploy.levels import check, strip
from peft import PeftModel
from safetensors import safe_open
from support import ROOT
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

BOTH = "[safetensors, pytorch]"
FORMATS = ("safetensors", "pytorch")
IDS_BL = torch.arange(2 * 9).reshape(2, 9) + 100
VOCABULARY = 49152

with_torchao = pytest.mark.skipif(
    find_spec("torchao") is None,
    # it is in no environment of ours: with it transformers takes a second longer to import, and torch prints warnings
    reason='uv run --with "torchao==0.18.0" pytest packages/deploy/tests/export -k "int8 or quantised"',
)


def exported(run, level, name):
    return run / "exports" / f"step_3-{level}" / name


@torch.no_grad()
def logits(module, ids_BL=IDS_BL):
    return module.eval()(input_ids=ids_BL).logits


def stored(directory):
    """{name: tensor} in the safetensors files of a directory, as they are stored."""
    found = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    return found


def pickled(directory):
    """{name: tensor} in the PyTorch files of a directory, read without running code."""
    files = directory.glob("pytorch_model*.bin")
    return {name: value for file in files for name, value in torch.load(file, weights_only=True).items()}


def without_cache(checkpoint):
    """Give a checkpoint's model a setting of training."""
    config = checkpoint / "model" / "config.json"
    config.write_text(config.read_text().replace('"use_cache": true', '"use_cache": false'))
    (checkpoint / manifest.MANIFEST).unlink()
    manifest.write_manifest(checkpoint, {"step": 3})


@pytest.mark.parametrize(("level", "use_cache"), [("O0", False), ("O1", True)])
def test_a_full_model_is_exported_exactly(export, run, level, use_cache):
    without_cache(run / "step_3")
    printed = export(run, formats=BOTH, optimization_level=level).stdout
    expected, tokenizer = trained_model(run / "step_3")
    for name in FORMATS:
        directory = exported(run, level, name)
        loaded = AutoModelForCausalLM.from_pretrained(directory)
        assert torch.equal(logits(loaded), logits(expected))
        own = AutoTokenizer.from_pretrained(directory)
        assert own.chat_template == tokenizer.chat_template != None  # noqa: E711  (both are, and are equal)
        assert own("Kenya")["input_ids"] == tokenizer("Kenya")["input_ids"]
        assert loaded.generation_config.eos_token_id == expected.generation_config.eos_token_id is not None
        assert loaded.config.use_cache is use_cache
        assert f"exported: {directory} (float32" in printed
    assert printed.count("64 generated tokens equal the trained model's") == 2
    assert (exported(run, level, "safetensors") / "model.safetensors").exists()
    assert (exported(run, level, "pytorch") / "pytorch_model.bin").exists()


@pytest.mark.parametrize("level", ["O0", "O1"])
def test_an_adapter_is_exported_merged(export, lora, level, tmp_path):
    export(lora, formats=BOTH, optimization_level=level, output_dir=tmp_path)
    merged, _ = trained_model(lora / "step_3")
    base = base_model(lora / "step_3").module
    untrained = logits(base).clone()
    adapted = logits(PeftModel.from_pretrained(base, lora / "step_3" / "model"))
    for name in FORMATS:
        directory = tmp_path / f"step_3-{level}" / name
        found = logits(AutoModelForCausalLM.from_pretrained(directory))
        assert torch.equal(found, logits(merged))
        assert (found - adapted).abs().max() <= 1e-5 * adapted.std()
        assert (found - untrained).abs().max() > 0.1 * adapted.std()
        assert not list(directory.glob("adapter*"))


def test_pytorch_files_are_read_without_running_code(exported_once):
    tensors = pickled(exported(exported_once, "O1", "pytorch"))
    others = stored(exported(exported_once, "O1", "safetensors"))
    assert tensors.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in tensors.items())
    assert "lm_head.weight" not in tensors  # it is the input embedding, which is there once


def test_a_level_of_serving_drops_what_only_training_needed(full):
    module, _ = trained_model(full / "step_3")
    before = logits(module)
    held = set(module.state_dict())
    module.model.layers[1].register_parameter("helper", torch.nn.Parameter(torch.ones(3)))
    module.register_buffer("seen", torch.zeros(2))
    module.config.use_cache = module.generation_config.use_cache = False
    module.config.output_router_logits = True
    strip(module)
    assert set(module.state_dict()) == held
    assert module.config.use_cache is module.generation_config.use_cache is True
    assert module.config.output_router_logits is False
    assert torch.equal(logits(module), before)


def test_shards_are_no_larger_than_asked_and_have_an_index(export, run):
    export(run, formats=BOTH, max_shard_size="20KB")
    expected = logits(trained_model(run / "step_3")[0])
    for name, pattern in (("safetensors", "model-*.safetensors"), ("pytorch", "pytorch_model-*.bin")):
        directory = exported(run, "O1", name)
        (index,) = directory.glob("*.index.json")
        files = {path.name: path for path in directory.glob(pattern)}
        placed = json.loads(index.read_text())["weight_map"]
        assert len(files) > 2 and set(placed.values()) == files.keys()
        tensors = stored(directory) if name == "safetensors" else pickled(directory)
        assert placed.keys() == tensors.keys()
        for file in files:
            sizes = [value.nbytes for key, value in tensors.items() if placed[key] == file]
            assert sum(sizes) <= 20_000 or len(sizes) == 1  # the embedding alone is larger
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(directory)), expected)


@pytest.mark.parametrize(("settings", "dtype"), [({}, torch.bfloat16), ({"dtype": "float16"}, torch.float16)])
def test_the_serving_dtype_is_that_of_all_tensors(export, run, settings, dtype):
    export(run, formats=BOTH, optimization_level="O2", **settings)
    trained = trained_model(run / "step_3")[0].state_dict()
    for name, read in (("safetensors", stored), ("pytorch", pickled)):
        directory = exported(run, "O2", name)
        assert {value.dtype for value in read(directory).values()} == {dtype}
        loaded = AutoModelForCausalLM.from_pretrained(directory)
        assert loaded.dtype == dtype
        assert all(torch.equal(value, trained[key].to(dtype)) for key, value in loaded.state_dict().items())


@with_torchao
def test_weights_of_linear_layers_are_in_int8(export, run):
    export(run, formats=BOTH, optimization_level="O3")
    expected = logits(trained_model(run / "step_3")[0])
    for name in FORMATS:
        directory = exported(run, "O3", name)
        loaded = AutoModelForCausalLM.from_pretrained(directory)
        found = logits(loaded)
        assert 0 < (found - expected).abs().mean() < 0.1 * expected.std()
        assert loaded.lm_head.weight.dtype == loaded.model.embed_tokens.weight.dtype == torch.bfloat16
        weight = loaded.model.layers[0].mlp.up_proj.weight
        assert weight.qdata.dtype == torch.int8 and weight.scale.shape[0] == weight.shape[0]
        figures = manifest.read_manifest(directory)["verification"]
        assert 0 < figures["mean_difference"] < 0.2 and 0 < figures["divergence"] < 0.1
    parts = stored(exported(run, "O3", "safetensors"))
    integers = [name for name, value in parts.items() if name.endswith("qdata") and value.dtype == torch.int8]
    assert len(integers) == 2 * 7  # layers, linear modules of each
    kinds = [type(value).__name__ for value in pickled(exported(run, "O3", "pytorch")).values()]
    assert kinds.count("Int8Tensor") == 2 * 7


@with_torchao
def test_a_quantised_model_has_no_other_serving_dtype(export, full, tmp_path):
    export(full, optimization_level="O3", output_dir=tmp_path)
    quantised = AutoModelForCausalLM.from_pretrained(tmp_path / "step_3-O3" / "safetensors")
    with pytest.raises(InputError, match="quantised already, so optimization_level O2 cannot"):
        check(quantised, "O2")


@pytest.mark.parametrize(
    ("family", "level"),
    [
        pytest.param("gemma3", "O0", marks=pytest.mark.slow),
        ("gemma3", "O1"),
        pytest.param("qwen3_vl", "O1", marks=pytest.mark.slow),
    ],
)
def test_a_vision_language_model_is_exported_exactly(export, request, family, level, tmp_path):
    vlm = request.getfixturevalue(family)
    printed = export(vlm, formats=BOTH, optimization_level=level, output_dir=tmp_path).stdout
    assert printed.count("equal the trained model's") == 2
    expected, processor = trained_model(vlm / "step_3")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit is this?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    image = torch.randint(256, (3, 56, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name in FORMATS:
        directory = tmp_path / f"step_3-{level}" / name
        inputs = AutoProcessor.from_pretrained(directory)(text=[text], images=[image], return_tensors="pt")
        loaded = AutoModelForImageTextToText.from_pretrained(directory)
        with torch.no_grad():
            assert torch.equal(loaded(**inputs).logits, expected(**inputs).logits)


@pytest.mark.slow
def test_a_real_model_keeps_its_answers(export, automodel, tmp_path):
    recipe = (ROOT / "examples" / "quickstart.yaml").read_text().replace("examples/data", f"{ROOT}/examples/data")
    (tmp_path / "recipe.yaml").write_text(recipe)
    less = ("validation_dataset=null", "validation_dataloader=null", "dataloader.batch_size=4", "step_scheduler=null")
    automodel("train", "-c", "recipe.yaml", *less, "step_scheduler.max_steps=3", "checkpoint.checkpoint_dir=run")
    levels = [("O1", 0), ("O2", 0.02), *([("O3", 0.04)] if find_spec("torchao") else [])]
    for level, divergence in levels:
        export("run", formats=BOTH, optimization_level=level)
        for name in FORMATS:
            figures = manifest.read_manifest(exported(tmp_path / "run", level, name))["verification"]
            assert figures["divergence"] <= divergence and figures["same_predictions"] > 0.85

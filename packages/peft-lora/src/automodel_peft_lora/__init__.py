"""LoRA and its relatives for AutoModel, by Hugging Face peft."""

"""Hugging Face causal language models and text data sets for AutoModel."""

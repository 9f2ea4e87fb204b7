"""What AutoModel's model packages share: finding and loading transformers models, and reading rows from files."""

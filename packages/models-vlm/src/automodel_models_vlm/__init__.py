"""Vision-language models and image-text data sets for AutoModel."""

"""What this plugin brings to AutoModel: vision-language models and image-text data sets."""

AUTOMODEL_HOOKS = 1

"""From a checkpoint to an answering endpoint: export, serving and model registry."""

"""FSDP2, tensor and context parallelism for AutoModel, by torch.distributed."""

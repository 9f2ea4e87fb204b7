"""NVIDIA's Megatron-FSDP, the successor of nvFSDP, for AutoModel."""

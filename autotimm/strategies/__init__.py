"""How a model is spread over processes: DDP, DeepSpeed's ZeRO, FSDP."""

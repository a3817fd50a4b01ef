"""A trained model for others: ONNX, torch.export, safetensors with a model card."""

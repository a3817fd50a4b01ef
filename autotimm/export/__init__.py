"""Export of a trained model: ONNX, torch.export, safetensors with a model card."""

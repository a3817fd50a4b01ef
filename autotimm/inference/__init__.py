"""Inference: detections of a trained model in images of any kind and size, in their own pixels."""

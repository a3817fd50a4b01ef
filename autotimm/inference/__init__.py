"""A trained model on images of any kind: what is found, at their own size."""

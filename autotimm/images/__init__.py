"""Image files: what they are, their pixels, the memory for them."""

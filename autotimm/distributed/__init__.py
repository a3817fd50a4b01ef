"""Processes that train together: what started them, where they meet, how they act alike."""

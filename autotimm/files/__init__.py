"""Local and remote files: atomic writes, URLs, byte counts, and retries."""

"""The LightningModules: thin, the work is in ``models``."""

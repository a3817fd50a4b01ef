"""The LightningModules, which train and evaluate the networks of ``autotimm.models``."""

"""The check of a job before it begins: the same run on every rank, and what the machine has."""

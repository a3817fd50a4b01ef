"""The check of a job before it begins: equal ranks, and enough resources on the machine."""

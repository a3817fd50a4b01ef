"""The command lines: ``autotimm VERB``, a module a verb."""

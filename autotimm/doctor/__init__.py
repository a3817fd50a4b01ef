"""The checks of ``autotimm doctor``: the machine, the data, and whether a config suits both."""

"""What ``autotimm doctor`` looks at: the machine, the data, whether a config suits them."""

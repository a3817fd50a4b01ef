"""``python -m autotimm VERB``, for torchrun."""

from autotimm.cli.main import main

if __name__ == "__main__":
    main()

"""Train, validate, test or predict: see ``python launch/train.py --help`` and the README."""

from autotimm.cli.train import train

if __name__ == "__main__":
    train()

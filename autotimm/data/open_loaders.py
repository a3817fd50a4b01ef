"""The loaders that a data module has made, and the position of the training in its data."""

from __future__ import annotations

from typing import Any

from autotimm.streaming.loader import StreamLoader


class OpenLoaders:
    """The latest loader of each role; one that takes the place of another closes it.

    Attributes:
        by_role: "train", "val", "test", "predict" -> the loader.
    """

    def __init__(self) -> None:
        self.by_role: dict[str, StreamLoader] = {}
        self._resumed: dict[str, Any] | None = None  # the position for the next training loader

    def keep(self, role: str, loader: StreamLoader) -> None:
        """Keeps a loader instead of the earlier one, which Lightning may make during a fit."""
        if role in self.by_role:
            self.by_role[role].close()
        self.by_role[role] = loader

    def keep_for_training(self, loader: StreamLoader) -> StreamLoader:
        """Keeps the training loader, and has it continue where ``resume_at`` says.

        Raises:
            InputError: the position is of other data or another seed.
        """
        self.keep("train", loader)
        if self._resumed is not None:
            loader.load_state_dict(self._resumed)
            self._resumed = None
        return loader

    def begin_fit(self) -> None:
        """Forgets the position: a fit does not continue where an earlier one has stopped."""
        self._resumed = None
        if "train" in self.by_role:
            self.by_role.pop("train").close()

    def position(self) -> dict[str, Any]:
        """The training loader's state; empty before there is a loader."""
        return self.by_role["train"].state_dict() if "train" in self.by_role else {}

    def resume_at(self, position: dict[str, Any]) -> None:
        """Has the training loader continue at a position, now or when there is one.

        Raises:
            InputError: the position is of other data or another seed.
        """
        if "train" in self.by_role:
            self.by_role["train"].load_state_dict(position)
        else:
            self._resumed = position or None

    def close(self) -> None:
        """Stops the workers of all; the position stays."""
        for loader in self.by_role.values():
            loader.close()

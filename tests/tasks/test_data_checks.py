"""Whether data fit a model: the number of their categories."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from autotimm.structures import InputError
from autotimm.tasks.data_checks import categories_of_data

DATA = SimpleNamespace(
    data_dir="shards",
    num_classes=2,
    categories=[
        SimpleNamespace(id=number, name=name, given_id=None)
        for number, name in ((1, "a"), (2, "b"))
    ],
)
TRAINED = [{"id": number, "name": f"class {number}"} for number in range(7)]


def test_a_new_model_is_told_its_number_of_classes() -> None:
    with pytest.raises(
        InputError, match=r"num_classes=7 of the model.*give the model num_classes=2"
    ):
        categories_of_data(DATA, 7)
    assert [one["name"] for one in categories_of_data(DATA, 2, TRAINED)] == ["a", "b"]


def test_a_trained_model_keeps_its_classes() -> None:
    with pytest.raises(InputError, match="fit --weights") as error:
        categories_of_data(DATA, 7, TRAINED)
    assert "7 categories (class 0, class 1, class 2, class 3, class 4, ...)" in str(error.value)
    assert "num_classes" not in str(error.value)

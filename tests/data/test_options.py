"""Arguments of the data module that cannot be used are refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_fits import IMAGES, VAL

from autotimm.data import options
from autotimm.data.datamodule import InstanceSegmentationDataModule
from autotimm.data.synthetic import make_dataset
from autotimm.structures import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted") / "coco"
    make_dataset(folder, train=IMAGES, val=VAL, size=(64, 96))
    return folder


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"data_dir": "/nowhere"}, "data_dir: /nowhere: no such folder"),
        ({"data_dir": "ftp://host/shards"}, "ftp URLs are not read"),
        ({"image_size": 16}, "image_size is 16, but must be a number of pixels"),
        ({"image_size": (64, 64, 3)}, "image_size is"),
        ({"image_size": 64.5}, "image_size is 64.5"),
        ({"batch_size": 0}, "batch_size is 0, but must be a whole number, 1 or more"),
        ({"batch_size": 10**9}, "batch_size is 1000000000, but must be 65536 or less"),
        ({"val_batch_size": 0}, "val_batch_size is 0"),
        ({"val_batch_size": 65537}, "val_batch_size is 65537, but must be 65536 or less"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"prefetch_factor": 0}, "prefetch_factor is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"augmentation_preset": "heavy"}, "must be one of light, default, strong"),
        ({"resize": "crop"}, "resize is 'crop', but must be one of letterbox, stretch"),
        ({"interpolation": "area"}, "interpolation is 'area', but must be one of bilinear, bic"),
        ({"mean": (1, 2)}, "mean is"),
        ({"std": (1, 1, 0)}, "std is"),
        ({"std": (float("nan"), 1, 1)}, r"std is \(nan, 1, 1\), but must be three finite numbers"),
        ({"mean": (0, float("inf"), 0)}, "mean is .* must be three finite numbers"),
        ({"mean": (float("-inf"), float("inf"), 0)}, "mean is .* must be three finite numbers"),
        ({"max_corrupt": 1.5}, "max_corrupt is 1.5, but must be a number from 0 to 1"),
        ({"max_corrupt": float("nan")}, "max_corrupt is nan"),
        ({"max_corrupt": True}, "max_corrupt is True"),
        ({"aspect_buckets": "yes"}, "aspect_buckets is 'yes', but must be true, false or a list"),
        ({"aspect_buckets": []}, "aspect_buckets has no canvas besides that of image_size, 640 x"),
        ({"aspect_buckets": [[640, 640]]}, "aspect_buckets has no canvas besides"),
        ({"aspect_buckets": [[512, 512]]}, "aspect_buckets: 512 x 512 must have one side of image"),
        ({"aspect_buckets": [[512, 800]]}, "aspect_buckets: 512 x 800 must have one side of image"),
        ({"aspect_buckets": [[512, "640"]]}, "a canvas of aspect_buckets is .512, '640'., but"),
        (
            {"aspect_buckets": [[32 * n, 640] for n in range(1, 9)]},
            "aspect_buckets has 8 canvases besides that of image_size, but fewer than 8",
        ),
        ({"aspect_buckets": True, "image_size": 64}, "aspect_buckets has no canvas besides"),
        (
            {"aspect_buckets": True, "image_size": (512, 640)},
            r"aspect_buckets=True needs a square image_size, not 512 x 640: give the list",
        ),
        ({"aspect_buckets": True, "resize": "stretch"}, "aspect_buckets needs resize='letterbox'"),
        (
            {"aspect_buckets": True, "custom_train_transforms": dict},
            "custom_train_transforms decide on their images' size themselves: leave out aspect_b",
        ),
    ],
)
def test_bad_arguments_are_refused_at_once(
    coco_folder: Path, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        InstanceSegmentationDataModule(**({"data_dir": coco_folder} | options))


def test_numbers_that_no_float_holds_are_refused_by_name() -> None:
    for check in (options.share, options.minutes):
        with pytest.raises(InputError, match=r"^a_name is 1000.*, but must be a number"):
            check("a_name", 10**400)
    with pytest.raises(InputError, match=r"^a_name is 1000.*, but must be 4294967295 or less"):
        options.whole("a_name", 10**400, 1)

"""The data module's settings: its parsed and checked arguments, as one frozen dataclass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from autotimm.augmentation import pipeline_checks
from autotimm.augmentation.custom import Transforms
from autotimm.augmentation.presets import Augmentation
from autotimm.augmentation.transforms import INTERPOLATIONS, RESIZES
from autotimm.data import options
from autotimm.files.urls import Location
from autotimm.plain import plain
from autotimm.streaming.buckets import Canvases
from autotimm.structures import InputError, PixelRange, Preprocessing

_T = TypeVar("_T")

_LARGEST_BATCH = 65536  # images on a rank; a mistyped size would repeat the epoch to fill a batch


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSettings:
    """The arguments of ``InstanceSegmentationDataModule``.

    Most have the names and meaning that they have there; these differ:

    Attributes:
        location: the parsed ``data_dir``.
        image_size: height and width of the canvas, multiples of 32.
        augmentation: from ``augmentation_preset``.
        canvases: from ``aspect_buckets``, that of ``image_size`` first; empty without.
        scales: from ``multi_scale``, that of ``image_size`` first; empty without.
        cache_limit: in bytes.

    Raises:
        InputError: an argument cannot be used, or not together with another one.
    """

    location: Location
    image_size: tuple[int, int]
    batch_size: int
    val_batch_size: int
    num_workers: int
    prefetch_factor: int
    seed: int
    augmentation: Augmentation
    resize: str
    canvases: Canvases
    custom_train_transforms: Transforms | None
    copy_paste: float
    repeat_threshold: float | None
    scales: Canvases
    max_corrupt: float
    train_split: str
    val_split: str | None
    test_split: str | None
    masks: bool
    cache_dir: str | Path | None
    cache_limit: int | None
    retry_minutes: float
    whole_shards: bool
    persistent_workers: bool
    pin_memory: bool | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    interpolation: str | None
    pixel_range: tuple[float, float] | None

    def __post_init__(self) -> None:
        options.whole("batch_size", self.batch_size, 1, _LARGEST_BATCH)
        options.whole("val_batch_size", self.val_batch_size, 1, _LARGEST_BATCH)
        options.whole("num_workers", self.num_workers, 0)
        options.whole("prefetch_factor", self.prefetch_factor, 1)
        options.whole("seed", self.seed, 0)
        options.minutes("retry_minutes", self.retry_minutes)
        options.one_of("resize", self.resize, RESIZES)
        shares = ["copy_paste", "max_corrupt"]
        if self.repeat_threshold is not None:
            shares.append("repeat_threshold")
        for name in shares:
            object.__setattr__(self, name, options.share(name, getattr(self, name)))
        self._check_own_transforms()
        if self.scales and self.canvases:
            raise InputError(
                "multi_scale and aspect_buckets both set the canvas: leave one of them out"
            )
        if self.interpolation is not None:
            options.one_of("interpolation", self.interpolation, tuple(INTERPOLATIONS))

    def preprocessing(
        self, of_model: Preprocessing, found_range: Callable[[], PixelRange]
    ) -> Preprocessing:
        """How to preprocess images: by the arguments, and else as the model needs it.

        Args:
            of_model: what the model needs.
            found_range: looks at the data for their pixel range, if nothing else sets one.
        """
        return Preprocessing(
            of_model.mean if self.mean is None else self.mean,
            of_model.std if self.std is None else self.std,
            self.interpolation or of_model.interpolation,
            self.image_size,
            self.resize,
            self.pixel_range or of_model.pixel_range or found_range(),
        )

    def _check_own_transforms(self) -> None:
        if self.custom_train_transforms is None:
            return
        if self.canvases:
            raise InputError(
                "custom_train_transforms decide on their images' size themselves: leave out "
                "aspect_buckets"
            )
        pipeline_checks.check(self.custom_train_transforms)
        if self.copy_paste:
            raise InputError(
                "copy_paste goes with augmentation_preset: leave it or custom_train_transforms out"
            )
        if self.scales:
            raise InputError(
                "multi_scale and custom_train_transforms both set the canvas: leave one of them out"
            )


class Setting(Generic[_T]):
    """A descriptor for attributes of the data module whose values are in its ``settings``.

    Assigning a value replaces the settings, and checks them again.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, module: Any, owner: type | None = None) -> _T:
        if module is None:
            return self  # type: ignore[return-value]
        return getattr(module.settings, self._name)

    def __set__(self, module: Any, value: _T) -> None:
        module.settings = replace(module.settings, **{self._name: plain(value)})


class AssignableSettings:
    """The attributes of the data module that can be assigned to."""

    settings: DataSettings
    """The parsed and checked arguments."""
    image_size = Setting[tuple[int, int]]()
    batch_size = Setting[int]()
    val_batch_size = Setting[int]()
    num_workers = Setting[int]()
    prefetch_factor = Setting[int]()
    seed = Setting[int]()
    augmentation = Setting[Augmentation]()
    resize = Setting[str]()
    canvases = Setting[Canvases]()
    custom_train_transforms = Setting[Transforms | None]()
    copy_paste = Setting[float]()
    scales = Setting[Canvases]()
    max_corrupt = Setting[float]()
    repeat_threshold = Setting[float | None]()
    train_split = Setting[str]()
    val_split = Setting[str | None]()
    test_split = Setting[str | None]()
    masks = Setting[bool]()
    cache_dir = Setting[str | Path | None]()
    cache_limit = Setting[int | None]()
    retry_minutes = Setting[float]()
    whole_shards = Setting[bool]()
    persistent_workers = Setting[bool]()
    pin_memory = Setting[bool | None]()

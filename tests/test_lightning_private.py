"""Each private name of Lightning does what this package needs, and only one module uses them."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import signal
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import lightning
import pytest
import torch
import torch.distributed as dist
from lightning.fabric.utilities import cloud_io
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from line import Line, loader

from autotimm import lightning_private
from autotimm.lightning_private import (
    INSTANTIATOR,
    CheckpointConnector,
    ConfiguredDeepSpeed,
    FlagsOnlyCLI,
    HookedTrainer,
    RowsAhead,
    before_optimizer_step,
    begin_next_epoch,
    checkpoint_of,
    import_no_object_stores,
    leave_signals_alone,
    set_static_graph,
    uncount_step,
    use_connector,
    validates_next,
)

pytestmark = pytest.mark.filterwarnings("ignore")

PACKAGE = Path(lightning_private.__file__).parent
FILES = sorted({*PACKAGE.rglob("*.py")} - {Path(lightning_private.__file__)})


def plain(folder: Path, kind: type[Trainer] = Trainer, **options: Any) -> Any:
    """Lightning's Trainer, without the additions of AutoTrainer."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return kind(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "default_root_dir": folder,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            **quiet,
            **options,
        }
    )


class Verbs(Line):
    """Records every verb and the weight at its start."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight.data.fill_(weight)
        self.began: list[float] = []

    def begins(self) -> None:
        self.began.append(self.weight.item())

    on_train_start = on_validation_start = on_test_start = on_predict_start = begins

    def test_step(self, batch, batch_idx) -> None:
        pass

    def predict_step(self, batch, batch_idx) -> None:
        pass


def saved(folder: Path, weight: float = 5.0, **options: Any) -> Path:
    """A checkpoint of a run of three steps whose weight is set to ``weight`` at the end."""
    trainer = plain(folder, max_steps=3, **options)
    model = Verbs()
    trainer.fit(model, loader(3))
    model.weight.data.fill_(weight)
    trainer.save_checkpoint(folder / "saved.ckpt")
    return folder / "saved.ckpt"


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_the_hook_is_there_before_processes_join_and_chooses_the_checkpoint(
    verb: str, tmp_path: Path
) -> None:
    path, seen = saved(tmp_path), []

    class Strategy(SingleDeviceStrategy):
        def setup_environment(self) -> None:
            seen.append("processes join")
            super().setup_environment()

    class Hooked(HookedTrainer):
        def before_run(self, model: LightningModule, ckpt_path: Any) -> Any:
            seen.append((model, ckpt_path, self.state.fn))
            return path

    model = Verbs()
    trainer = plain(tmp_path, Hooked, max_steps=4, strategy=Strategy())
    getattr(trainer, verb)(model, loader(3))
    assert seen == [(model, None, trainer.state.fn), "processes join"]
    assert model.began[0] == 5


class Connector(CheckpointConnector):
    def __init__(self, trainer: Trainer, choice: Any = None) -> None:
        super().__init__(trainer)
        self.choice, self.asked, self.restored = choice, [], {}

    def select(self, ckpt_path, by_lightning):
        self.asked.append(ckpt_path)
        return self.choice or by_lightning()

    def restore_optimizers_and_schedulers(self) -> None:
        self.restored = dict(self.loaded)
        super().restore_optimizers_and_schedulers()


def test_the_connector_loads_what_it_selects_and_shows_it(tmp_path: Path) -> None:
    path = saved(tmp_path)
    trainer, model = plain(tmp_path, max_steps=4), Verbs()
    connector = Connector(trainer, choice=path)
    use_connector(trainer, connector)
    trainer.fit(model, loader(3), ckpt_path="other.ckpt")
    assert (connector.asked, model.began) == (["other.ckpt"], [5])
    assert connector.restored["global_step"] == 3 and connector.restored["optimizer_states"]
    assert connector.loaded == {}


def test_the_connector_loads_only_named_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path).rename(tmp_path / "hpc_ckpt_1.ckpt")
    name = "lightning.pytorch.trainer.connectors.checkpoint_connector.SLURMEnvironment.detect"
    monkeypatch.setattr(name, lambda: True)
    for own, began in ((False, 5.0), (True, 1.0)):
        trainer, model = plain(tmp_path, max_steps=4), Verbs()
        if own:
            use_connector(trainer, Connector(trainer))
        trainer.fit(model, loader(3))
        assert model.began == [began]


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_checkpoint_of_a_trainer_is_what_it_saves(weights_only: bool, tmp_path: Path) -> None:
    trainer = plain(tmp_path, max_steps=2)
    trainer.fit(Line(), loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only)
    content = checkpoint_of(trainer, weights_only)
    assert ("optimizer_states" in content) is not weights_only
    assert str(content) == str(torch.load(tmp_path / "a.ckpt", weights_only=True))


def test_the_next_epoch_begins_where_the_setter_says_restarting(tmp_path: Path) -> None:
    trainer = plain(tmp_path, max_steps=2)
    fit = trainer.fit_loop
    fit.restarting = False
    assert fit.restarting  # so the private name is necessary
    fit.epoch_loop.restarting = True
    begin_next_epoch(trainer)
    assert not fit.restarting and not fit.epoch_loop.restarting
    assert not fit.epoch_loop.val_loop.restarting


def test_a_step_that_is_uncounted_is_logged_once_more(tmp_path: Path) -> None:
    class Steps(DummyLogger):
        def __init__(self) -> None:
            super().__init__()
            self.steps: list[int] = []

        def log_metrics(self, metrics, step) -> None:
            self.steps.append(step)

    class Logs(Line):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss)
            return loss

    path = saved(tmp_path)
    for uncounted, steps in ((False, [3, 4]), (True, [2, 3])):
        content = torch.load(path, weights_only=True)
        if uncounted:
            uncount_step(content["loops"]["fit_loop"])
        torch.save(content, tmp_path / "changed.ckpt")
        logger = Steps()
        trainer = plain(tmp_path, max_steps=5, logger=logger, log_every_n_steps=1)
        trainer.fit(Logs(), loader(3), ckpt_path=tmp_path / "changed.ckpt")
        assert logger.steps == steps


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_epoch_end"])
def test_a_row_that_was_logged_ahead_is_not_logged_again(hook: str, tmp_path: Path) -> None:
    class Logged(Line):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss, on_step=True, on_epoch=True)
            return loss

    class Ahead(Callback):
        """As one that saves; twice, as two would."""

    def log(*_: Any) -> None:
        before = len(rows)
        ahead.log()
        ahead.log()
        assert len(rows) == before + 1

    class Noting(DummyLogger):
        def log_metrics(self, metrics, step):
            rows.append((step, sorted(metrics)))

    rows: list[Any] = []
    callback = Ahead()
    setattr(callback, hook, log)
    fits = {"max_epochs": 2, "log_every_n_steps": 1, "logger": Noting()}
    plain(tmp_path, **fits).fit(Logged(), loader(2))
    truth = [row for row in rows if len(row[1]) > 1]
    rows.clear()
    trainer = plain(tmp_path, callbacks=[callback], **fits)
    ahead = RowsAhead(trainer)
    trainer.fit(Logged(), loader(2))
    assert [row for row in rows if len(row[1]) > 1] == truth
    assert len(truth) == 6


def test_signals_are_left_alone(
    group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No handlers, and no broadcast at each step, as Lightning makes with two ranks."""

    class Look(Callback):
        def on_train_batch_start(self, *_) -> None:
            handlers.append(signal.getsignal(signal.SIGTERM))

    def broadcast(*_, **__) -> None:
        spoken.append(1)

    monkeypatch.setattr(dist, "broadcast", broadcast)
    monkeypatch.setattr(Trainer, "world_size", 2)
    before = signal.getsignal(signal.SIGTERM)
    for left_alone in (False, True):
        handlers: list[Any] = []
        spoken: list[int] = []
        trainer = plain(tmp_path, max_steps=2, callbacks=[Look()])
        if left_alone:
            leave_signals_alone(trainer)
        trainer.fit(Line(), loader())
        assert ([one is before for one in handlers], len(spoken)) == (
            ([True] * 2, 0) if left_alone else ([False] * 2, 2)
        )


@pytest.mark.parametrize(
    "options",
    [
        {"val_check_interval": 2},
        {"val_check_interval": 3, "check_val_every_n_epoch": None},
        {"check_val_every_n_epoch": 2},
        {"limit_val_batches": 0},
    ],
    ids=str,
)
def test_a_validation_is_known_before_it_comes(options: dict[str, Any], tmp_path: Path) -> None:
    class Watch(Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            if trainer.global_step == 12:
                trainer.should_stop = True  # makes it validate where it would not
            events.append(validates_next(trainer))

        def on_validation_start(self, *_) -> None:
            events.append("validation")

    events: list[Any] = []
    trainer = plain(tmp_path, max_epochs=3, callbacks=[Watch()], **options)
    trainer.fit(Line(), loader(5), loader(1))
    decisions = [one for one, then in zip(events, [*events[1:], None], strict=True) if one is True]
    came = [then for one, then in zip(events, [*events[1:], None], strict=True) if one is True]
    assert came == ["validation"] * len(decisions)
    assert events.count("validation") == len(decisions) and len(decisions) < events.count(False)


def test_validation_by_the_clock_has_no_batch_to_check(tmp_path: Path) -> None:
    """``checkpoints/callback.py`` uses this public name."""
    for interval, by_clock in (("00:00:01:00", True), (2, False), (1.0, False)):
        trainer = plain(tmp_path, max_steps=1, val_check_interval=interval)
        trainer.fit(Line(), loader(), loader(1))
        assert (trainer.val_check_batch is None) is by_clock


def test_before_a_step_hooks_are_called_and_gradients_clipped(tmp_path: Path) -> None:
    class Own(Precision):
        def optimizer_step(self, optimizer, model, closure, **_):
            loss = closure()
            before_optimizer_step(self, model, optimizer)
            seen.append(("step", model.weight.grad.item()))
            optimizer.step()
            return loss

    class Hook(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
            seen.append(("callback", pl_module.weight.grad.item()))

    class Model(Line):
        def on_before_optimizer_step(self, optimizer) -> None:
            seen.append(("module", self.weight.grad.item()))

    seen: list[Any] = []
    options = {"plugins": [Own()], "callbacks": [Hook()], "gradient_clip_val": 0.5}
    plain(tmp_path, max_steps=1, **options).fit(Model(), loader())
    assert seen == [("callback", 2), ("module", 2), ("step", pytest.approx(0.5))]


@pytest.mark.parametrize("static", [False, True])
def test_the_wrapper_gets_the_static_graph(static: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrap(module: Any, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(**options)

    monkeypatch.setattr("lightning.pytorch.strategies.ddp.DistributedDataParallel", wrap)
    strategy = DDPStrategy(parallel_devices=[torch.device("cpu")], find_unused_parameters=True)
    monkeypatch.setattr(DDPStrategy, "root_device", torch.device("cpu"))
    strategy.connect(Line())
    set_static_graph(strategy, static)
    strategy.configure_ddp()
    made: Any = strategy.model
    assert (made.static_graph, made.find_unused_parameters) == (static, True)


def test_the_config_of_deepspeed_is_completed_by_us_alone() -> None:
    pytest.importorskip("deepspeed")

    class Own(ConfiguredDeepSpeed):
        def complete_config(self) -> None:
            self.config |= {"completed": self.config.get("completed", 0) + 1}

        def init_deepspeed(self) -> None:
            engines.append(dict(self.config))

    engines: list[Any] = []
    strategy = Own(config={"zero_optimization": {}}, accelerator=SimpleNamespace(setup=print))
    strategy.connect(Line())
    for _ in range(2):
        strategy.setup(SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.VALIDATING)))
    assert engines == [{"zero_optimization": {}, "completed": 1}] * 2


class Settings(Line):
    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        return loader()


def test_a_local_folder_is_told_from_a_store_without_importing_the_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(tmp_path, "s3fs.py").write_text("class S3FileSystem: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("s3fs", "adlfs")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(cloud_io, "module_available", cloud_io.module_available)
    import_no_object_stores()
    local = fsspec.filesystem("file")
    assert cloud_io._is_dir(local, tmp_path, strict=True)
    assert "s3fs" not in sys.modules
    store = importlib.import_module("s3fs").S3FileSystem()
    assert cloud_io._is_object_storage(store)
    del sys.modules["s3fs"]


def test_the_parser_of_a_verb_has_its_flags() -> None:
    class Ends(FlagsOnlyCLI):
        def parse_arguments(self, parser, args) -> None:
            raise InterruptedError

    made = Ends.__new__(Ends)
    with pytest.raises(InterruptedError):
        made.__init__(Line, args=[], run=True)  # type: ignore[misc]
    assert "--trainer.max_epochs" in made.parser_of("fit").format_help()


@pytest.mark.parametrize(("cli", "rate"), [(LightningCLI, 0.7), (FlagsOnlyCLI, 0.2)])
def test_flags_are_not_replaced_by_a_checkpoints_settings(
    cli: type[LightningCLI], rate: float, tmp_path: Path
) -> None:
    trainer = plain(tmp_path, max_steps=1)
    trainer.fit(Settings(rate=0.7))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    limits = {"max_steps": 2, "enable_progress_bar": False, "logger": False, "accelerator": "cpu"}
    words = ["fit", "--model.rate", "0.2", "--ckpt_path", str(tmp_path / "a.ckpt")]
    trained = cli(
        Settings,
        trainer_defaults={**limits, "enable_checkpointing": False},
        save_config_callback=None,
        args=words,
    )
    assert trained.trainer.global_step == 2
    assert trained.model.hparams.rate == rate


def test_lightning_calls_what_stands_under_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def instantiate(kind: type[Line], settings: dict[str, Any]) -> Line:
        called.append(kind)
        return kind()

    called: list[type[Line]] = []
    # Releases after 2.6.4 import only some functions, such as this one; earlier ones import any.
    monkeypatch.setattr("lightning.pytorch.cli.instantiate_module", instantiate)
    settings = {INSTANTIATOR: "lightning.pytorch.cli.instantiate_module"}
    content = {"state_dict": Line().state_dict(), "pytorch-lightning_version": "2.6.4"}
    torch.save({**content, "hyper_parameters": settings}, tmp_path / "a.ckpt")
    Line.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert called == [Line]


# ------------------------------------------------------------ no other file has any

OF_CLASSES = re.compile(r"(?:\bdef |\bself\.)(_[A-Za-z]\w*)")
ANYWHERE = re.compile(r"(?:\bdef |\bclass |\w\.)(_[A-Za-z]\w*)")
TORCHS = {"_dynamo", "_pytree", "_BatchNorm"}  # Lightning uses them too


def classes() -> Iterator[type]:
    for path in FILES:
        if path.stem in ("__init__", "__main__"):
            continue
        words = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = importlib.import_module(".".join(words))
        found = (one for one in vars(module).values() if isinstance(one, type))
        yield from (kind for kind in found if kind.__module__ == module.__name__)


@cache
def private_names(kind: type) -> frozenset[str]:
    return frozenset(OF_CLASSES.findall(inspect.getsource(kind)))


def test_no_other_class_has_a_private_name_of_its_bases_in_lightning() -> None:
    """By accident, it could otherwise override one and change what Lightning does."""
    for kind in classes():
        bases = [one for one in kind.__mro__ if one.__module__.startswith("lightning.")]
        theirs = {name for base in bases for name in private_names(base)}
        assert not theirs or not private_names(kind) & theirs, kind


def test_no_other_file_has_a_private_name_of_lightnings() -> None:
    folder = Path(lightning.__file__).parent
    files = [path for part in ("pytorch", "fabric") for path in (folder / part).rglob("*.py")]
    theirs = {name for path in files for name in ANYWHERE.findall(path.read_text())} - TORCHS
    assert {"_run", "_val_check_time_interval", "_CheckpointConnector"} <= theirs
    for path in FILES:
        tree = ast.parse(path.read_text())
        own = set(re.findall(r"(?:def |class |self\.)(_\w+)", path.read_text()))  # see above
        names_set = (n for n in ast.walk(tree) if isinstance(n, ast.Name))
        own |= {n.id for n in names_set if isinstance(n.ctx, ast.Store)}
        not_ours = theirs - own
        for node in ast.walk(tree):
            bad = not_ours.intersection(names_in(node))
            assert not bad, f"{path}:{node.lineno}: {bad}"


def names_in(node: Any) -> list[str]:
    if isinstance(node, ast.Attribute):
        return [node.attr]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]  # of getattr, setattr and patches
    if isinstance(node, ast.ImportFrom):
        return [*(node.module or "").split("."), *(alias.name for alias in node.names)]
    return []

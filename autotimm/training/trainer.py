"""AutoTrainer: a Lightning Trainer whose defaults fit this package."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.strategies import Strategy

from autotimm.checkpoints.callback import Checkpoints
from autotimm.checkpoints.settings import SaveSettings
from autotimm.checkpoints.storage import on_all_ranks
from autotimm.distributed.agreement import settle_at_exit
from autotimm.distributed.launcher import launcher_world
from autotimm.files import urls
from autotimm.lightning_private import (
    HookedTrainer,
    checkpoint_of,
    leave_signals_alone,
    use_connector,
)
from autotimm.outputs.loggers import make_loggers
from autotimm.outputs.metrics_file import MetricsLogger
from autotimm.setup.check import check_setup
from autotimm.strategies import choice
from autotimm.training import arguments, preemption, tuning
from autotimm.training.defaults import all_plugins, default_callbacks
from autotimm.training.ema import AverageWeights
from autotimm.training.preemption import Preemption
from autotimm.training.quiet import quiet_libraries
from autotimm.training.run_folder import folder_name
from autotimm.training.run_record import read_record
from autotimm.training.start import NamedCheckpoints, begin
from autotimm.training.summary import Summary

quiet_libraries()

HYPER_PARAMETERS = {"hyper_parameters", "datamodule_hyper_parameters"}


class AutoTrainer(HookedTrainer):
    """``lightning.Trainer`` with other defaults; every argument of it can be given.

    - Under torchrun or srun it takes the number of processes and nodes from there.
    - Each run writes into ``<default_root_dir>/version_<n>``: ``metrics.csv``, ``checkpoints/``
      (links ``last.ckpt`` and ``best.ckpt`` to ``step_<n>.ckpt``), ``pictures/``, ``run.json``
      (where it stands, and what it came from), and the results of a test as COCO JSON.
    - SIGTERM, SIGUSR2 and Ctrl-C have all ranks of a fit save the same step and end with 85; what
      SLURM or torchrun starts again goes on from there.
    - A loss or gradient that is no finite number ends the run before the weights change by it.
    - The data module orders and shares out the samples: Lightning must not do it again.

    Args:
        accelerator: "cpu", "gpu", or "auto" for a GPU where there is one.
        strategy: "auto" (DDP where there are several processes), "ddp", "deepspeed_stage_1", "_2",
            "_3", the path of a DeepSpeed config, or "fsdp"; on CPUs too.
        devices: of each node; as many as the launcher has started processes, if there is one.
        num_nodes: likewise.
        precision: "16-mixed", "bf16-mixed" or "32-true"; by default "16-mixed" on a GPU that is to
            be used, else "32-true".
        logger: "tensorboard" (by default, where it is installed), "wandb", "mlflow", or Logger
            objects, one or several; ``metrics.csv`` always. False for none, not even that. One that
            fails is warned of, and ends no run.
        callbacks: besides those of this class, or in their place where they are of the same kind.
        default_root_dir: below which each run has its folder; by default ``runs``.
        plugins: as in Lightning.
        use_distributed_sampler: only False: the samples are dealt out already.
        enable_checkpointing: False saves nothing, and leaves signals to do what they do elsewhere.
        enable_progress_bar: False for none; where the output goes to a file there is none anyway.
        save_every_n_epochs: save the state of the training after so many epochs; 0 for never.
        save_every_n_steps: save after so many optimizer steps.
        save_every_minutes: save when so much time has gone by since the last save.
        keep_last: newest checkpoints to keep; -1 for all.
        keep_best: best ones to keep; 0 for none.
        best_metric: what is best, as it is logged in validation; by default the model's first
            metric on the progress bar, or its first.
        best_mode: whether a good value of it is large ("max") or small ("min"); by default large,
            unless it is a loss by its name.
        ema_decay: keeps an average of the weights that decays by this at each step, such as 0.9998;
            it is what is evaluated, and what ``load_from_checkpoint`` loads.
        timeout_minutes: how long a rank waits for the others before the job ends with an error; a
            rank that has died or hangs is named.
        **kwargs: of ``lightning.Trainer``.

    Raises:
        InputError: settings that contradict each other or the launcher.
    """

    def __init__(
        self,
        *,
        accelerator: str = "auto",
        strategy: str | Strategy = "auto",
        devices: list[int] | str | int = "auto",
        num_nodes: int = 1,
        precision: Any = None,
        logger: bool | str | Logger | Sequence[str | Logger] | None = None,
        callbacks: list[Callback] | Callback | None = None,
        default_root_dir: str | Path | None = "runs",
        plugins: Any = None,
        use_distributed_sampler: bool = False,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        save_every_n_epochs: int = 1,
        save_every_n_steps: int | None = None,
        save_every_minutes: float | None = None,
        keep_last: int = 2,
        keep_best: int = 1,
        best_metric: str | None = None,
        best_mode: Literal["max", "min"] | None = None,
        ema_decay: float | None = None,
        timeout_minutes: float = 30.0,
        **kwargs: Any,
    ) -> None:
        arguments.check_compatible(use_distributed_sampler, precision, timeout_minutes, kwargs)
        timeout = timedelta(minutes=timeout_minutes)
        plugins = all_plugins(plugins)
        own = any(isinstance(plugin, ClusterEnvironment) for plugin in plugins)
        devices, num_nodes = launcher_world(devices, num_nodes, accelerator, own)
        arguments.check_numbers(kwargs)
        arguments.tell_never_measured(kwargs)
        root = arguments.runs_folder(default_root_dir)
        name = folder_name(root)
        known = read_record(Path(root, name)) if name else {}
        given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or ())
        saving: list[Callback] = [] if ema_decay is None else [AverageWeights(ema_decay)]
        save = SaveSettings(
            save_every_n_epochs=save_every_n_epochs,
            save_every_n_steps=save_every_n_steps,
            save_every_minutes=save_every_minutes,
            keep_last=keep_last,
            keep_best=keep_best,
            best_metric=best_metric,
            best_mode=best_mode,
        )
        described = any(isinstance(callback, ModelSummary) for callback in given)
        if not described and kwargs.get("enable_model_summary") is not False:
            saving.append(Summary())
        if enable_checkpointing is False:
            save.check_saves_nothing()
        else:
            # Before NCCL's watchdog, which ends the process without naming the rank that hangs.
            saving += [Checkpoints(save), Preemption(0.9 * timeout)]
        strategy = choice.strategy(strategy, accelerator, _one_device(devices, num_nodes), timeout)
        precision, plugins = choice.precision(precision, accelerator, strategy, plugins)
        loggers = make_loggers(logger, root, name, known.get("logger_ids"))
        self.unlogged: MetricsLogger | None = None
        """Names the folder of a run that nothing logs."""
        if not loggers and not kwargs.get("fast_dev_run"):
            self.unlogged = MetricsLogger(root, name)
        super().__init__(
            accelerator=accelerator,
            strategy=strategy,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,
            logger=loggers,
            callbacks=[
                *given,
                *default_callbacks(given, enable_progress_bar is not False, *saving),
            ],
            enable_progress_bar=enable_progress_bar,
            default_root_dir=root,
            plugins=plugins,
            use_distributed_sampler=False,
            enable_checkpointing=enable_checkpointing,
            **kwargs,
        )
        use_connector(self, NamedCheckpoints(self))
        leave_signals_alone(self)

    @property
    def log_dir(self) -> str | None:
        """The run's folder, by the first rank's word: every rank must ask at once."""
        if self.unlogged is None:
            return super().log_dir
        return self.strategy.broadcast(self.unlogged.log_dir)

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Trains. What SLURM or torchrun starts again goes on from its own run's newest checkpoint.

        SIGTERM, SIGUSR2 and Ctrl-C have all ranks save and end the process with code 85.

        Args:
            model: to train.
            train_dataloaders: in place of a data module.
            val_dataloaders: likewise.
            datamodule: the data.
            ckpt_path: the checkpoint to go on from; ``last`` for the newest one of the newest run
                below ``default_root_dir``.
            weights_only: has no effect: checkpoints are never read otherwise.
        """
        with preemption.stoppable(self):
            super().fit(
                model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only
            )

    def save_checkpoint(
        self, filepath: Any, weights_only: bool | None = None, storage_options: Any = None
    ) -> None:
        """As Lightning's, but where one rank cannot write, all of them raise SaveError, and URLs
        among the hyper-parameters are saved without their secrets."""
        if self.model is None:
            super().save_checkpoint(filepath, weights_only, storage_options)  # which says so
        # Lightning says of None, at every checkpoint, what it takes that for.
        checkpoint = checkpoint_of(self, bool(weights_only))
        for key in HYPER_PARAMETERS & checkpoint.keys():
            checkpoint[key] = urls.all_shown(checkpoint[key])
        with on_all_ranks(filepath):
            self.strategy.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def find_lr(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        least: float = 1e-6,
        most: float = 1.0,
        steps: int = 100,
    ) -> float:
        """Finds a learning rate to begin with: that at which the loss falls fastest.

        A run of its own, which keeps nothing; ``tuning.find_lr`` tells how.

        Args:
            model: to train for some steps; its weights are put back.
            datamodule: the data.
            least: the rate of the first step.
            most: the rate of the last step.
            steps: optimizer steps in all.
        """
        found = tuning.find_lr(self, model, datamodule, least, most, steps)
        if self.is_global_zero:
            print(f"learning rate: {found:.3g} (--model.init_args.lr {found:.3g})", flush=True)
        return found

    def find_batch_size(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        most: int = 512,
        steps: int = 3,
    ) -> int:
        """Finds the largest batch size that fits into the GPU's memory, less 5 %.

        A run of its own, which keeps nothing; ``tuning.find_batch_size`` tells how.

        Args:
            model: to train for some steps.
            datamodule: the data.
            most: the largest one to try.
            steps: to train with each.
        """
        found = tuning.find_batch_size(self, model, datamodule, most, steps)
        print(f"batch size: {found} on each GPU (--data.batch_size {found})", flush=True)
        return found

    def before_run(self, model: LightningModule, ckpt_path: Any) -> Any:
        begun = begin(self, ckpt_path)
        check_setup(self, model, begun.checkpoint)
        self.begun_from, self.agents = begun.checkpoint, begun.agents
        if begun.rendezvous is not None:
            settle_at_exit()
        for callback in self.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Preemption):
                callback.join(begun.rendezvous, begun.hosts)
        return begun.checkpoint


def _one_device(devices: list[int] | str | int, num_nodes: int) -> bool:
    if num_nodes > 1:
        return False
    if devices in ("auto", -1, "-1"):
        return torch.cuda.device_count() <= 1
    return devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)

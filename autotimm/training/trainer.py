"""AutoTrainer: a Lightning Trainer whose defaults fit this package."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from autotimm.checkpoints.settings import SaveSettings
from autotimm.checkpoints.storage import on_all_ranks
from autotimm.distributed.agreement import settle_at_exit
from autotimm.distributed.launcher import launcher_world
from autotimm.files import urls
from autotimm.lightning_private import (
    HookedTrainer,
    RowsAhead,
    checkpoint_of,
    import_no_object_stores,
    leave_signals_alone,
    use_connector,
)
from autotimm.outputs.loggers import make_loggers, sync
from autotimm.outputs.metrics_file import MetricsLogger
from autotimm.plain import plain, plain_arguments
from autotimm.redaction import redacted
from autotimm.setup.check import check_setup
from autotimm.strategies import choice
from autotimm.training import arguments, preemption, tuning
from autotimm.training.defaults import all_callbacks, all_plugins
from autotimm.training.earlier_runs import FinishedError
from autotimm.training.other_callbacks import check_callbacks
from autotimm.training.preemption import Preemption
from autotimm.training.quiet import quiet_libraries
from autotimm.training.run_folder import folder_name
from autotimm.training.run_record import read_record
from autotimm.training.start import NamedCheckpoints, begin
from autotimm.training.start_weights import Weights, preparation

quiet_libraries()

HYPER_PARAMETERS = {"hyper_parameters", "datamodule_hyper_parameters"}


class AutoTrainer(HookedTrainer):
    """``lightning.Trainer`` with other defaults. It accepts all of Lightning's arguments.

    - Under torchrun or srun, the launcher determines the number of processes and nodes.
    - Each run writes into ``<default_root_dir>/version_<n>``: ``metrics.csv``, ``checkpoints/``
      (links ``last.ckpt`` and ``best.ckpt`` to ``step_<n>.ckpt``), ``pictures/``, ``run.json``
      (progress and origin of the run), and the results of a test as COCO JSON. The link
      ``<default_root_dir>/last`` leads to the newest run.
    - On SIGTERM, SIGUSR2 or Ctrl-C, all ranks of a fit save the same step and exit with code 85. If
      SLURM or torchrun restarts them, they resume from there.
    - A loss or gradient that is not finite ends the run before it changes the weights.
    - The data module orders the samples and divides them among the ranks, instead of Lightning.

    Args:
        accelerator: "cpu", "gpu", or "auto" for a GPU if there is one.
        strategy: "auto" (DDP for several processes), "ddp", "deepspeed_stage_1", "_2", "_3", the
            path of a DeepSpeed config, or "fsdp". All of them also work on CPUs.
        devices: per node; by default as many as the launcher has started processes.
        num_nodes: by default as many as the launcher uses.
        precision: "16-mixed", "bf16-mixed" or "32-true"; by default "16-mixed" if the run uses a
            GPU, else "32-true".
        logger: "tensorboard" (the default if it is installed), "wandb", "mlflow", or Logger
            objects, one or several, in addition to ``metrics.csv``. False for none at all. A logger
            that fails causes a warning and does not end the run.
        callbacks: additional ones, or replacements for default ones of the same class.
        default_root_dir: the folder for the folders of the runs; ``runs`` by default.
        plugins: as in Lightning.
        use_distributed_sampler: must be False, because the data module divides the samples.
        enable_checkpointing: False saves nothing, and signals keep their usual effect.
        enable_progress_bar: False for no bar; if the output goes to a file there is never one.
        save_every_n_epochs: epochs between saves of the state of the training; 0 for never.
        save_every_n_steps: optimizer steps between saves.
        save_every_minutes: minutes between saves.
        keep_last: the number of newest checkpoints to keep; -1 for all.
        keep_best: the number of best checkpoints to keep; 0 for none.
        best_metric: the name of a validation metric that determines the best checkpoint; by default
            the model's first metric on the progress bar, or its first one.
        best_mode: "max" if large values of it are good, "min" if small ones are; by default "max",
            or "min" if its name contains "loss".
        ema_decay: the decay per step of an average of the weights, such as 0.9998. The average is
            evaluated, and ``load_from_checkpoint`` loads it. None for no average.
        patience: the number of validations in a row that do not get better by ``best_metric`` after
            which the fit ends. None to train to the end.
        run_name: the name of a new run's folder in ``default_root_dir``; by default the next free
            ``version_<n>``.
        timeout_minutes: how long a rank waits for the others, from their first contact on, before
            the job ends with an error that names a rank that has died, hangs or never came.
        **kwargs: other arguments of ``lightning.Trainer``.

    Raises:
        InputError: settings contradict each other or the launcher.
    """

    @plain_arguments
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
        patience: int | None = None,
        run_name: str | None = None,
        timeout_minutes: float = 30.0,
        **kwargs: Any,
    ) -> None:
        import_no_object_stores()
        arguments.check_compatible(use_distributed_sampler, precision, timeout_minutes, kwargs)
        timeout = self.timeout = timedelta(minutes=timeout_minutes)
        plugins = all_plugins(plugins)
        own = any(isinstance(plugin, ClusterEnvironment) for plugin in plugins)
        devices, num_nodes = launcher_world(devices, num_nodes, accelerator, own)
        arguments.check_numbers(kwargs)
        barebones = bool(kwargs.get("barebones"))
        if barebones:  # what the user asks for all the same, Lightning refuses by name
            logger = False if logger is None else logger
            enable_checkpointing = bool(enable_checkpointing)
            enable_progress_bar = bool(enable_progress_bar)
        root = arguments.runs_folder(default_root_dir)
        name = folder_name(root, run_name)
        self.new_name = run_name  # until begin() has seen that no other run has it
        callbacks = all_callbacks(
            callbacks,
            SaveSettings(
                save_every_n_epochs=save_every_n_epochs,
                save_every_n_steps=save_every_n_steps,
                save_every_minutes=save_every_minutes,
                keep_last=keep_last,
                keep_best=keep_best,
                best_metric=best_metric,
                best_mode=best_mode,
            ),
            timeout=timeout,
            saves=enable_checkpointing is not False,
            ema_decay=ema_decay,
            patience=patience,
            bar=enable_progress_bar is not False,
            summary=kwargs.get("enable_model_summary") is not False,
            barebones=barebones,
        )
        strategy = choice.strategy(
            strategy, accelerator, arguments.one_device(devices, num_nodes), timeout
        )
        precision, plugins = choice.precision(precision, accelerator, strategy, plugins)
        known = read_record(Path(root, name)) if name else {}
        loggers = make_loggers(logger, root, name, known.get("logger_ids"))
        self.start_weights: Weights | None = None
        """What the model starts from in a fit that does not resume from a checkpoint."""
        self.leaves_finished_runs = False
        """Whether a fit that would resume a run without a step left says so and does nothing, not
        even load the checkpoint. Callers set it that end after the fit."""
        self.unlogged: MetricsLogger | None = None
        """Determines the folder of a run without loggers."""
        if not loggers and not kwargs.get("fast_dev_run") and not barebones:
            self.unlogged = MetricsLogger(root, name)
        super().__init__(
            accelerator=accelerator,
            strategy=strategy,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,
            logger=loggers or False,
            callbacks=callbacks,
            enable_progress_bar=enable_progress_bar,
            default_root_dir=root,
            plugins=plugins,
            use_distributed_sampler=False,
            enable_checkpointing=enable_checkpointing,
            **kwargs,
        )
        use_connector(self, NamedCheckpoints(self))
        self._rows = RowsAhead(self)
        leave_signals_alone(self)

    @property
    def check_val_every_n_epoch(self) -> int | None:
        """The number of epochs between validations; 1 in a fit's last epoch, after which there
        always is one. Otherwise nothing would be measured of the last epochs of a run, and in a
        short or a resumed one no checkpoint would be the best."""
        every = self._check_val_every_n_epoch
        if every is None or self.state.fn != TrainerFn.FITTING:
            return every
        ends = self.max_epochs is not None and self.current_epoch + 1 >= self.max_epochs > 0
        return 1 if ends or 0 < self.max_steps <= self.global_step else every

    @check_val_every_n_epoch.setter
    def check_val_every_n_epoch(self, every: int | None) -> None:
        self._check_val_every_n_epoch = every

    @property
    def log_dir(self) -> str | None:
        """The run's folder. All ranks read it together, because the first one sends it to all."""
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
        weights: str | Path | None = None,
        weights_only_fitting: bool = False,
    ) -> None:
        """Train a model.

        If SLURM or torchrun restarts the process, it resumes from its run's newest checkpoint. On
        SIGTERM, SIGUSR2 or Ctrl-C, all ranks save and exit with code 85.

        Args:
            model: to train.
            train_dataloaders: for training, instead of a data module.
            val_dataloaders: for validation, instead of a data module.
            datamodule: the data.
            ckpt_path: the checkpoint to resume from; ``last`` for the newest one of the newest run
                in ``default_root_dir``.
            weights_only: without effect, because checkpoints are always read in this way.
            weights: a trained model to start from, whatever its classes: a path or URL of a
                checkpoint or of torchvision's weights, or ``torchvision/<name>``.
            weights_only_fitting: whether to take the tensors that fit of any other model.
        """
        self.start_weights = Weights.given(weights, weights_only_fitting, ckpt_path)
        try:
            with preemption.stoppable(self):
                super().fit(
                    model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only
                )
        except FinishedError as finished:
            rank_zero_info(str(finished))

    def save_checkpoint(
        self, filepath: Any, weights_only: bool | None = None, storage_options: Any = None
    ) -> None:
        """Save a checkpoint as in Lightning, without the secrets of URLs in hyper-parameters.

        The row of this step in ``metrics.csv`` is on the disk before.

        Args:
            filepath: the file to write.
            weights_only: whether to leave out what only a resumed run needs.
            storage_options: as in Lightning.

        Raises:
            SaveError: on all ranks, if one of them cannot write.
        """
        if self.model is None:
            super().save_checkpoint(filepath, weights_only, storage_options)  # raises an error
        self._rows.log()
        sync(self.loggers)
        # As a bool: Lightning prints a message for None at every checkpoint.
        checkpoint = checkpoint_of(self, bool(weights_only))
        for key in HYPER_PARAMETERS & checkpoint.keys():
            checkpoint[key] = redacted(plain(checkpoint[key]))
        with on_all_ranks(filepath):
            self.strategy.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def find_lr(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        least: float = 1e-6,
        most: float = 1.0,
        steps: int = 100,
        weights: str | Path | None = None,
        weights_only_fitting: bool = False,
    ) -> float:
        """Find the learning rate at which the loss falls fastest.

        ``tuning.find_lr`` describes the method. It uses up the trainer and writes nothing.

        Args:
            model: to train for some steps; its weights are restored.
            datamodule: the data.
            least: the rate of the first step.
            most: the rate of the last step.
            steps: the total number of optimizer steps.
            weights: as in ``fit``.
            weights_only_fitting: as in ``fit``.
        """
        start = {"weights": weights, "weights_only_fitting": weights_only_fitting}
        rate = tuning.find_lr(self, model, datamodule, least, most, steps, **start)
        if self.is_global_zero:
            print(f"learning rate: {rate:.3g} (--model.init_args.lr {rate:.3g})", flush=True)
        return rate

    def find_batch_size(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        most: int = 512,
        steps: int = 3,
    ) -> int:
        """Find the largest batch size that fits into a GPU's memory, less 5 %.

        ``tuning.find_batch_size`` describes the method. It uses up the trainer and writes nothing.

        Args:
            model: to train for some steps.
            datamodule: the data.
            most: the largest batch size to try.
            steps: the number of steps for each.
        """
        batch_size = tuning.find_batch_size(self, model, datamodule, most, steps)
        print(f"batch size: {batch_size} on each GPU (--data.batch_size {batch_size})", flush=True)
        return batch_size

    def before_run(self, model: LightningModule, ckpt_path: Any) -> Any:
        if self.state.fn == TrainerFn.FITTING:
            check_callbacks(self.callbacks, model)  # type: ignore[attr-defined]
        begun = begin(self, model, ckpt_path)
        if begun.finished and self.leaves_finished_runs:
            raise FinishedError(begun.checkpoint, begun.finished)
        if self.start_weights is not None and begun.weights and not urls.kind(begun.weights):
            # runs/last leads elsewhere since the first start. URLs have lost their secrets there.
            self.start_weights = self.start_weights._replace(source=begun.weights)
        start = preparation(self, self.start_weights, model, begun.checkpoint)
        check_setup(self, model, begun.checkpoint, start)
        self.begun_from, self.agents = begun.checkpoint, begun.agents
        if begun.rendezvous is not None:
            settle_at_exit()
        for callback in self.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Preemption):
                callback.join(begun.rendezvous, begun.hosts)
        return begun.checkpoint

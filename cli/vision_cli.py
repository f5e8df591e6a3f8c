"""The LightningCLI subclass: runs fit, validate, test and predict, adds the callbacks of every run, links data to model."""

from __future__ import annotations

import logging
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import callbacks as ours
import datamodules
import lightning_modules
from callbacks.find_callbacks import find_callbacks
from callbacks.run_folder import lock_run
from cli import evaluation, resume, runtimes, test_time
from cli.config_files import check_configs, say_dropped, weights_win
from cli.given_weights import check_given_weights, check_kinds
from cli.messages import readable
from cli.next_commands import next_commands
from cli.parser import Parser, add_run_settings, check_nulls
from cli.predictions import write_predictions
from cli.processes import go_on_with, predict_with_one
from cli.resume import RunCheckpoint
from cli.run_flags import RunFlags, UsageError
from cli.setting_hints import LINKED
from cli.trainer.callback_checks import check_callbacks, check_given_once, name_cache
from cli.trainer.callback_flags import parse_with_callback_flags
from cli.trainer.checks import check_classes, check_seed, check_trainer
from cli.trainer.loggers import prepare_loggers
from cli.trainer.options import make_trainer
from cli.trainer.run_callbacks import recipe_of, run_callbacks
from datamodules.images.unlabelled import given_images
from foundation.folder_lock import FolderLock
from foundation.made_folders import forget_made_folders, remove_made_folders
from foundation.project import MAIN, ROOT

log = logging.getLogger(__name__)

DEFAULTS = ROOT / "configs" / "defaults.yaml"
NOT_OURS = {"ckpt_path", "weights_only", "verbose", "return_predictions"}  # replaced by --resume, --run and --ckpt


class VisionCLI(LightningCLI):
    """Runs one command. The constructor only stores its arguments; ``run()`` parses, creates the objects and writes files.

    Args:
        flags: The parsed command line (:func:`cli.run_flags.split_flags`).
        command: The command line as typed, for environment.json.
    """

    def __init__(self, flags: RunFlags, command: list[str]) -> None:
        self.flags, self.command_line = flags, command
        self.source: RunCheckpoint | None = None
        self.trained_on: datamodules.TrainedOn | None = None
        self.run_folder: ours.RunFolder | None = None
        self.lock: FolderLock | None = None
        self.signals = ours.StopOnSignal()
        self.datamodule: Any = None
        self.model: Any = None

    # ---- state read by main ----

    @property
    def run_dir(self) -> Path | None:
        """The run folder of a fit, or None if it does not exist (yet)."""
        return self.run_folder.path if self.run_folder is not None else None

    @property
    def resume_command(self) -> str | None:
        """The command that resumes an interrupted fit, or None if there is no last.ckpt."""
        folder = self.run_dir
        if self.flags.command != "fit" or folder is None or not (folder / "checkpoints" / "last.ckpt").is_file():
            return None
        tested = " --test_after_fit" if "test_after_fit" in self.flags.values else ""  # its value is empty
        return f"{MAIN} fit --resume {shlex.quote(str(folder))}{tested}"

    @property
    def classes(self) -> dict[str, type]:
        """Classes of model and data, as far as they have been created."""
        return {key: type(one) for key, one in (("model", self.model), ("data", self.datamodule)) if one is not None}

    @property
    def has_begun(self) -> bool:
        """Whether a fit has taken its first step, so that its run folder stays."""
        return self.run_folder is not None and self.run_folder.begun

    def discard(self) -> None:
        """Remove the files that a rejected command has created."""
        if self.run_folder is not None:
            self.run_folder.discard()
        if not self.has_begun:
            remove_made_folders()

    def release(self) -> None:
        """Release the run folder, so that other processes can train in it."""
        if self.lock is not None:
            self.lock.release()

    # ---- parsing ----

    def run(self) -> None:
        """Parse, instantiate and run the command; SIGTERM and SIGINT end it with :class:`callbacks.Interrupted`."""
        forget_made_folders()
        self.signals.install()
        try:
            self._run()
        finally:
            self.signals.uninstall()

    def _run(self) -> None:
        check_configs(self.flags.configs)
        arguments = [self.flags.command, *self.flags.rest]
        if (target := self.flags.values.get("resume") or self.flags.values.get("run")) is not None:
            self.source = resume.find(target, self.flags)
            if self.flags.command == "fit":
                self.lock = lock_run(self.source.folder)
                self.source = resume.find(target, self.flags)  # another process may have replaced it before the lock
            if self.source.note is not None:
                log.warning(self.source.note)
            self.trained_on = self.source.trained_on
            arguments = [self.flags.command, "--config", str(self.source.config), *self.flags.rest]
        elif self.flags.command != "fit" and not self.flags.configs:
            raise UsageError(f"{self.flags.command}: which run? give --run RUN_DIR (or --config FILE and --ckpt PATH)")
        elif Path(self.flags.values.get("ckpt", "")).is_file():
            self.trained_on = datamodules.TrainedOn.of_checkpoint(resume.read(Path(self.flags.values["ckpt"])))
        super().__init__(
            lightning_modules.BaseModule,
            datamodules.DataModule,
            save_config_callback=None,
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={name: {"default_config_files": [str(DEFAULTS)]} for name in self.subcommands()},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=arguments,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse ``args``, without Lightning's warning that they differ from ``sys.argv``."""
        try:
            self.config = parse_with_callback_flags(parser, self._subcommand_parsers[self.flags.command], args)
        except UsageError as error:
            raise self._readable_error(error) from error
        check_seed(self.config[self.flags.command].seed_everything)
        prepare_loggers(self.config[self.flags.command].trainer.logger, self.flags, self.source)

    def _readable_error(self, error: Exception) -> UsageError:
        configs = [*([str(self.source.config)] if self.source is not None else []), *self.flags.configs]
        parser = self._subcommand_parsers[self.flags.command]
        return UsageError(readable(str(error), parser, self.flags, configs))

    def _parse_ckpt_path(self) -> None:
        """Does nothing: hyperparameters in a checkpoint never override the configuration or a flag."""

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # of the others no parser is built
        """Return the command that runs, with the Trainer arguments to skip because project flags replace them."""
        return {self.flags.command: LightningCLI.subcommands()[self.flags.command] | NOT_OURS}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the settings of the callbacks of every run, ``on_oom``, ``fast_loop``, and the links from data to model."""
        add_run_settings(parser)
        parser.add_lightning_class_args(ours.Checkpoints, "checkpoint")
        parser.add_lightning_class_args(ours.StopOnNonFinite, "non_finite")
        parser.add_lightning_class_args(ours.Progress, "progress")
        parser.add_lightning_class_args(ours.Curves, "curves")
        for name in LINKED:
            value = partial(self._of_data, name)
            parser.link_arguments("data", f"model.init_args.{name}", compute_fn=value, apply_on="instantiate")

    def _of_data(self, name: str, data: datamodules.DataModule) -> Any:
        """Return a property of the datamodule for the model; in an evaluation the data is first matched to the checkpoint."""
        if self.trained_on is not None and data.trained_on is None and self.flags.command != "fit":
            given = evaluation.given_settings(self.flags)
            given |= resume.changed_since_start(self.source) if self.source is not None else frozenset()
            data.match(self.trained_on, given, labelled=self.flags.command != "predict")
        if name == "num_classes" and self.flags.command == "fit":
            check_classes(data)
        return getattr(data, name)

    # ---- instantiation ----

    def before_instantiate_classes(self) -> None:
        """Reject changes that a resumed run cannot take and null where it is no value; mend directions recorded wrongly."""
        if self.source is not None and self.subcommand == "fit":
            resume.mend_modes(self.source, self.config[self.subcommand])
            resume.check_changes(self.source, self.config_dict(), self.flags)
        elif self.source is None:
            check_nulls(self.config[self.subcommand])
            check_given_once(self.config[self.subcommand].trainer.get("callbacks"), self.flags.configs)
            check_given_weights(self.flags, self.config[self.subcommand])
            say_dropped(self.flags.configs)
            weights_win(self.config[self.subcommand], self.flags.rest)
        check_kinds(self.config[self.subcommand])
        if self.source is not None and self.subcommand == "predict":
            predict_with_one(self.config[self.subcommand], self.flags)
        if self.subcommand != "predict" and self.config[self.subcommand].data.get("init_args.images") is not None:
            raise UsageError(f"data.images: is a setting of predict, {self.subcommand} does not read it; leave it out")

    def config_dict(self) -> dict[str, Any]:
        """Return the configuration of this command as plain YAML values."""
        parser = self._parser(self.subcommand)
        content: dict[str, Any] = yaml.safe_load(
            parser.dump(self.config[self.subcommand], skip_validation=True, skip_unset=False)
        )
        return {key: value for key, value in content.items() if key != "config"}

    def instantiate_classes(self) -> None:
        """Create the objects, and reject model settings that contradict the data (settings linked from data to model)."""
        given = self.config[self.subcommand].model.get("init_args", {})
        self._given = {name: given.get(name) for name in LINKED}
        try:
            super().instantiate_classes()
        except (UsageError, ValueError) as error:
            if isinstance(error.__cause__, MisconfigurationException | OSError):  # from the datamodule, in a link
                raise error.__cause__ from None
            raise self._readable_error(error) from error
        for name, value in self._given.items():
            found = getattr(self.datamodule, name)
            if value is not None and value != (list(found) if isinstance(found, tuple) else found):
                raise UsageError(
                    f"model.{name}: {value} is given, but the data has {found}; remove the setting, it is taken from the data"
                )
        self.datamodule.seed = self.config[self.subcommand].seed_everything
        if self.source is not None and self.subcommand == "fit":
            self.datamodule.parts = resume.parts(self.source, self.trainer.accumulate_grad_batches)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Create the Trainer with all callbacks in their required order, the run folder's logger and atomic checkpoint writing."""
        settings = self.config_init[self.subcommand]
        options = dict(vars(settings.trainer))
        quiet = bool(options.get("fast_dev_run"))
        given = options.get("callbacks") or []
        own = given if isinstance(given, list) else [given]
        check_callbacks(own, self.flags.configs)
        check_trainer(options)
        self.run_folder = self._make_run_folder(quiet)
        folder = self.run_folder.path
        name_cache(own, self.flags)
        options["callbacks"] = self._all_callbacks(own, settings, options)
        resumed_at = self.source.step if self.source is not None else None
        return make_trainer(options, folder, resumed_at, settings.fast_loop, self.subcommand == "fit", **kwargs)

    def _make_run_folder(self, quiet: bool) -> ours.RunFolder:
        path = None
        if self.subcommand == "fit" and not quiet:
            path = self.source.folder if self.source is not None else self.flags.new_run_dir()
        text = yaml.safe_dump(self.config_dict(), sort_keys=False)
        seed = self.config[self.subcommand].seed_everything
        tested = self.subcommand == "fit" and "test_after_fit" in self.flags.values
        folder = ours.RunFolder(path, text, seed, self.command_line, resumed=self.source is not None, tested=tested)
        self.lock = folder.hold(self.lock) or self.lock
        return folder

    def _all_callbacks(self, own: list[Callback], settings: Any, options: dict[str, Any]) -> list[Callback]:
        assert self.run_folder is not None
        return run_callbacks(
            own, settings, options, self.run_folder, self.signals, recipe_of(self.flags.configs), self.flags.command
        )

    # ---- commands ----

    def fit(self, model: LightningModule, datamodule: Any) -> None:
        """Train, then print the run folder and the commands to view, continue and test the run."""
        checkpoint = done = None
        if self.source is not None:
            checkpoint = str(self.source.checkpoint)
            done = resume.finished(self.source, self.config_dict())
            if done:
                left = "only the test is left" if "test_after_fit" in self.flags.values else "nothing to do"
                log.info(f"{self.source.folder}: {done}; {left}")
            else:
                go_on_with(self.trainer, datamodule, self.source, self.config_dict())
                log.info(
                    f"resuming {self.source.checkpoint} ({self.source.epoch} epoch{'s' * (self.source.epoch != 1)}, "
                    f"{self.source.step} steps done)"
                )
        # a run killed while writing its summary has finished training, but some files are still missing
        if not (done and (self.source.folder / "training_summary.json").is_file()):  # type: ignore[union-attr]
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
        folder = self.run_dir
        if folder is None:
            log.info("fast_dev_run: nothing was written")
            return
        if "test_after_fit" in self.flags.values:
            best = self.run_best()
            datamodule.match(datamodules.TrainedOn(**datamodule.training_record()))
            results = self.trainer.test(
                model, datamodule=datamodule, ckpt_path=str(best), weights_only=True, verbose=False
            )
            self._report("test", best, results, folder, folder)
        if done:
            return
        tested = "test_after_fit" in self.flags.values
        for line in next_commands(self.trainer, folder, self.run_best(), self.resume_command, tested):
            log.info(line)

    def run_best(self) -> Path:
        """Return the best checkpoint of the finished run, or the last one if there was no validation."""
        assert self.run_dir is not None
        path = self.run_dir / "checkpoints" / "best.ckpt"
        return path if path.is_file() else path.with_name("last.ckpt")

    def validate(self, model: LightningModule, datamodule: Any) -> None:
        """Compute the validation metrics of a checkpoint."""
        self._evaluate("validate", model, datamodule)

    def test(self, model: LightningModule, datamodule: Any) -> None:
        """Compute the test metrics of a checkpoint."""
        self._evaluate("test", model, datamodule)

    def _evaluate(self, command: str, model: LightningModule, datamodule: Any) -> None:
        checkpoint, folder = self._checkpoint()
        assert self.run_folder is not None
        target = self._results_folder(datamodule, checkpoint, folder)
        self.run_folder.evaluated = target
        run = runtimes.evaluator(self.trainer, command, self.flags)
        of = partial(run, model, datamodule=datamodule, ckpt_path=str(checkpoint), weights_only=True, verbose=False)
        results, plain = test_time.evaluate(of, model, datamodule, self.flags)
        self._report(command, checkpoint, results, folder, target, plain)

    def _results_folder(self, datamodule: Any, checkpoint: Path, folder: Path | None) -> Path | None:
        name = test_time.result_name(self.flags, datamodule)
        if folder is None:
            if "name" in self.flags.values:
                raise UsageError("--name: the results belong to a run; give --run RUN_DIR")
            return None
        return evaluation.results_folder(
            folder, checkpoint, datamodule, name, self.flags.values.get("runtime", "torch")
        )

    def predict(self, model: LightningModule, datamodule: Any) -> None:
        """Write predictions.csv for the test split or the folder --data.images, or write masks, or extract features."""
        if writers := find_callbacks(self.trainer, ours.FeatureWriter):
            evaluation.refuse_random_backbone(model, self.flags)
            writers[0].claim(datamodule)
            self.trainer.predict(model, datamodule=datamodule, return_predictions=False)
            return
        checkpoint, run = self._checkpoint()
        if self.trainer.world_size > 1:
            raise UsageError("predict: works with one process only; give --trainer.devices 1 --trainer.strategy auto")
        if datamodule.images is not None:
            # a wrong path is refused before a folder is chosen
            given_images(datamodule.images, 3 if getattr(datamodule, "reads_stacks", False) else datamodule.in_channels)
        test_time.use_views(model, datamodule, self.flags)
        name, of_data = test_time.result_name(self.flags, datamodule), datamodule.images is None
        target = self._results_folder(datamodule, checkpoint, run) if name is not None or of_data else run
        folder, source, kept = evaluation.predictions_folder(run, target, datamodule, name)
        write = self._write_masks if isinstance(model, lightning_modules.PromptedSegmenter) else self._write_classes
        write(model, datamodule, checkpoint, folder)
        evaluation.record_predictions(folder, source, checkpoint, kept)

    def _write_classes(self, model: LightningModule, datamodule: Any, checkpoint: Path, folder: Path) -> None:
        outputs = self.trainer.predict(model, datamodule=datamodule, ckpt_path=str(checkpoint), weights_only=True)
        path = folder / "predictions.csv"
        write_predictions(path, outputs or [], model, datamodule.class_names, datamodule.predicted_files())
        of = datamodule.images or f"the test split of {datamodule.place}"
        log.info(f"predictions of {resume.describe(checkpoint)} for {of}: {path}")
        thresholds = checkpoint.parents[1] / "per_label_val.csv"
        if getattr(model, "several_labels", False) and checkpoint.name == "best.ckpt" and thresholds.is_file():
            log.info(f"thresholds of the labels: {thresholds}")

    def _write_masks(self, model: LightningModule, datamodule: Any, checkpoint: Path, folder: Path) -> None:
        self.trainer.callbacks.append(ours.MaskWriter(folder))  # type: ignore[attr-defined]
        self.trainer.predict(
            model, datamodule=datamodule, ckpt_path=str(checkpoint), weights_only=True, return_predictions=False
        )
        log.info(f"masks of {resume.describe(checkpoint)}: {folder / 'predictions'}, {folder / 'predictions.csv'}")

    def _checkpoint(self) -> tuple[Path, Path | None]:
        if self.source is not None:
            return self.source.checkpoint, self.source.folder
        path = Path(self.flags.values["ckpt"])  # see cli/given_weights.py
        resume.read(path)
        return path, None

    def _report(
        self, command: str, checkpoint: Path, results: Any, folder: Path | None, target: Path | None, plain: Any = None
    ) -> None:
        """Print the metrics and write them to ``target``, a folder for results of the run in ``folder``."""
        if not self.trainer.is_global_zero:
            return
        changed = runtimes.changed(self.flags) | test_time.changed(self.flags)
        if self.flags.command != "fit":
            changed |= evaluation.changed_settings(self.source, self.config_dict(), checkpoint, self.model, LINKED)
        evaluation.report_results(
            command, checkpoint, results, changed, self.model, self.datamodule, folder, target, plain
        )

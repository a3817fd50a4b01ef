"""What is wrong with a command is said before torch is imported, in the words of those who check it
later; what Lightning's parser takes passes."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import forked
import pytest

from autotimm.cli import check_paths, early_checks, flags, train
from autotimm.cli.lightning_cli import settings
from autotimm.cli.near_paths import near_use
from autotimm.structures import InputError
from autotimm.tasks.torchvision_weights import PREFIX

SMALL = "launch/small_cpu.yaml"
FIT = ("fit", "--config", SMALL, "--data", "shards/sample")


def said(*words: object) -> str:
    with pytest.raises(InputError) as error:
        early_checks.check([*map(str, words)], "--help")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in early_checks._LAUNCHED:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--batchsize", "2"],
            "unrecognized arguments: --batchsize (did you mean --batch-size?) (",
        ),
        (["loose"], "unrecognized arguments: loose ("),
        (["shards/sample"], "unrecognized arguments: shards/sample (did you mean --data shards/s"),
        ([SMALL], f"unrecognized arguments: {SMALL} (did you mean --config {SMALL}?) ("),
        (["--epochs"], "argument --epochs: expected one argument ("),
        (["--epochs", "--out", "x"], "argument --epochs: expected one argument ("),
        (["--trainer.max_epochs"], "argument --trainer.max_epochs: expected one argument ("),
        (["--weight", "x"], "ambiguous option: --weight could match --weights"),
        (["--epochs", "ten"], "--epochs ten: must be int ("),
        (["--trainer.max_epochs", "ten"], "--trainer.max_epochs ten: must be int ("),
        (["--batch_size=x"], "--batch_size x: must be int ("),
        (["--data.num_workers=1.5"], "--data.num_workers 1.5: must be int ("),
        (["--trainer.barebones", "maybe"], "--trainer.barebones maybe: must be bool ("),
        (["--model.lr", "x"], "--model.lr x: must be float ("),
        (["--model.init_args.lr", "x"], "--model.init_args.lr x: must be float ("),
        (
            ["--model.init_args.bakbone", "x"],
            "autotimm.InstanceSegmentor has no 'bakbone' (did you ",
        ),
        (
            ["--model", "autotimm.ObjectDetector", "--model.mask_size", "7"],
            "autotimm.ObjectDetector ",
        ),
        (["--model", "autotimm.Segmentor"], "--model autotimm.Segmentor: there is no such class"),
        (
            ["--model=InstanceSegmentr"],
            "--model InstanceSegmentr: there is no such class: did you m",
        ),
        (["--config", "no.yaml"], "--config no.yaml: no such file ("),
        (
            ["--config", "small_cpu.yaml"],
            f"--config small_cpu.yaml: no such file (did you mean {SMALL}",
        ),
        (
            ["--config", SMALL[:-5]],
            f"--config {SMALL[:-5]}: no such file (did you mean {SMALL}?) (",
        ),
        (
            ["--config", "launch/smal_cpu.yml"],
            "--config launch/smal_cpu.yml: no such file (did you",
        ),
        (["-c", "launch"], "--config launch: is a folder, not a file ("),
        (["--data", "no/shards"], "data_dir: no/shards: no such folder"),
        (
            ["--data", "shards/sampl"],
            "data_dir: shards/sampl: no such folder (did you mean shar",
        ),
        (["--data", "ftp://a/b"], "ftp://a/b: ftp URLs are not read"),
        (["--ckpt_path", "no.ckpt"], "there is no checkpoint at no.ckpt"),
        (["--weights", "no.ckpt"], "there is no checkpoint at no.ckpt"),
        (["--model.pretrained", "no.pt"], "pretrained='no.pt' is not a file"),
    ],
)
def test_a_wrong_word(words: list[str], line: str) -> None:
    assert said(*FIT, *words).startswith(line)


def test_a_missing_checkpoint_comes_with_those_that_are_there(tmp_path: Path) -> None:
    first, second = (tmp_path / name / "checkpoints" for name in ("first", "second"))
    for folder in (first, second):
        folder.mkdir(parents=True)
    (first / "best.ckpt").touch()
    wanted = second / "best.ckpt"
    line = f"there is no checkpoint at {wanted}"
    for broken in ("{", "[]", '{"from": 3}', '{"from": "a\\u0000b"}'):
        (second.parent / "run.json").write_text(broken)
        assert said(*FIT, "--weights", str(wanted)) == line
    for step in (9, 10):
        (second / f"step_{step}.ckpt").touch()
    assert said(*FIT, "--weights", str(wanted)) == f"{line}: there is {second / 'step_10.ckpt'}"
    (second / "last.ckpt").symlink_to("step_10.ckpt")
    (second.parent / "run.json").write_text(json.dumps({"from": str(first / "step_8.ckpt")}))
    assert said(*FIT, "--ckpt_path", str(wanted)) == (
        f"{line}: there is {second / 'last.ckpt'}, and {first / 'best.ckpt'} of the run that it "
        "went on from"
    )


def test_a_run_for_a_checkpoint_comes_with_its_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    line = f"{tmp_path} is the folder of a run: give "
    assert said(*FIT, "--weights", tmp_path) == f"{line}a checkpoint"
    for name in ("step_9.ckpt", "best.ckpt"):
        (folder / name).touch()
        assert said(*FIT, "--weights", tmp_path) == f"{line}{folder / name}"
        assert said(*FIT, "--ckpt_path", tmp_path) == f"{line}{folder / 'step_9.ckpt'}"
    assert near_use(str(tmp_path), ["--checkpoint"]).endswith(f"--checkpoint {folder / name}?)")
    with pytest.raises(InputError, match=f"^{line}{folder / name}$"):
        check_paths.check_checkpoint(tmp_path)


def test_what_a_verb_needs() -> None:
    assert said("fit").startswith("--data.data_dir must be given (--help lists")
    assert said("test", "--data", "shards/sample") == (
        "test needs --ckpt_path: without it the weights are random"
    )
    assert said("validate", "--least", "1").startswith("unrecognized arguments: --least")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("data: {batchsize: 3}", ": data.batchsize is no setting (did you mean data.batch_size?)"),
        ("batch_size: 3", ": batch_size is no setting (did you mean data.batch_size?)"),
        ("dat: {seed: 3}", ": dat is no setting (did you mean data?)"),
        ("optimizer: sgd", ": optimizer is no setting (did you mean model.init_args.optimizer?)"),
        ("trainer: {gpus: 3}", ": trainer.gpus is no setting"),
        ("{3: 4}", ": 3 is no setting; --print_config has all"),
        (
            "model: {init_args: {bakbone: x}}",
            ": model.init_args.bakbone is no setting (did you mean",
        ),
        (
            "model: {class_path: autotimm.ObjectDetector, init_args: {mask_size: 7}}",
            ": model.init_a",
        ),
        ("model: {class_path: autotimm.Segmentor}", "--model autotimm.Segmentor: there is no such"),
        ("data: {batch_size: two}", ": data.batch_size two: must be int ("),
        ("data: {batch_size: [1, 2]}", ": data.batch_size [1, 2]: must be int ("),
        ("trainer: {max_epochs: true}", ": trainer.max_epochs True: must be int ("),
        ("model: {init_args: {lr: high}}", ": model.init_args.lr high: must be float ("),
        ("data: shards/", ": data is 'shards/', where its settings should be: write them indented"),
        ("a: [1\nb: }", ", line 2: expected"),
        ("a: \x01", ": is not a YAML file: "),
        ("- a", ": holds no settings"),
    ],
)
def test_a_wrong_config(tmp_path: Path, content: str, line: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    assert line in said(*FIT, "--config", file)


@pytest.mark.parametrize(
    "words",
    [
        ["--trainer.max_epoch", "3"],  # argparse takes the beginning of a flag
        ["--trainer.max_epochs", "-1"],
        ["--trainer.max_epochs", "null"],
        ["--trainer.max_steps=0x10"],
        ["--trainer.limit_val_batches", "0.5"],
        ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/mask_mAP"],
        [
            "--trainer.callbacks+=EarlyStopping",
            "--trainer.callbacks.init_args.monitor=val/mask_mAP",
        ],
        ["--model.compile_kwargs.mode", "default"],
        ["--model.lr=1e-3", "--model.init_args.metrics=null"],
        ["--data.image_size", "[64, 96]"],
        ["--data.mean", "[0, 0, 0]", "--data.mean+=1"],
        ["--ckpt_path", "last"],
        ["--weights", "torchvision/fcos_resnet50_fpn"],
        ["--ckpt_path", "https://host/of.ckpt"],
        ["--model.pretrained", "true"],
        [
            "--model",
            "InstanceSegmentor",
            "--model.class_path=autotimm.tasks.segmentor.InstanceSegmentor",
        ],
        ["--config", "{data: {batch_size: 3}}"],
        ["--seed_everything", "true"],
    ],
)
def test_what_the_parser_takes_passes(words: list[str]) -> None:
    early_checks.check([*FIT, *words], "--help")
    settings([*FIT, *words])


def test_later_flags_and_configs_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {data_dir: nowhere}\nmodel: {class_path: mine.Net, init_args: {x: 1}}\n")
    early_checks.check(["fit", "--config", str(file), "--data", "shards/sample"], "--help")
    assert said(*FIT, "--config", file) == "data_dir: nowhere: no such folder"
    # A config may leave its class to another one, or to a flag.
    file.write_text("model: {init_args: {x: 1}}\n")
    assert "model.init_args.x is no setting" in said(*FIT, "--config", file)
    early_checks.check([*FIT, "--model", "mine.Net", "--config", str(file)], "--help")


@pytest.mark.slow
def test_what_print_config_writes_passes(tmp_path: Path) -> None:
    done = forked.run("-m", "autotimm", *FIT, "--epochs", "2", "--print_config")
    file = tmp_path / "config.yaml"
    file.write_text(done.stdout)
    assert "max_epochs: 2" in done.stdout
    early_checks.check(["fit", "--config", str(file)], "--help")


def test_a_job_of_several_processes_and_questions_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for words in ([], ["fit", "--help"], ["fit", "--nope", "--print_config"], ["shard", "--nope"]):
        early_checks.check(words, "--help")
    early_checks.check(["fit", "--nope", "--model.help", "autotimm.ObjectDetector"], "--help")
    monkeypatch.setenv("RANK", "0")
    early_checks.check(["fit", "--nope"], "--help")


def test_the_first_process_of_torchrun_on_one_node_refuses_the_name_of_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "first"
    run.mkdir()
    (run / "run.json").write_text('{"launch_id": "torchrun-y"}')
    words = [*FIT, "--out", f"{tmp_path}/", "--out", "first", "--ckpt_path", "last"]
    last = run / "checkpoints" / "last.ckpt"
    line = (
        f"--out first: {run} is a run already: leave out --out to go on with it (--ckpt_path "
        f"{last}), or give another name"
    )
    assert said(*words) == line
    variables = {"TORCHELASTIC_RUN_ID": "x", "GROUP_WORLD_SIZE": "1", "RANK": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert said(*words) == line
    # Other processes and nodes are ended, or agree on the line later.
    for name, value in {"RANK": "1", "GROUP_WORLD_SIZE": "2"}.items():
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            early_checks.check(words, "--help")
    # After a restart the run is torchrun's own. Its checkpoints are not looked for then.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "y")
    early_checks.check([*words, "--ckpt_path", "gone"], "--help")


def test_torchrun_learns_what_the_first_process_has_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(SystemExit, match="2"):
        train.train(["fit", "--nope", "1"])
    told = json.loads((tmp_path / "error.json").read_text())["message"]["message"]
    assert capsys.readouterr().err == f"{told}\n" and told.startswith("error: unrecognized")


def test_paths_that_only_their_readers_know() -> None:
    for path in ("https://a/b", "s3://a/b", "torchvision/x", "~/x", "a\0b", SMALL, "launch"):
        assert check_paths.exists(path), path
    assert not check_paths.exists("no/such/file")
    assert check_paths._OF_TORCHVISION == PREFIX


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((*FIT, "--batchsize", "2"), "error: unrecognized arguments: --batchsize (did you mean"),
        ((*FIT, "--data", "no"), "error: data_dir: no: no such folder"),
        ((*FIT, "--ckpt_path", "no"), "error: there is no checkpoint at no"),
        (
            ("predict", "--chekpoint", "no", "x"),
            "unrecognized arguments: --chekpoint (did you mean",
        ),
        (("predict", "--checkpoint", "no", "--out", "o", "x"), "there is no checkpoint at no"),
        (("predict", "--checkpoint", SMALL, "--out", "o", "no.jpg"), "no.jpg"),
        (
            ("evaluate", "--checkpoint", "no", "--data", "shards/sample"),
            "there is no checkpoint at",
        ),
        (("evaluate", "--checkpoint", SMALL, "--data", "no"), "no: no such folder"),
        (("export", "--checkpoint", "no", "--out", "a.onnx"), "there is no checkpoint at no"),
        (("preview", "--data", "no", "--out", "a.png"), "data_dir: no: no such folder"),
        (("doctor", "--config", "no.yaml"), "no.yaml: no such file"),
        (("doctor", "shards/sample"), "(did you mean --data shards/sample?)"),
        (("evaluate", "--ckpt_path", "x"), "--ckpt_path (did you mean --checkpoint?)"),
        (("train", "--data", "x"), "there is no such verb; did you mean fit?"),
        (("--data", "x", "fit"), "the verb comes first: autotimm fit ..., and then its flags"),
        (
            ("shard", "shards/sample", "out/"),
            "shards/sample: is a folder of shards already: fit --",
        ),
        (("shard", "coco/"), "DST: is missing: autotimm shard SRC DST"),
    ],
)
def test_it_comes_before_torch(words: tuple[str, ...], line: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from autotimm.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as ended:\n"
        "    heavy = {'torch', 'lightning', 'jsonargparse'} & {*sys.modules}\n"
        "    sys.exit(f'imports {heavy}' if heavy else ended.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and line in done.stderr and done.stderr.count("\n") == 1, (
        done.stderr
    )


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--data", "--ckpt_path", "--weights", "--model.pretrained"])
def test_the_line_is_that_of_the_later_check(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from autotimm.cli.lightning_cli import run

    given = [*FIT, flag, "gone", "--out", str(tmp_path), "--image-size", "64"]
    given += ["--trainer.fast_dev_run", "1"]  # if nothing is wrong
    with pytest.raises(SystemExit):
        run(given)
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {said(*given)}"


def test_short_forms_in_messages_name_what_exists() -> None:
    for short in flags.SHORT:
        assert flags.near_flag(short + "x", "fit"), short


def test_the_collector_rests_only_while_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(train, "import_module", lambda _: seen.append(gc.isenabled()))
    train._lightning_cli()
    assert seen == [False] and gc.isenabled()

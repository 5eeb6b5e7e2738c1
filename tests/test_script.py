"""enhanced_glyph_recognition.py as a user runs it, on some of the demo set's images."""

import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from enhanced_glyph_recognition import main
from glyphs.commands.runs import REPORTS
from glyphs.commands.train import confirmed
from glyphs.core.errors import CheckpointError, ConfigError, DataError, GlyphError
from glyphs.core.files import UNFINISHED, claim_folder
from glyphs.models.checkpoint import load_checkpoint
from glyphs.training.callbacks import EpochLine
from glyphs.training.trainer import Trainer
from tests.conftest import finish, refused, write_emnist
from tests.small import all_state, assert_identical

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow  # most of it: whole runs, many of them in processes of their own

SCRIPT = ROOT / "enhanced_glyph_recognition.py"
# A light network and few images, in small batches: many steps at which to be interrupted.
QUICK = ["--max-train-images", "600", "--no-use-residual", "--batch-size", "16", "--device", "cpu"]
# Enough of both for the loss to fall within the finder's sweep.
FINDABLE = ["--max-train-images", "2000", "--batch-size", "64"]
TEST_IMAGES = 470
DATA: list[str] = []  # where they lie


@pytest.fixture(scope="module", autouse=True)
def data(demo_files: Path) -> None:
    DATA.extend(["--data-dir", str(demo_files)])
    QUICK.extend(DATA)


def start(*arguments: str, preexec_fn: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    """Start the script in a process of its own, with one thread so that results do not depend on the machine."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(SCRIPT), *QUICK, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=preexec_fn,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    status, stdout, stderr = finish(start("--epochs", "3", "--output-dir", str(folder)))
    assert status == 0, stderr
    assert re.fullmatch(r"test accuracy \d+\.\d\d% on 470 images \(.*\)\n", stdout)
    return folder


def test_a_run_writes_every_file(whole: Path) -> None:
    expected = {"best_model.pth", "latest_checkpoint.pth", "config.json", *REPORTS} - {"lr_finder.png"}
    assert {path.name for path in whole.iterdir()} - {".lock"} == expected
    for name in expected:
        if name.endswith(".png"):
            Image.open(whole / name).verify()
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["n"] == TEST_IMAGES
    assert metrics["split"] == "balanced"
    assert metrics["checkpoint"].endswith("best_model.pth")


def test_killed_again_and_again_it_ends_with_the_same_weights(whole: Path, tmp_path: Path) -> None:
    chance = random.Random(5)
    arguments = ["--skip-eval", "--checkpoint-every", "0.05", "--output-dir", str(tmp_path)]
    latest = tmp_path / "latest_checkpoint.pth"
    process = start("--epochs", "3", *arguments)
    wait_for(latest, process)
    for _ in range(3):
        time.sleep(chance.uniform(0, 0.6))
        process.kill()
        process.communicate()
        written = latest.stat().st_mtime_ns
        process = start("--resume", *arguments)
        while process.poll() is None and latest.stat().st_mtime_ns == written:
            time.sleep(0.01)
    status, _, stderr = finish(process)
    assert status == 0, stderr
    assert_identical(all_state(tmp_path), all_state(whole))


# Dies in the middle of its Nth save: half of the new file is written, nothing is renamed.
DIE_IN_A_SAVE = """
import os, signal, stat, sys
saves = 0
def fsync(descriptor):
    global saves
    saves += stat.S_ISREG(os.fstat(descriptor).st_mode)
    if saves == int(sys.argv[1]):
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = fsync
from enhanced_glyph_recognition import main
main(sys.argv[2:])
"""


def test_killed_in_the_middle_of_a_save_it_ends_with_the_same_weights(whole: Path, tmp_path: Path) -> None:
    arguments = [*QUICK, "--skip-eval", "--checkpoint-every", "0.001", "--output-dir", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for save, begin in ((15, ["--epochs", "3"]), (40, ["--resume"])):  # in the first and in the second epoch
        command = [sys.executable, "-c", DIE_IN_A_SAVE, str(save), *arguments, *begin]
        killed = subprocess.run(command, env=environment, capture_output=True, timeout=600)
        assert killed.returncode == -signal.SIGKILL
        assert list(tmp_path.glob(UNFINISHED.format("*")))
    assert load_checkpoint(tmp_path / "latest_checkpoint.pth")["training"]["epoch"] == 1
    status, _, stderr = finish(start("--resume", *arguments[len(QUICK) :]))
    assert status == 0, stderr
    assert_identical(all_state(tmp_path), all_state(whole))
    assert not list(tmp_path.glob(UNFINISHED.format("*")))


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_says_how_to_resume_and_sets_the_status(
    whole: Path, tmp_path: Path, signum: signal.Signals, status: int
) -> None:
    latest = tmp_path / "latest_checkpoint.pth"
    arguments = ["--skip-eval", "--output-dir", str(tmp_path)]
    process = start("--epochs", "3", "--checkpoint-every", "0.05", *arguments)
    wait_for(latest, process)
    process.send_signal(signum)
    ended, _, stderr = finish(process)
    assert ended == status
    assert f"go on with --resume {latest}" in stderr
    assert "Traceback" not in stderr
    if signum == signal.SIGINT:
        ended, _, stderr = finish(start("--resume", str(latest), "--skip-eval"))  # the folder follows from the path
        assert ended == 0, stderr
        assert_identical(all_state(tmp_path), all_state(whole))


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_of_before(tmp_path: Path) -> None:
    def limit() -> None:  # the latest checkpoint is 2.9 MB, the best model 0.7
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))

    arguments = ["--skip-eval", "--output-dir", str(tmp_path)]
    assert finish(start("--epochs", "1", *arguments))[0] == 0
    before = (tmp_path / "latest_checkpoint.pth").read_bytes()
    status, _, stderr = finish(start("--resume", "--epochs", "2", *arguments, preexec_fn=limit))
    assert status == 2
    assert re.search(r"^error: .*latest_checkpoint\.pth: cannot be written .*untouched", stderr, re.MULTILINE)
    assert (tmp_path / "latest_checkpoint.pth").read_bytes() == before


def test_without_evaluation_no_plotting_or_metrics_library_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from enhanced_glyph_recognition import main; main(sys.argv[1:]);"
        "print([m for m in ('matplotlib', 'seaborn', 'sklearn') if m in sys.modules])"
    )
    arguments = [*QUICK, "--epochs", "1", "--skip-eval", "--output-dir", str(tmp_path)]
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "[]", done.stderr


def test_training_imports_nothing_that_only_evaluation_needs(tmp_path: Path) -> None:
    code = (
        "import sys; from glyphs.training.trainer import Trainer; from enhanced_glyph_recognition import main\n"
        "def fit(trainer):\n"
        "    sys.exit(str([m for m in ('matplotlib', 'seaborn', 'sklearn', 'scipy') if m in sys.modules]))\n"
        "Trainer.fit = fit; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *QUICK, "--output-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.stderr.splitlines()[-1] == "[]", done.stderr


def test_a_package_that_tensorboard_misses_is_known_before_the_data_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "glyphs.training.callbacks.importlib.util.find_spec", lambda name: None if name == "tensorboard" else name
    )
    monkeypatch.setattr("glyphs.commands.train.get_data_loaders", None)
    with refused(ConfigError, "pip install tensorboard"):
        main([*QUICK, "--tensorboard", "--output-dir", str(tmp_path)])


def test_a_backend_that_is_not_installed_is_not_asked_for(tmp_path: Path) -> None:
    """Colab and Jupyter name theirs to the programs that a notebook starts."""
    environment = os.environ | {"MPLBACKEND": "no_such_backend"}
    code = (
        "import sys; from pathlib import Path; from glyphs.core.process import run\n"
        "def main():\n"
        "    from glyphs.output.plots import plot_lr_finder\n"
        "    plot_lr_finder([0.1, 0.2, 0.3], [3.0, 2.0, 4.0], 0.1, Path(sys.argv[1]))\n"
        "sys.exit(run(main))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").exists()


def test_a_package_that_evaluation_misses_is_known_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glyphs.commands.train.EVALUATION_PACKAGES", ("sys", "no_such_package"))
    monkeypatch.setattr(Trainer, "fit", lambda trainer: pytest.fail("trained"))
    with pytest.raises(ModuleNotFoundError) as caught:
        quick(tmp_path)
    assert caught.value.name == "no_such_package"


def quick(folder: Path, *arguments: str) -> None:
    """The script in this process, for one epoch unless told otherwise."""
    main([*QUICK, "--output-dir", str(folder), *(() if "--resume" in arguments else ("--epochs", "1")), *arguments])


def test_evaluate_alone_needs_only_the_checkpoint(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--evaluate", str(whole / "best_model.pth"), "--output-dir", str(tmp_path), "--device", "cpu", *DATA])
    assert capsys.readouterr().out.startswith("test accuracy")
    alone, after_training = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, whole))
    assert alone.keys() == after_training.keys()
    for name, value in alone.items():  # the number of threads moves the last digits
        assert value == (after_training[name] if isinstance(value, str) else pytest.approx(after_training[name], 1e-4))


def test_views_are_averaged_where_asked(whole: Path, tmp_path: Path) -> None:
    checkpoint = str(whole / "best_model.pth")
    main(["--evaluate", checkpoint, "--average-views", "--output-dir", str(tmp_path), "--device", "cpu", *DATA])
    one, seven = (json.loads((folder / "metrics.json").read_text()) for folder in (whole, tmp_path))
    assert one["loss"] != seven["loss"] == pytest.approx(one["loss"], rel=0.2)
    with pytest.raises(SystemExit, match="2"):
        quick(tmp_path, "--average-views", "--skip-eval")


def test_the_best_model_is_calibrated_on_the_validation_images(whole: Path) -> None:
    temperature = load_checkpoint(whole / "best_model.pth")["model"]["temperature"].item()
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["temperature"] == temperature == load_checkpoint(whole / "best_model.pth")["metrics"]["temperature"]
    # 1 where what 60 images ask for would make the calibration error on themselves worse.
    assert (metrics["ece"] != metrics["ece_uncalibrated"]) == (temperature != 1)


def test_fine_tuning_goes_on_from_a_checkpoint_and_resumes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    best = whole / "best_model.pth"
    finetune = ["--finetune", str(best), "--learning-rate", "1e-6", "--skip-eval", "--output-dir", str(tmp_path)]
    main([*QUICK, "--epochs", "1", *finetune])
    assert f"fine-tuning {best}, which knows 47 of the 47 classes" in capsys.readouterr().err
    fine, before = (load_checkpoint(folder / "best_model.pth")["metrics"] for folder in (tmp_path, whole))
    assert fine["val_accuracy"] > before["val_accuracy"] - 0.05  # from nothing, this rate would learn nothing
    assert fine["epoch"] == 1
    main(["--resume", "--epochs", "2", "--skip-eval", "--output-dir", str(tmp_path)])
    assert "fine-tuning" not in capsys.readouterr().err


def test_fine_tuning_from_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth: there is no such checkpoint"):
        quick(tmp_path, "--finetune", str(tmp_path / "none.pth"))
    assert not (tmp_path / "best_model.pth").exists()


def test_evaluate_refuses_data_of_other_classes(whole: Path, tmp_path: Path) -> None:
    write_emnist(tmp_path / "data", "digits")
    arguments = ["--dataset", "emnist", "--split", "digits", "--data-dir", str(tmp_path / "data")]
    with pytest.raises(CheckpointError, match=r"best_model\.pth: knows 47 classes .* 10 others"):
        main(["--evaluate", str(whole / "best_model.pth"), "--output-dir", str(tmp_path), *arguments])


def test_the_learning_rate_finder_is_asked_for_and_rejected_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    quick(tmp_path / "plain", "--skip-eval", *FINDABLE)
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    quick(tmp_path / "rejected", "--skip-eval", "--lr-finder", *FINDABLE)
    assert "rejected: training with 0.001" in capsys.readouterr().err
    Image.open(tmp_path / "rejected" / "lr_finder.png").verify()
    assert_identical(all_state(tmp_path / "rejected"), all_state(tmp_path / "plain"))


@pytest.mark.parametrize("arguments", [["--lr-finder"], ["--lr-finder", "--accept-lr"]])
def test_without_a_terminal_the_suggestion_is_taken_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    quick(tmp_path, "--skip-eval", *FINDABLE, *arguments)
    said = re.search(r"accepted without asking: training with ([\d.e-]+)", capsys.readouterr().err)
    assert said
    used = load_checkpoint(tmp_path / "best_model.pth")["config"]["learning_rate"]
    assert used == pytest.approx(float(said[1]), rel=0.1)
    assert used != 0.001


def interrupt_after_a_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave an unfinished run in the folder."""

    def save_and_stop(line: EpochLine, trainer: Trainer) -> None:
        trainer.save()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EpochLine, "on_step_end", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            quick(folder, "--epochs", "2")


def test_an_unfinished_run_is_not_lost_by_accident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_after_a_step(tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match=r"unfinished run \(0 of 2 epochs done\).*--resume.*--overwrite"):
        quick(tmp_path, "--skip-eval")
    quick(tmp_path, "--skip-eval", "--overwrite")
    assert load_checkpoint(tmp_path / "latest_checkpoint.pth")["config"]["num_epochs"] == 1


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


def test_a_finished_run_is_not_lost_by_accident(tmp_path: Path) -> None:
    quick(tmp_path, "--skip-eval")
    (tmp_path / "run2").mkdir()
    before = contents(tmp_path)
    with refused(ConfigError, f"{tmp_path} holds a finished run", "--overwrite", f"--output-dir {tmp_path / 'run3'}"):
        quick(tmp_path, "--skip-eval")
    (tmp_path / "latest_checkpoint.pth").unlink()  # the model alone is worth as much
    with refused(ConfigError, f"{tmp_path} holds a finished run"):
        quick(tmp_path, "--skip-eval")
    del before["latest_checkpoint.pth"]
    assert contents(tmp_path) == before


def test_an_overwritten_run_stays_until_its_successor_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick(tmp_path, "--skip-eval")
    for name in REPORTS:
        (tmp_path / name).touch()
    (tmp_path / "notes.txt").touch()
    before = contents(tmp_path)
    with monkeypatch.context() as patch:

        def save_and_break(trainer: Trainer) -> None:
            trainer.save()
            raise RuntimeError("broken off")

        patch.setattr(Trainer, "fit", save_and_break)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="broken off"):
                quick(tmp_path, "--skip-eval", "--overwrite")
    assert f"the earlier run is in {tmp_path / 'replaced'} until" in capsys.readouterr().err
    moved = contents(tmp_path / "replaced")
    assert json.loads(moved.pop("replaced.json"))["folder"] == "replaced"
    assert moved == {name: before[name] for name in before if name != "notes.txt"}
    assert (tmp_path / "replaced2" / "latest_checkpoint.pth").exists()
    assert not any((tmp_path / name).exists() for name in REPORTS)
    (tmp_path / "replaced2" / "mine.txt").touch()
    for mine in ("replaced-keep-this", "replaced3"):  # a copy, and what was never written here
        shutil.copytree(tmp_path / "replaced", tmp_path / mine)
    (tmp_path / "replaced3" / "replaced.json").unlink()
    kept = {mine: contents(tmp_path / mine) for mine in ("replaced-keep-this", "replaced3")}
    quick(tmp_path, "--skip-eval", "--resume")
    assert not (tmp_path / "replaced").exists()
    assert set(contents(tmp_path / "replaced2")) == {"mine.txt"}
    assert {mine: contents(tmp_path / mine) for mine in kept} == kept
    assert {"best_model.pth", "notes.txt", "history.csv"} <= set(contents(tmp_path))


def test_a_file_of_the_users_under_a_name_that_a_run_writes_is_never_lost(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    quick(tmp_path, "--skip-eval")
    assert (tmp_path / "replaced" / "config.json").read_text() == "mine"


def test_reports_of_an_evaluation_go_beside_what_they_belong_to(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, shipped = tmp_path / "run", tmp_path / "shipped"
    shutil.copytree(whole, run)
    shipped.mkdir()
    shutil.copy(whole / "best_model.pth", shipped / "glyphs.pth")
    monkeypatch.chdir(tmp_path)
    before = contents(run)
    main(["--evaluate", str(shipped / "glyphs.pth"), "--device", "cpu", *DATA])
    main(["--evaluate", "run/latest_checkpoint.pth", "--device", "cpu", *DATA])
    assert {"metrics.json", "confusion_matrix.png"} <= set(contents(shipped / "glyphs-evaluation"))
    assert {"metrics.json", "confusion_matrix.png"} <= set(contents(run / "latest_checkpoint-evaluation"))
    with refused(ConfigError, "run holds the reports of another run", "glyphs-evaluation"):
        main(["--evaluate", str(shipped / "glyphs.pth"), "--output-dir", "run"])
    assert contents(run) == before
    (run / "metrics.json").unlink()
    main(["--evaluate", "run/best_model.pth", "--device", "cpu", *DATA])
    assert json.loads((run / "metrics.json").read_text())["n"] == TEST_IMAGES
    assert {path.name for path in tmp_path.iterdir()} == {"run", "shipped"}


def test_a_run_without_evaluation_says_where_the_model_is_and_what_comes_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick(tmp_path, "--skip-eval")
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"the model is {tmp_path / 'best_model.pth'}; --evaluate ")
    assert "inference.py --model" in last


@pytest.mark.parametrize(("answers", "yes"), [("maybe\nJA\n\n", True), ("?\n No \n", False), ("hm\n", False)])
def test_a_question_is_asked_until_it_is_answered(
    answers: str, yes: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(answers))
    assert confirmed("accept it?") is yes
    assert capsys.readouterr().err.count("accept it? [Y/n]") == answers.count("\n") + (answers == "hm\n")


def test_resuming_a_finished_run_goes_on_to_its_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick(tmp_path, "--skip-eval")
    quick(tmp_path, "--resume")
    assert capsys.readouterr().out.startswith("test accuracy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "32"], "--batch-size is 16 in the run to resume, but 32"),
        (["--use-residual"], "--use-residual is False in the run to resume, but True"),
        (["--seed", "1"], "--seed is 42 in the run to resume, but 1"),
    ],
)
def test_a_resume_that_contradicts_the_run_is_refused(whole: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main([*QUICK, "--output-dir", str(whole), "--resume", *arguments])


def test_a_resume_from_weights_alone_names_the_file(whole: Path) -> None:
    with pytest.raises(CheckpointError, match=r"best_model\.pth: the checkpoint holds weights only; resume from"):
        main(["--resume", str(whole / "best_model.pth"), "--skip-eval"])


def test_a_resumed_run_stays_in_its_folder(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a resumed run stays in"):
        main([*QUICK, "--resume", str(whole / "latest_checkpoint.pth"), "--output-dir", str(tmp_path)])


def test_a_damaged_checkpoint_can_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "latest_checkpoint.pth").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="--overwrite"):
        quick(tmp_path, "--skip-eval")
    quick(tmp_path, "--skip-eval", "--overwrite")


def test_resume_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"latest_checkpoint\.pth: there is no such checkpoint"):
        quick(tmp_path, "--resume")


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with claim_folder(tmp_path):
        status, _, stderr = finish(start("--epochs", "1", "--output-dir", str(tmp_path)))
    assert status == 2
    assert stderr.startswith(f"error: {tmp_path}: another run is writing")
    assert len(stderr.splitlines()) == 1


def test_a_config_file_gives_defaults_that_flags_override(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"num_epochs": 1, "learning_rate": 0.004, "dropout_rate": 0.1}')
    flags = ["--config", str(tmp_path / "settings.json"), "--learning-rate", "0.005", "--skip-eval"]
    main([*QUICK, "--output-dir", str(tmp_path / "out"), *flags])
    used = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (used["num_epochs"], used["learning_rate"], used["dropout_rate"]) == (1, 0.005, 0.1)


def test_an_output_folder_that_cannot_be_is_found_out_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GlyphError, match=r"file/out: .*--output-dir"):
        quick(tmp_path / "file" / "out")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--device cpu"):
        quick(tmp_path, "--device", "cuda")


def test_missing_data_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glyphs.data.download.WAITS", (0.01,))
    monkeypatch.setattr("torchvision.datasets.EMNIST.url", "http://127.0.0.1:9/gzip.zip")
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/gzip\.zip .*by hand.*--dataset demo"):
        main(["--data-dir", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out")])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-such-flag"],
        ["--epochs", "0"],
        ["--epochs", "many"],
        ["--split", "cursive"],
        ["--accept-lr"],
        ["--lr-finder", "--resume"],
        ["--evaluate", "x.pth", "--skip-eval"],
        ["--config", "no-such-file.json"],
    ],
)
def test_wrong_arguments_exit_with_status_2(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "error: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr

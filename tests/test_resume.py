"""Runs that are stopped, killed or out of disk go on or say why not: python -m pytest tests/test_resume.py"""

import csv
import errno
import json
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import eval_pass1
import hf
import tokens
import train as script

ROOT = Path(__file__).parents[1]
FAST = ["--rank", 2, "--steps", 7, "--batch-size", 4, "--eval-problems", 0, "--eval-every", 3]
NEVER = 10**6


class Killed(BaseException):
    """A kill at a chosen moment: nothing of ours catches it."""


@pytest.fixture
def run(toy, command, tmp_path):
    return lambda *flags: command(script, *flags, cwd=tmp_path, **{} if "--resume" in flags else vars(toy))


@pytest.fixture
def optimizers(monkeypatch):
    """The last state of the optimizer of every training, in their order."""
    states, original = [], script.train

    def train(*args, after, **options):
        states.append({})

        def seen(rows, optimizer):
            states[-1] = {(i, key): t.clone() for i, its in optimizer.state_dict()["state"].items()
                          for key, t in its.items()}
            after(rows, optimizer)
        return original(*args, after=seen, **options)

    monkeypatch.setattr(script, "train", train)
    return states


def outcome(folder):
    """All that a run leaves but times: weights, and the metrics without their last columns of the clock."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = [{k: v for k, v in row.items() if k not in ("tokens_per_s", "seconds")} for row in csv.DictReader(file)]
    assert not (folder / "lock").exists() and not (folder / script.CHECKPOINT).exists()
    assert not list(folder.glob("*.tmp")) and (folder / "run.json").exists()
    return rows, {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def killed_at(step, monkeypatch, run, *flags):
    """The run is killed in the log of a step, before its checkpoint."""
    def log(self, at, *args, **options):
        if at == step:
            raise Killed
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(script.Progress, "__call__", log)
        run(*flags)


def killed_while_saving(monkeypatch, run, *flags, half=True):
    """The run is killed in the first write of a checkpoint, or right after its renaming."""
    def write(path, tensors):
        if half:
            Path(f"{path}.tmp").write_bytes(b"half a fi")
        else:
            hf.write_tensors(path, tensors)
        raise Killed
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(script, "write_tensors", write)
        run(*flags)


@pytest.mark.parametrize("flags", [
    [], ["--dropout", 0.2, "--grad-accum", 2, "--drift"], ["--method", "lora+", "--eval-problems", 2],
    ["--method", "pissa", "--dropout", 0.1], ["--method", "full", "--eval-every", 1]], ids=str)
def test_a_run_killed_three_times_ends_as_the_one_that_was_not(flags, run, optimizers, monkeypatch, tmp_path):
    """In a step, while a checkpoint is written, and between its renaming and the next step: bit for bit."""
    own = FAST[:6] + [x for name, value in (("--eval-problems", 0), ("--eval-every", 3)) if name not in flags
                      for x in (name, value)]
    assert run(*own, *flags, "--out", "whole").returncode == 0
    wanted, resume = optimizers[-1], ["--resume", "--out", "o"]
    killed_at(3, monkeypatch, run, *own, *flags, "--out", "o", "--checkpoint-every", 2)
    killed_while_saving(monkeypatch, run, *resume)
    killed_while_saving(monkeypatch, run, *resume, half=False)
    done = run(*resume, "--checkpoint-every", NEVER)
    assert done.returncode == 0, done.stderr
    assert len(optimizers) == 5 and optimizers[-1].keys() == wanted.keys()
    assert all(torch.equal(optimizers[-1][key], t) for key, t in wanted.items())
    assert outcome(tmp_path / "o") == outcome(tmp_path / "whole")
    results = [json.loads((tmp_path / name / "run.json").read_text())["results"] for name in ("o", "whole")]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}
    again = run(*resume)
    assert again.returncode == 0 and again.stdout == "the run in o is finished: there is nothing to do\n"


def started(toy, cwd, *flags):
    return subprocess.Popen([sys.executable, str(ROOT / "train.py"), *map(str, flags)], cwd=cwd,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_a_real_sigkill_loses_nothing(toy, run, tmp_path):
    flags = ["--base", toy.base, "--data", toy.data, "--rank", 2, "--steps", 60, "--eval-problems", 0,
             "--batch-size", 2]
    process = started(toy, tmp_path, *flags, "--out", "o", "--checkpoint-every", 3)
    while not (tmp_path / "o" / script.CHECKPOINT).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert (tmp_path / "o/lock").exists() and not (tmp_path / "o/run.json").exists()
    done = run("--resume", "--out", "o", "--checkpoint-every", NEVER)
    assert done.returncode == 0, done.stderr
    assert run(*flags, "--out", "whole").returncode == 0
    assert outcome(tmp_path / "o") == outcome(tmp_path / "whole")


@pytest.mark.thorough
def test_thirty_sigkills_at_random_moments_lose_nothing(toy, run, tmp_path):
    flags = ["--base", toy.base, "--data", toy.data, "--rank", 2, "--steps", 2000, "--eval-problems", 0,
             "--batch-size", 2, "--dropout", 0.1]
    draw, kills, process = random.Random(0), 0, started(toy, tmp_path, *flags, "--out", "o", "--checkpoint-every", 1)
    while kills < 30:
        while not (tmp_path / "o" / script.CHECKPOINT).exists():
            time.sleep(0.01)
        begun = (tmp_path / "o" / script.CHECKPOINT).stat().st_mtime_ns
        while (tmp_path / "o" / script.CHECKPOINT).stat().st_mtime_ns == begun:
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(draw.random() * 0.2)
        process.kill()
        process.wait()
        kills += 1
        process = started(toy, tmp_path, "--resume", "--out", "o")
    process.kill()
    process.wait()
    assert run("--resume", "--out", "o", "--checkpoint-every", NEVER).returncode == 0
    assert run(*flags, "--out", "whole").returncode == 0
    assert outcome(tmp_path / "o") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_finishes_the_step_and_says_how_to_go_on(number, status, run, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(script.Progress, "__call__", lambda self, at, *_, **__: at == 4 and os.kill(os.getpid(), number))
        done = run(*FAST, "--out", "o")
    assert done.returncode == status
    assert "stopped after step 4 of 7. To go on" in done.stdout and "python train.py --resume --out o" in done.stdout
    refused = run(*FAST, "--out", "o")
    assert refused.returncode == 2 and "add --resume or --overwrite" in refused.stderr
    assert run("--resume", "--out", "o").returncode == 0 and run(*FAST, "--out", "whole").returncode == 0
    assert outcome(tmp_path / "o") == outcome(tmp_path / "whole")


@pytest.fixture
def stopped(run, monkeypatch, toy, tmp_path):
    """A run in o with a checkpoint of step 2, its data and base copied so that they can be spoilt."""
    shutil.copytree(toy.base, tmp_path / "b")
    shutil.copytree(toy.data, tmp_path / "d")
    killed_at(3, monkeypatch, run, *FAST, "--base", "b", "--data", "d", "--out", "o", "--checkpoint-every", 2)
    return tmp_path / "o"


@pytest.mark.parametrize("flag, value, word", [("--rank", 3, "has 2"), ("--lr", 0.5, "has 2e-05"),
                                               ("--seed", 1, "has 0"), ("--batch-size", 5, "has 4"),
                                               ("--method", "lora", "has lora-alpha"),
                                               ("--truncate", None, "has False"), ("--alpha", 8, "has None")])
def test_a_flag_that_changes_the_result_is_refused_with_both_values(flag, value, word, stopped, run):
    before = (stopped / script.CHECKPOINT).read_bytes()
    done = run("--resume", "--out", "o", flag, *[value] * (value is not None))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and flag in done.stderr and word in done.stderr
    assert value is None or str(value) in done.stderr
    assert (stopped / script.CHECKPOINT).read_bytes() == before


def test_what_has_changed_since_is_refused_and_the_checkpoint_goes_on_once_it_is_put_back(stopped, run, tmp_path):
    """Data, base, a data file that is gone, a checkpoint that is cut or edited: one line each."""
    checkpoint = stopped / script.CHECKPOINT
    for path, spoil in ((tmp_path / "d/train.jsonl", lambda b: b + b.split(b"\n")[0] + b"\n"),
                        (tmp_path / "b/spec.json", lambda b: b + b"\n"), (tmp_path / "d/train.jsonl", None),
                        (checkpoint, lambda b: b[:-100]), (checkpoint, lambda b: b.replace(b'"rank": 2', b'"rank": 3')),
                        (checkpoint, lambda b: b[:len(b) // 2] + bytes([b[len(b) // 2] ^ 1]) + b[len(b) // 2 + 1:])):
        before = path.read_bytes()
        path.write_bytes(spoil(before)) if spoil else path.unlink()
        done = run("--resume", "--out", "o")
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "train.py: " in done.stderr, done.stderr
        assert path.name.split(".")[0] in done.stderr
        path.write_bytes(before)
    assert run("--resume", "--out", "o", "--rank", 2, "--data", str(tmp_path / "d")).returncode == 0


def test_nothing_to_resume_is_one_line(run, tmp_path):
    for flags in (["--resume"], ["--resume", "--out", "absent"], ["--resume", "--out", "."]):
        done = run(*flags)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "resume" in done.stderr
    assert not list(tmp_path.iterdir())


# ---- One folder, one process -----------------------------------------------------------------------------------------


def test_a_folder_belongs_to_one_process_and_a_dead_ones_lock_is_taken_over(run, tmp_path):
    out = tmp_path / "o"
    out.mkdir()
    with script.locked(out):
        done = run(*FAST, "--out", "o")
        assert done.returncode == 2 and f"process {os.getpid()} on {platform.node()}" in done.stderr
    assert not list(out.iterdir())
    for owner, age, free in ((f"1 {platform.node()}", 0, True), ("7 elsewhere", 0, False), ("7 elsewhere", 301, True)):
        (out / "lock").write_text(owner)
        os.utime(out / "lock", (time.time() - age,) * 2)
        if free:
            with script.locked(out):
                assert (out / "lock").read_text() == f"{os.getpid()} {platform.node()}"
        else:
            with pytest.raises(ValueError, match="process 7 on elsewhere"), script.locked(out):
                pass
            assert (out / "lock").read_text() == owner


# ---- Full disks, cut off work, dead readers --------------------------------------------------------------------------


def test_a_disk_that_is_full_in_the_end_is_one_line_and_the_checkpoint_goes_on(run, monkeypatch, tmp_path):
    """Every write of more than 2 kB fails from step 7 on, as the kernel says it."""
    limits, metrics = resource.getrlimit(resource.RLIMIT_FSIZE), script.Progress.__call__

    def log(self, at, *args, **options):
        if at == 7:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
        metrics(self, at, *args, **options)
    with monkeypatch.context() as patch:
        patch.setattr(script.Progress, "__call__", log)
        try:
            done = run(*FAST, "--out", "o", "--checkpoint-every", 5)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "adapter_model.safetensors" in done.stderr
    assert "python train.py --resume --out o" in done.stderr and not list((tmp_path / "o").glob("*.tmp"))
    assert run("--resume", "--out", "o").returncode == 0 and run(*FAST, "--out", "whole").returncode == 0
    assert outcome(tmp_path / "o") == outcome(tmp_path / "whole")


def counted(original, left):
    """The function, which kills once left[0] calls of all are made."""
    def call(*args, **options):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return original(*args, **options)
    return call


def test_an_overwriting_run_is_put_in_place_whatever_cuts_it_off(monkeypatch, tmp_path):
    """At each operation on the disk in turn; the same call again ends with the new run and the user's own files."""
    for cut in range(100):
        out = tmp_path / str(cut)
        (out / ".unfinished/merged").mkdir(parents=True)
        (out / "merged").mkdir()
        for name in ("run.json", "metrics.csv", "adapter_model.safetensors", "merged/config.json"):
            (out / name).write_text("old")
            (out / ".unfinished" / name).write_text("new")
        for name, text in (("chat_template.jinja", "old"), ("notes.txt", "mine")):
            (out / name).write_text(text)
        left = [cut]
        with monkeypatch.context() as patch:
            for module, name in ((os, "rename"), (os, "replace"), (Path, "unlink"), (Path, "rmdir"),
                                 (shutil, "rmtree")):
                patch.setattr(module, name, counted(getattr(module, name), left))
            try:
                script.finish_overwrite(out)
            except Killed:
                pass
        whole = left[0] >= 0
        script.finish_overwrite(out)
        found = {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()}
        assert found == {"run.json": "new", "metrics.csv": "new", "adapter_model.safetensors": "new",
                         "merged/config.json": "new", "notes.txt": "mine"}
        if whole:
            assert cut > 8
            return
    raise AssertionError("it never ends")


def test_a_merge_that_fails_or_is_killed_can_be_tried_again(run, toy, command, monkeypatch, tmp_path):
    assert run(*FAST, "--out", "a").returncode == 0
    words = ["merge", "--adapter", "a", "--out", "m"]

    def fail(error):
        def save_file(tensors, path, **options):
            Path(path).write_bytes(b"half a fi")
            raise error
        return save_file
    with monkeypatch.context() as patch:
        patch.setattr(hf, "save_file", fail(OSError(errno.ENOSPC, "No space left on device")))
        done = command(script, *words, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr
    assert not (tmp_path / "m").exists()
    (tmp_path / "m").mkdir()
    for name in ("config.json.tmp", "model.safetensors", "spec.json"):  # as a kill leaves it
        (tmp_path / "m" / name).write_text("")
    assert command(script, *words, cwd=tmp_path).returncode == 0
    hf.load_model(tmp_path / "m")
    tokens.load_tokenizer(tmp_path / "m")
    assert not list((tmp_path / "m").glob("*.tmp"))
    assert command(script, *words, cwd=tmp_path).returncode == 2  # a whole one stays


def test_output_without_a_reader_is_dropped():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as file:
        for _ in range(2):
            eval_pass1.Lasting(file).write("abc\n")
            eval_pass1.Lasting(file).flush()


@pytest.mark.parametrize("flags, word", [(["--lr", "1e30", "--steps", 1], "diverged"),
                                         (["--alpha", "1e-320"], "is 0 in float32"),
                                         (["--alpha", "1e-45"], "0 in float32")])
def test_numbers_that_end_in_nan_or_nothing_are_refused(flags, word, run, tmp_path):
    done = run("--rank", 2, "--eval-problems", 0, "--batch-size", 4, *flags, "--out", "o")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and word in done.stderr
    assert not (tmp_path / "o/run.json").exists()


def test_json_holds_no_nan_and_a_file_that_cannot_be_written_leaves_none(tmp_path):
    with pytest.raises(ValueError):
        hf.write_json(tmp_path / "a.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())

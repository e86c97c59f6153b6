"""Several processes by torchrun give what one gives: python -m pytest tests/test_processes.py"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lora_alpha
import train as script
from hf import load_model

ROOT = Path(__file__).parents[1]


def launched(n, cwd, *flags, **options):
    """train.py in n processes of one thread."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", n, ROOT / "train.py", *flags]
    return subprocess.Popen([*map(str, words)], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            **options)


def ours(stderr):
    """The lines of stderr that train.py wrote, not torchrun."""
    return [line for line in stderr.splitlines() if line.startswith("train.py: ")]


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items() if v and k not in ("tokens_per_s", "seconds")}
                for row in csv.DictReader(file)]


def assert_close(found, wanted):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted):
        assert a == pytest.approx(b, rel=1e-4)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 3), st.integers(1, 5), st.integers(0, 6))
def test_the_shares_of_an_update_are_its_examples(n, batch_size, grad_accum, processes, start):
    examples = [([i] * (2 + i % 3), [i] * (2 + i % 3)) for i in range(1, n + 1)]

    def micro(share):
        batches = lora_alpha.epochs(examples, batch_size, grad_accum, 0, start, share)
        return [sorted(idx[:, 0].tolist()) for idx, _ in (next(batches) for _ in range(3 * grad_accum))]
    shares = [micro((k, processes)) for k in range(processes)]
    assert [sorted(sum(parts, [])) for parts in zip(*shares)] == micro((0, 1))
    sizes = [[len(part) for part in parts] for parts in zip(*shares)]
    assert all(max(parts) - min(parts) <= 1 for parts in sizes)


@pytest.mark.parametrize("n, flags", [
    (2, ["--grad-accum", 2]),
    pytest.param(4, ["--batch-size", 2], marks=pytest.mark.thorough),  # fewer examples than processes
    pytest.param(4, ["--method", "full", "--grad-clip", 1], marks=pytest.mark.thorough),
    pytest.param(2, ["--method", "pissa", "--drift"], marks=pytest.mark.thorough),
    pytest.param(3, ["--shard", "--grad-accum", 2], marks=pytest.mark.thorough)], ids=str)
def test_processes_give_the_losses_and_the_table_of_one(n, flags, toy, command, tmp_path):
    flags = ["--base", toy.base, "--data", toy.data, "--rank", 2, "--steps", 8, "--eval-every", 3,
             *([] if "--batch-size" in flags else ["--batch-size", 5]), *flags]
    process = launched(n, tmp_path, *flags, "--out", "many")
    one = command(script, *(flag for flag in flags if flag != "--shard"), "--out", "one", cwd=tmp_path)
    out, err = process.communicate()
    assert process.returncode == one.returncode == 0, err + one.stderr
    assert_close(rows(tmp_path / "many"), rows(tmp_path / "one"))
    told = [text[text.index("pass@1, %"):text.index(" in all. To try")].rpartition(",")[0].replace("many", "one")
            for text in (out, one.stdout)]
    assert told[0] == told[1] and f", {n} processes" in out
    results = [json.loads((tmp_path / name / "run.json").read_text())["results"] for name in ("many", "one")]
    assert results[0]["levels"] == results[1]["levels"]
    assert results[0]["val_loss_after"] == pytest.approx(results[1]["val_loss_after"], rel=1e-4)


def test_the_answers_of_the_shares_are_put_in_the_problems_order(monkeypatch):
    def solve(model, encoding, problems, *_):
        return [dict(id=i, problem=problem, correct=True) for i, problem in enumerate(problems)]
    problems = list("abcdefgh")
    monkeypatch.setattr(script, "solve", solve)
    monkeypatch.setattr(script, "summarize", lambda records: dict(pass1=1.0))
    monkeypatch.setattr(script, "gathered", lambda mine: [mine, *(solve(0, 0, problems[k::3]) for k in (1, 2))])
    weight = torch.zeros(1)
    model = SimpleNamespace(model=SimpleNamespace(embed_tokens=SimpleNamespace(weight=weight)))
    run = SimpleNamespace(problems=problems, share=(0, 3), model=model, dtype=weight.dtype, device=weight.device,
                          encoding=None, chat=None)
    assert [(r["id"], r["problem"]) for r in script.answer(run, "after")] == list(enumerate(problems))


SHARDED = """
import torch, train as script
from hf import load_model
script.join()
model = load_model({base!r})
whole = sum(p.numel() for p in model.model.layers.parameters())
script.shard(model, torch.device("cpu"))
mine = sum(p.to_local().numel() for p in model.model.layers.parameters())
assert not any(p.requires_grad for p in model.parameters())
open("held" + str(script.RANK), "w").write(str(mine / whole))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.thorough
def test_sharded_processes_hold_their_part_of_the_blocks(toy, tmp_path):
    (tmp_path / "held.py").write_text(SHARDED.format(base=str(toy.base)))
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "4", "held.py"], cwd=tmp_path,
                   check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    held = [float((tmp_path / f"held{k}").read_text()) for k in range(4)]
    assert held == pytest.approx([0.25] * 4, abs=0.01)


def rank_of(pid):
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((int(v[5:]) for v in variables if v.startswith(b"RANK=")), None)


def workers(process):
    """{rank: pid} of torchrun's children."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return {rank: int(pid) for pid in children if (rank := rank_of(pid)) is not None}


@pytest.mark.thorough
def test_one_dead_process_ends_all_and_the_run_goes_on_with_another_number(toy, command, tmp_path):
    flags = ["--base", toy.base, "--data", toy.data, "--rank", 2, "--steps", 400, "--eval-problems", 0,
             "--eval-every", 100, "--batch-size", 6]
    assert command(script, *flags, "--out", "one", cwd=tmp_path).returncode == 0
    process = launched(2, tmp_path, *flags, "--out", "many", "--checkpoint-every", 5)
    checkpoint = tmp_path / "many" / script.CHECKPOINT
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(workers(process)[1], signal.SIGKILL)
    killed = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - killed < 60 and process.returncode == 1
    assert len(ours(err)) <= 1 and all("another one of the processes has ended" in line for line in ours(err))
    script.read_checkpoint(checkpoint)

    process = launched(3, tmp_path, "--resume", "--out", "many", "--checkpoint-every", 20)
    before = checkpoint.stat().st_mtime_ns
    while checkpoint.stat().st_mtime_ns == before:
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()  # torchrun hands it on to its processes
    out, err = process.communicate(timeout=60)
    assert err.count("finishing the step and saving it") == 1 and "stopped after step" in out, err
    assert "torchrun --nproc_per_node 3 train.py --resume --out many" in out
    assert command(script, "--resume", "--out", "many", cwd=tmp_path).returncode == 0
    assert_close(rows(tmp_path / "many"), rows(tmp_path / "one"))
    adapters = [load_model(toy.base) for _ in range(2)]
    for model, name in zip(adapters, ("one", "many")):
        script.load_adapter(model, tmp_path / name)
    a, b = (torch.cat([p.flatten() for p in model.parameters() if p.requires_grad]) for model in adapters)
    assert (a - b).norm() < 1e-3 * a.norm()


@pytest.mark.thorough
@pytest.mark.parametrize("flags, said", [
    (["--rank", 0], "--rank 0: it must be 1 or more"), (["--data", "nowhere"], "nowhere: there is no such file"),
    (["--lr", 1e30], "the run diverged"), (["--device", "cuda:99"], "--device cuda:99")], ids=str)
def test_a_mistake_is_told_once(flags, said, toy, tmp_path):
    flags = ["--base", toy.base, *flags, *([] if "--data" in flags else ["--data", toy.data])]
    process = launched(2, tmp_path, *flags, "--steps", 3, "--eval-problems", 0, "--out", "o")
    _, err = process.communicate(timeout=100)
    assert process.returncode and len(ours(err)) == 1 and said in ours(err)[0], err


@pytest.mark.thorough
def test_several_processes_go_on_bit_for_bit_with_dropout(toy, tmp_path):
    flags = ["--base", toy.base, "--data", toy.data, "--rank", 2, "--steps", 9, "--eval-problems", 0,
             "--dropout", 0.3, "--batch-size", 5]
    for name, more in (("whole", []), ("o", ["--checkpoint-every", 4])):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        if name == "o":  # killed in the log of step 6, by what Python imports at its start
            (tmp_path / "sitecustomize.py").write_text(
                "import os, builtins\nown = print\n"
                "def killing(*words, **options):\n"
                "    own(*words, **options)\n"
                "    if words and str(words[0]).startswith('step 6/9'):\n        os._exit(9)\n"
                "builtins.print = killing\n")
        process = launched(2, tmp_path, *flags, *more, "--out", name, env=environment)
        process.communicate(timeout=100)
    (tmp_path / "sitecustomize.py").unlink()
    assert (tmp_path / "o" / script.CHECKPOINT).exists()
    process = launched(2, tmp_path, "--resume", "--out", "o", "--checkpoint-every", 100)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert rows(tmp_path / "o") == rows(tmp_path / "whole")
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("o", "whole")]
    assert files[0] == files[1]

"""The command line, end to end: python -m pytest tests/test_train.py"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train as script
from eval_pass1 import encode_example, encode_prompt, is_correct, load_problems, pass1_interval, pass_at_k
from hf import load_adapter, load_model, load_tokenizer

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared/real"
FAST = ["--batch-size", "8", "--grad-accum", "1", "--eval-problems", "0"]


def run(*flags, cwd, **env):
    return subprocess.run([sys.executable, str(ROOT / "train.py"), *map(str, flags)], cwd=cwd, capture_output=True,
                          text=True, encoding="utf-8", env={**os.environ, "PYTHONUTF8": "1", **env})


def problems_file(path, *pairs, end="\n"):
    path.write_text(end.join(json.dumps(dict(problem=p, solution=s, answer="4")) for p, s in pairs), encoding="utf-8")
    return path


def last_loss(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["val_loss"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of 20 steps with everything on, shared by the tests that look at what it wrote."""
    cwd = tmp_path_factory.mktemp("run")
    done = run("--rank", 4, "--steps", 20, *FAST[:4], "--eval-problems", 10, "--merge", "--drift", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd, cwd / "out/lora-alpha-r4-1", done.stdout


def test_a_run_writes_adapter_metrics_and_origin(finished):
    """20 steps write the adapter, a metrics row a step with falling loss, and run.json with flags and results."""
    _, folder, stdout = finished
    run_json = json.loads((folder / "run.json").read_text())
    assert run_json["alpha"] == 512 and run_json["s"] == 128 and run_json["rank"] == 4 and run_json["n_train"] == 4000
    assert run_json["results"]["n_problems"] == 10 and 0 <= run_json["results"]["pass1_after"] <= 1
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 21))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) and float(rows[-1]["drift_ratio"]) > 0
    assert "alpha 512 = 256·√4, s = alpha/r = 128" in stdout
    assert not list(folder.glob("*.tmp"))


def test_the_adapter_and_the_merged_model_are_the_same_model(finished):
    """Base plus saved adapter gives the logits of the merged folder."""
    _, folder, _ = finished
    adapted = load_adapter(load_model(ROOT / "data/base", torch.float32), folder)
    merged = load_model(folder / "merged")
    idx = torch.tensor([load_tokenizer(folder / "merged").encode_ordinary("Problem: Solve for $x$: $x + 3 = 7$.")])
    a, b = adapted(idx)[0], merged(idx)[0]
    torch.testing.assert_close(a, b, rtol=0, atol=2e-4 * a.abs().max().item())


def test_a_finished_run_is_not_overwritten_unless_asked(finished):
    """--out on a finished run is refused in one line and changes no byte."""
    cwd, folder, _ = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = run("--rank", 4, "--steps", 1, *FAST, "--out", folder, cwd=cwd)
    assert done.returncode == 2 and "finished run" in done.stderr and len(done.stderr.splitlines()) == 1
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_diverged_run_damages_nothing(finished, tmp_path):
    """A non-finite loss stops the run, names the step and alpha·lr, and leaves an older finished run as it was."""
    cwd, folder, _ = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".safetensors", ".json", ".csv")}
    done = run("--steps", 5, *FAST, "--lr", "1e30", "--out", folder, "--overwrite", cwd=cwd)
    assert done.returncode == 2 and "step" in done.stderr and "alpha·lr" in done.stderr
    assert "Traceback" not in done.stderr
    assert before == {path: path.read_bytes() for path in folder.rglob("*")
                      if path.suffix in (".safetensors", ".json", ".csv")}


def test_lora_alpha_is_ahead_of_lora_after_sixty_steps(tmp_path):
    """Same rank, learning rate, steps and seed: the rule's validation loss is below that of alpha = 2r."""
    for method in ("lora-alpha", "lora"):
        assert run("--steps", 60, "--method", method, *FAST, "--out", method, cwd=tmp_path).returncode == 0
    assert last_loss(tmp_path / "lora-alpha") < last_loss(tmp_path / "lora")


def test_full_fine_tuning_writes_a_model_folder(tmp_path):
    """--method full trains every weight and writes a folder that is a base itself."""
    assert run("--steps", 2, "--method", "full", *FAST, "--out", "full", cwd=tmp_path).returncode == 0
    assert run("--steps", 1, *FAST, "--base", "full", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("flags, word", [
    (["--rank", "0"], "rank"), (["--rank", "x"], "rank"), (["--alpha", "nan"], "alpha"), (["--lr", "0"], "lr"),
    (["--alpha", "8", "--c", "256"], "--c"), (["--targets", "q_proj", "nope"], "nope"), (["--targets", "q_proj)"], ""),
    (["--method", "lora", "--c", "9"], "--c"), (["--base", "absent"], "absent"), (["--data", "absent"], "absent"),
    (["--val", "absent.jsonl"], "absent"), (["--ran", "16"], "--ran"), (["--device", "abacus"], "abacus"),
    (["--dropout", "1"], "dropout"), (["--steps", "0"], "steps"), (["--method", "full", "--merge"], "full"),
])
def test_a_mistake_is_one_line_and_status_2(flags, word, tmp_path, monkeypatch, capsys):
    """One line on stderr that names what is wrong, exit status 2, nothing written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        script.main(flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and len(error.splitlines()) == 1 and word in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text, word", [
    ('{"problem": "a", "solution": "b", "answer": "4"}\n{oops\n', "line 2"), ('\n\n[1]\n', "line 3"),
    ("", "no problem"),
    ('{"problem": "a"}', "line 1"), ('{"problem": "a", "solution": ""  , "answer": "4"}', "no problem is left"),
])
def test_a_malformed_file_is_one_line_and_status_2(text, word, tmp_path, monkeypatch, capsys):
    """The line's number is named; a file with nothing to learn is an error, never a loss of NaN or 0."""
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text(text)
    with pytest.raises(SystemExit) as stop:
        script.main(["--data", "data.jsonl", *FAST])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and len(error.splitlines()) == 1 and word in error
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_odd_text_files_are_read(tmp_path):
    """BOM, CRLF, U+2028, a blank line, emoji and no final newline, under an ASCII locale and console."""
    line = json.dumps(dict(problem="2 + 2\u2028 🙂", solution="It is $\\boxed{4}$ 🙂.", answer="4"), ensure_ascii=False)
    (tmp_path / "odd.jsonl").write_bytes(("\ufeff" + "\r\n".join([line, "", line, line])).encode())
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), "--data", "odd.jsonl", "--val", "odd.jsonl",
                           "--steps", "1", "--out", "o", "--eval-problems", "2"], cwd=tmp_path, capture_output=True,
                          env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads((tmp_path / "o/run.json").read_text())["n_train"] == 3


def test_too_long_problems_are_counted_aloud(tmp_path):
    """A problem that does not fit the context is left out and said; the others are trained on."""
    problems_file(tmp_path / "d.jsonl", ("a", "b"), ("a " * 3000, "b"))
    done = run("--data", "d.jsonl", "--val", "d.jsonl", "--steps", 1, *FAST, "--out", "o", cwd=tmp_path)
    assert done.returncode == 0 and "left out 1 of 2 training problems" in done.stdout


def test_the_prompt_is_the_same_in_training_and_evaluation():
    """encode_example begins with exactly what encode_prompt gives, and ends with the end token, once."""
    encoding = load_tokenizer(ROOT / "data/base")
    for problem in load_problems(ROOT / "data/equations/test.jsonl")[:50]:
        prompt, answer = encode_example(encoding, problem, encoding.eot_token)
        assert prompt == encode_prompt(encoding, problem) and answer.count(encoding.eot_token) == 1
        assert answer[-1] == encoding.eot_token and encoding.decode(answer[:-1]) == f" {problem['solution']}"


@pytest.mark.parametrize("response, gold, kind, right", [
    ("so $\\boxed{-4}$", "-4", "math", True), ("\\boxed{\\frac{1}{2}}", "0.5", "math", True),
    ("\\boxed{4", "4", "math", False),
    ("\\boxed{3} no, \\boxed{5}", "3", "math", False), ("The answer is 7.", "7", "math", True),
    ("none", "7", "math", False),
    ("#### 1,234", "1234", "gsm8k", True), ("it is 12 then 13", "12", "gsm8k", False),
    ("\\boxed{1/0}", "0", "math", False),
])
def test_the_grader_is_exact(response, gold, kind, right):
    """The last box counts, numbers are compared as exact rationals, and a cut-off box is wrong."""
    assert is_correct(response, gold, kind) is right


def test_intervals():
    """Wilson's interval at 8 of 10 is the textbook's [0.490, 0.943]; pass@k of 1 right in 4 at k = 2 is 1/2."""
    mean, low, high = pass1_interval([1] * 8 + [0] * 2)
    assert mean == 0.8 and abs(low - 0.4902) < 5e-4 and abs(high - 0.9433) < 5e-4
    assert abs(pass_at_k(4, 1, 2) - 0.5) < 1e-15


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not here")
def test_gsm8k_trains_end_to_end_and_its_loss_falls(tmp_path):
    """Real problems in GSM8K's fields on the embedded base."""
    done = run("--data", REAL / "gsm8k_train.jsonl", "--val", REAL / "gsm8k_test.jsonl", "--steps", 3, *FAST,
               "--out", "o", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "o/run.json").read_text())["results"]
    assert results["val_loss_after"] < results["val_loss_before"]

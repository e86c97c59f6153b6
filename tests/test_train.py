"""The command line, end to end: python -m pytest tests/test_train.py"""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import eval_pass1
import train as script
from hf import load_adapter, load_model
from problems import Protocol, encode_example, encode_prompt, load_problems
from tokens import load_tokenizer

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared/real"
FAST = ["--batch-size", "8", "--grad-accum", "1", "--eval-problems", "0"]


@pytest.fixture(scope="module")
def run(toy, command):
    """run(*flags, cwd): train.py on the toy base and data, unless the flags name others."""
    return lambda *flags, cwd: command(script, *flags, cwd=cwd, **vars(toy))


def problems_file(path, *pairs, end="\n"):
    path.write_text(end.join(json.dumps(dict(problem=p, solution=s, answer="4")) for p, s in pairs), encoding="utf-8")
    return path


def apart(example):
    """(prompt, answer) of an example: ids that are not learnt, and those that are, which are the last."""
    ids, labels = example
    prompt = labels.count(-100)
    assert labels == [-100] * prompt + ids[prompt:]
    return ids[:prompt], ids[prompt:]


def last_loss(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["val_loss"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run):
    """One run of 20 steps with everything on, shared by the tests that look at what it wrote."""
    cwd = tmp_path_factory.mktemp("run")
    done = run("--rank", 4, "--steps", 20, "--lr", 1e-3, *FAST[:4], "--eval-problems", 4, "--merge", "--drift",
               "--dtype", "float32", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd, cwd / "out/lora-alpha-r4-1", done.stdout


def test_a_run_writes_adapter_metrics_and_origin(finished):
    """20 steps write the adapter, a metrics row a step with falling loss, and run.json with flags and results."""
    _, folder, stdout = finished
    run_json = json.loads((folder / "run.json").read_text())
    assert run_json["alpha"] == 512 and run_json["s"] == 128 and run_json["rank"] == 4 and run_json["n_train"] == 24
    assert run_json["results"]["n_problems"] == 4 and 0 <= run_json["results"]["pass1_after"] <= 1
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 21))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) and float(rows[-1]["drift_ratio"]) > 0
    assert "alpha 512 = 256·√4, s = alpha/r = 128" in stdout
    assert not list(folder.glob("*.tmp"))


def test_the_adapter_and_the_merged_model_are_the_same_model(finished, toy):
    """Base plus saved adapter gives the logits of the merged folder."""
    _, folder, _ = finished
    adapted = load_adapter(load_model(toy.base, torch.float32), folder)
    merged = load_model(folder / "merged")
    idx = torch.tensor([load_tokenizer(folder / "merged").encode_ordinary("Problem: Solve for $x$: $x + 3 = 7$.")])
    a, b = adapted(idx)[0], merged(idx)[0]
    torch.testing.assert_close(a, b, rtol=0, atol=2e-4 * a.abs().max().item())


def test_a_finished_run_is_not_overwritten_unless_asked(finished, run):
    """--out on a finished run is refused in one line and changes no byte."""
    cwd, folder, _ = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = run("--rank", 4, "--steps", 1, *FAST, "--out", folder, cwd=cwd)
    assert done.returncode == 2 and "finished run" in done.stderr and len(done.stderr.splitlines()) == 1
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_diverged_run_damages_nothing(finished, tmp_path, run):
    """A non-finite loss stops the run, names the step and alpha·lr, and leaves an older finished run as it was."""
    cwd, folder, _ = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = run("--steps", 5, *FAST, "--lr", "1e30", "--out", folder, "--overwrite", cwd=cwd)
    assert done.returncode == 2 and "step" in done.stderr and "alpha·lr" in done.stderr
    assert "Traceback" not in done.stderr
    assert before == {path: path.read_bytes() for path in before}


def test_an_overwritten_run_is_replaced_whole(tmp_path, run):
    """--overwrite leaves the new run's files alone: no merged model or adapter of the old one, nothing unfinished."""
    assert run("--rank", 2, "--steps", 1, *FAST, "--out", "o", "--merge", cwd=tmp_path).returncode == 0
    assert run("--method", "full", "--steps", 2, *FAST, "--out", "o", "--overwrite", cwd=tmp_path).returncode == 0
    assert json.loads((tmp_path / "o/run.json").read_text())["method"] == "full"
    assert len((tmp_path / "o/metrics.csv").read_text().splitlines()) == 3
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [
        "base.tiktoken", "config.json", "generation_config.json", "metrics.csv", "model.safetensors", "run.json",
        "spec.json"]


def test_an_overwritten_run_keeps_its_base_and_no_tokenizer_of_another(tmp_path, run, toy):
    """A base inside --out is refused, and a chat template that the new run has not is gone."""
    shutil.copytree(toy.base, tmp_path / "o/merged")
    (tmp_path / "o/metrics.csv").write_text("")
    (tmp_path / "o/chat_template.jinja").write_text("old")
    (tmp_path / "o/notes.txt").write_text("mine")
    (tmp_path / "o/run.json").write_text("{}")
    done = run("--base", "o/merged", "--steps", 1, *FAST, "--out", "o", "--overwrite", cwd=tmp_path)
    assert done.returncode == 2 and "holds the base" in done.stderr and (tmp_path / "o/merged/config.json").is_file()
    done = run("--rank", 2, "--steps", 1, *FAST, "--merge", "--out", "o", "--overwrite", cwd=tmp_path)
    assert done.returncode == 0 and "merged model in o/merged: " in done.stdout
    assert not (tmp_path / "o/chat_template.jinja").exists() and (tmp_path / "o/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("flags", [pytest.param([], id="toy"), pytest.param(
    ["--base", ROOT / "data/base", "--data", ROOT / "data/equations"], id="base", marks=pytest.mark.thorough)])
def test_lora_alpha_is_ahead_of_lora_after_sixty_steps(flags, tmp_path, run):
    """Same rank, learning rate, steps and seed: the rule's validation loss is below that of alpha = 2r."""
    for method in ("lora-alpha", "lora"):
        done = run("--steps", 60, "--eval-every", 60, "--method", method, *FAST, *flags, "--out", method, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert last_loss(tmp_path / "lora-alpha") < last_loss(tmp_path / "lora")


def test_full_fine_tuning_writes_a_model_folder(tmp_path, run):
    """--method full trains every weight and writes a folder that is a base itself."""
    assert run("--steps", 2, "--method", "full", *FAST, "--out", "full", cwd=tmp_path).returncode == 0
    assert run("--steps", 1, *FAST, "--base", "full", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("flags, word", [
    (["--rank", "0"], "rank"), (["--rank", "x"], "rank"), (["--alpha", "nan"], "alpha"), (["--lr", "0"], "lr"),
    (["--alpha", "8", "--c", "256"], "--c"), (["--targets", "q_proj", "nope"], "nope"),
    (["--targets", "q_proj)"], "parenthesis"),
    (["--method", "lora", "--c", "9"], "--c"), (["--base", "absent"], "absent"), (["--data", "absent"], "absent"),
    (["--val", "absent.jsonl"], "absent"), (["--ran", "16"], "--ran"), (["--device", "abacus"], "abacus"),
    (["--dropout", "1"], "dropout"), (["--c", "1e200"], "--c"), (["--rank", "1" + "0" * 14], "--rank"),
    (["--device", "meta"], "meta"), (["--steps", "0"], "steps"), (["--method", "full", "--merge"], "full"),
])
def test_a_mistake_is_one_line_and_status_2(flags, word, tmp_path, run):
    """One line on stderr that names what is wrong, exit status 2, nothing written."""
    done = run(*flags, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and word in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text, word", [
    ('{"problem": "a", "solution": "b", "answer": "4"}\n{oops\n', "line 2"),
    ('\n\n[1]\n', "entry 1: not"), ("7", "line 1"), ("", "no problem"),
    ('{"problem": "a", "solution": "b", "answer": true}', "line 1"), ('{"problem": "a"}', "line 1"),
    ('{"problem": "a", "solution": ""  , "answer": "4"}', "no problem is left"),
])
def test_a_malformed_file_is_one_line_and_status_2(text, word, tmp_path, run):
    """The line's number is named; a file with nothing to learn is an error, never a loss of NaN or 0."""
    (tmp_path / "data.jsonl").write_text(text)
    done = run("--data", "data.jsonl", *FAST, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and word in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_odd_text_files_are_read(tmp_path):
    """BOM, CRLF, U+2028, a blank line, emoji and no final newline, under an ASCII locale and console."""
    line = json.dumps(dict(problem="2 + 2\u2028 🙂", solution="It is $\\boxed{4}$ 🙂.", answer="4"), ensure_ascii=False)
    (tmp_path / "odd.jsonl").write_bytes(("\ufeff" + "\r\n".join([line, "", *[line] * 11])).encode())
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), "--data", "odd.jsonl", "--val", "odd.jsonl",
                           "--steps", "1", "--out", "o", "--eval-problems", "2"], cwd=tmp_path, capture_output=True,
                          env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads((tmp_path / "o/run.json").read_text())["n_train"] == 12


def test_too_long_problems_are_counted_aloud(tmp_path, run):
    """A problem that does not fit the context is left out and said; the others are trained on."""
    problems_file(tmp_path / "d.jsonl", ("a", "b"), ("a " * 3000, "b"))
    done = run("--data", "d.jsonl", "--val", "d.jsonl", "--steps", 1, *FAST, "--out", "o", cwd=tmp_path)
    assert done.returncode == 0 and "left out 1 of 2 training problems" in done.stdout


def test_problems_are_held_out_only_where_no_validation_is_given(tmp_path, run):
    """A file alone gives a tenth of its problems, 300 at most, to validation; with --val it gives none."""
    problems_file(tmp_path / "d.jsonl", *[(f"{n} + 1", f"{n + 1}") for n in range(20)])
    for extra, n_train, n_val in (([], 18, 2), (["--val", "d.jsonl"], 20, 20)):
        done = run("--data", "d.jsonl", "--steps", 1, *FAST, "--out", f"o{n_val}", *extra, cwd=tmp_path)
        run_json = json.loads((tmp_path / f"o{n_val}/run.json").read_text())
        assert done.returncode == 0 and (run_json["n_train"], run_json["n_val"]) == (n_train, n_val)


def test_pass1_changes_nothing_that_is_learnt(tmp_path, run):
    """The same run with and without pass@1 and validation ends in the same adapter, bit for bit."""
    for name, extra in (("with", ["--eval-problems", 3, "--eval-every", 1]), ("without", ["--eval-problems", 0])):
        assert run("--steps", 3, *FAST[:4], *extra, "--dropout", 0.1, "--out", name, cwd=tmp_path).returncode == 0
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("with", "without")]
    assert files[0] == files[1]


def test_a_loss_that_diverges_in_the_last_step_saves_nothing(tmp_path, run):
    """The weights are checked after the last update as well."""
    done = run("--steps", 1, *FAST, "--lr", "1e39", "--out", "o", cwd=tmp_path)
    assert done.returncode == 2 and "diverged" in done.stderr and len(done.stderr.splitlines()) == 1
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["metrics.csv"]


def test_bfloat16_trains_and_answers(tmp_path, run):
    """A base in bfloat16, as on CUDA: a LoRA step, a full step under autocast, and pass@1 with the cache."""
    for method in ("lora-alpha", "full"):
        done = run("--method", method, "--dtype", "bfloat16", "--steps", 1, "--batch-size", 1, "--eval-problems", 1,
                   "--out", method, "--val", problems_file(tmp_path / "v.jsonl", ("1 + 1", "2")), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    state = load_file(tmp_path / "lora-alpha/adapter_model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_files_of_the_user_in_a_new_out_stay(tmp_path, run):
    """--out may be a folder with other things in it: a run leaves them alone, whatever they are called."""
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished/notes.txt").write_text("mine")
    assert run("--steps", 1, *FAST, "--out", ".", cwd=tmp_path).returncode == 0
    assert (tmp_path / "unfinished/notes.txt").read_text() == "mine" and (tmp_path / "run.json").is_file()


def test_a_folder_of_another_origin_is_not_overwritten(tmp_path, run, toy):
    """--out on a model that is no run of train.py, or on the base itself, is refused even with --overwrite."""
    shutil.copytree(toy.base, tmp_path / "m")
    before = (tmp_path / "m/model.safetensors").read_bytes()
    for extra in ([], ["--base", "m"]):
        done = run("--steps", 1, *FAST, "--method", "full", "--out", "m", "--overwrite", *extra, cwd=tmp_path)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert (tmp_path / "m/model.safetensors").read_bytes() == before


def test_eval_pass1_compares_base_and_adapter(finished, toy, command):
    """The newest adapter under out/ is found; the table has a column for the base and one for it."""
    cwd, _, _ = finished
    done = command(eval_pass1, "--base", toy.base, "--data", toy.data, "--limit", 3, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "base" in done.stdout and "out/lora-alpha-r4-1" in done.stdout.replace(os.sep, "/")


def test_gsm8k_answers_follow_the_marks(tmp_path):
    """GSM8K's gold answer is what follows the last ####; where there is none, or no box in MATH's fields, it is
    unknown. The working is without it and without the calculator's notes."""
    path = tmp_path / "g.jsonl"
    path.write_text(json.dumps(dict(question="q", answer="Item #### 7: 2 + 2 = <<2+2=4>>4.\n#### 1,004")) + "\n"
                    + json.dumps(dict(question="q", answer="four")) + "\n"
                    + json.dumps(dict(problem="p", solution="so \\boxed{\\frac{1}{2}}.")) + "\n"
                    + json.dumps(dict(problem="p", solution="so \\boxed{7}.", answer=None)) + "\n"
                    + json.dumps(dict(problem="p", solution="so 1/2.")) + "\n", encoding="utf-8")
    problems = load_problems(path)
    assert [p["answer"] for p in problems] == ["1,004", None, "\\frac{1}{2}", "7", None]
    assert [p["working"] for p in problems[:2]] == ["Item #### 7: 2 + 2 = 4.", "four"]


def test_a_model_that_does_not_fit_its_tokenizer_is_refused(tmp_path, run, toy):
    """Too small a vocabulary, or no end token anywhere, is one line and status 2."""
    shutil.copytree(toy.base, tmp_path / "m")
    spec = json.loads((tmp_path / "m/spec.json").read_text())
    for special in ({"<|endoftext|>": 511, "<|more|>": 900}, {}):
        (tmp_path / "m/spec.json").write_text(json.dumps({**spec, "special_tokens": special}))
        if not special:
            for name in ("config.json", "generation_config.json"):
                config = json.loads((tmp_path / "m" / name).read_text())
                (tmp_path / "m" / name).write_text(json.dumps({**config, "eos_token_id": None}))
        done = run("--steps", 1, *FAST, "--base", "m", "--out", "o", cwd=tmp_path)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr


def test_the_prompt_is_the_same_in_training_and_evaluation():
    """encode_example begins with exactly what encode_prompt gives, and ends with the end token, once."""
    encoding = load_tokenizer(ROOT / "data/base")
    for problem in load_problems(ROOT / "data/equations/test.jsonl")[:50]:
        prompt, answer = apart(encode_example(encoding, problem, encoding.eot_token))
        assert prompt == encode_prompt(encoding, problem) and answer.count(encoding.eot_token) == 1
        assert answer[-1] == encoding.eot_token and encoding.decode(answer[:-1]) == f" {problem['solution']}"


def test_the_begin_token_stands_once_at_the_start():
    """Where a model has one, it is before the prompt's own tokens, in training and in evaluation, and nowhere else."""
    encoding, problem = load_tokenizer(ROOT / "data/base"), dict(problem="1 + 1?", solution="2")
    plain, answer = apart(encode_example(encoding, problem, encoding.eot_token))
    assert apart(encode_example(encoding, problem, encoding.eot_token, 7)) == ([7, *plain], answer)
    assert encode_prompt(encoding, problem, 7) == Protocol("plain", "math").encode(encoding, problem, 7) == [7, *plain]


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not here")
def test_gsm8k_trains_end_to_end_and_its_loss_falls(tmp_path, run):
    """Real problems in GSM8K's fields on the embedded base, at its default rate."""
    for name, count in (("train", 50), ("test", 5)):
        lines = (REAL / f"gsm8k_{name}.jsonl").read_text(encoding="utf-8").split("\n")[:count]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    done = run("--base", ROOT / "data/base", "--data", "train.jsonl", "--val", "test.jsonl", "--steps", 3,
               "--batch-size", 4, "--eval-problems", 0, "--out", "o", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "o/run.json").read_text())["results"]
    assert results["val_loss_after"] < results["val_loss_before"]

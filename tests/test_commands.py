"""What both command lines take, refuse and print: python -m pytest tests/test_commands.py"""

import contextlib
import io
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import eval_pass1
import train
from eval_pass1 import (Lasting, Once, check_paths, extract_answer, is_correct, pass1_interval, pass_at_k,
                        plain_output, printable)
from grader import KINDS
from hf import load_adapter, load_model, save_adapter
from lora_alpha import inject_lora, sample
from problems import NOT_LINE_FEEDS, Protocol, data_file, level_name, line_feeds, load_problems
from tokens import load_tokenizer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def trained(toy, command, tmp_path_factory):
    """(folder, what was printed) of a run into a folder whose name has a blank, its base given by a relative path."""
    cwd = tmp_path_factory.mktemp("run")
    (cwd / "my base").symlink_to(toy.base)
    done = command(train, "--base", "my base", "--steps", 3, "--batch-size", 8, "--eval-problems", 2, "--out", "a run",
                   cwd=cwd, data=toy.data)
    assert done.returncode == 0, done.stderr
    return cwd / "a run", done.stdout


# ---- Flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script, flag", [
    *((train, flag) for flag in ("base", "data", "val")),
    *((eval_pass1, flag) for flag in ("base", "adapter", "data", "few-shot-from"))], ids=str)
@pytest.mark.parametrize("path", ["somewhere/else/Llama-3.2-1B", "absent.jsonl"])
def test_a_missing_path_is_named_as_missing_first(script, flag, path, toy, command, tmp_path):
    """With its flag, before anything else is said of it, and not in the words of the operating system."""
    done = command(script, f"--{flag}", path, cwd=tmp_path, base=toy.base)
    assert done.returncode == 2
    assert done.stderr == f"{script.__name__}.py: --{flag} {path}: there is no such file or folder\n"


@pytest.mark.parametrize("flag", ["base", "adapter"])
def test_merge_names_a_missing_folder(flag, toy, command, tmp_path):
    folders = {"base": toy.base, "adapter": toy.base, flag: "absent"}
    words = [word for name, folder in folders.items() for word in (f"--{name}", folder)]
    done = command(train, "merge", *words, "--out", "o", cwd=tmp_path)
    assert done.returncode == 2 and f"--{flag} absent: there is no such file or folder" in done.stderr


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "spec.json"])
@pytest.mark.parametrize("script", [train, eval_pass1], ids=str)
def test_a_file_that_a_folder_lacks_is_named(script, missing, toy, command, tmp_path):
    """One line with the file's path, and no [Errno 2]."""
    shutil.copytree(toy.base, tmp_path / "b")
    (tmp_path / "b" / missing).unlink()
    done = command(script, "--base", "b", cwd=tmp_path)
    assert done.returncode == 2 and f"b/{missing}: " in done.stderr and "Errno" not in done.stderr
    assert "no such file" in done.stderr.lower() and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name, what", [("adapter_model.bin", "adapter"), ("pytorch_model.bin", "model")])
def test_a_pickle_alone_is_named_as_what_it_is(name, what, toy, tmp_path):
    """Not as a file that is missing: it says what to do with it."""
    shutil.copytree(toy.base, tmp_path / "f")
    (tmp_path / "f" / name).write_bytes(b"\x80\x04.")
    if what == "model":
        (tmp_path / "f/model.safetensors").unlink()
    else:
        (tmp_path / "f/adapter_config.json").write_text(json.dumps(dict(r=1, lora_alpha=1)))
    with pytest.raises(ValueError, match=f"{name} is a pickle, which is never loaded: save it as safetensors"):
        load_model(tmp_path / "f") if what == "model" else load_adapter(load_model(toy.base), tmp_path / "f")


@pytest.mark.parametrize("parser", [train.make_parser(), eval_pass1.make_parser()], ids=["train", "eval_pass1"])
def test_a_flag_given_twice_is_refused(parser, capsys):
    """Every flag that keeps one value; --adapter of eval_pass1.py may be given several times."""
    single = [action for action in parser._actions if isinstance(action, Once)]
    assert len(single) >= 15 and {"--base", "--seed"} <= {action.option_strings[0] for action in single}
    for action in single:
        flag = action.option_strings[0]
        value = [action.choices[0]] if action.choices else ["1"]
        parser.parse_args([flag, *value])
        parser.parse_args([flag, *value])  # another command line is another count
        with pytest.raises(SystemExit) as stop:
            parser.parse_args([flag, *value, flag, *value])
        assert stop.value.code == 2 and f"{flag} is given twice: give it once" in capsys.readouterr().err


def test_merge_takes_one_adapter(toy, command, tmp_path, capsys):
    """merge --adapter A --adapter B does not fold B alone."""
    with pytest.raises(SystemExit) as stop:
        train.main(["merge", "--base", "b", "--adapter", "A", "--adapter", "B", "--out", "o"])
    assert stop.value.code == 2 and "--adapter is given twice" in capsys.readouterr().err


@pytest.mark.parametrize("seed, fits", [("0", True), ("4294967295", True), ("4294967296", False), ("-1", False),
                                        ("18446744073709551616", False), (str(10**40), False)])
def test_a_seed_beyond_the_generators_bits_is_refused(seed, fits, capsys):
    if fits:
        assert train.parse_args(["--seed", seed])[1].seed == int(seed)
        return
    with pytest.raises(SystemExit) as stop:
        train.parse_args(["--seed", seed])
    assert stop.value.code == 2 and f"--seed {seed}: it must be from 0 to 2**32 - 1" in capsys.readouterr().err


@pytest.mark.parametrize("text, read", [
    (r"\nlet us think", "\nlet us think"), (r"Q: {problem}\nA:", "Q: {problem}\nA:"), (r"a\n\nb", "a\n\nb"),
    (r"\n1", "\n1"), (r"\n{problem}", "\n{problem}"), (r"\nnot so", "\nnot so"), (r"end\n", "end\n"),
    (r"\nabla f", r"\nabla f"), (r"a \neq b", r"a \neq b"), (r"\nu_1", r"\nu_1"), (r"x\notin S", r"x\notin S"),
    (r"\nexists x", r"\nexists x"), (r"a \\nb", r"a \\nb"), (r"\new", "\new"), (r"\nn", "\nn")])
def test_a_line_feed_in_a_prompt_is_read_wherever_it_begins_no_command_of_latex(text, read):
    assert line_feeds(text) == read
    if read != text and "{problem}" in text:
        assert Protocol(text, "math").question == read


def test_every_name_that_is_no_line_feed_is_one_of_latex():
    """They begin with n, have letters alone, and the commonest are there."""
    assert all(name[0] == "n" and name.isalpha() for name in NOT_LINE_FEEDS)
    assert {"nabla", "ne", "neq", "ni", "not", "notin", "nu", "nmid", "nearrow", "newline"} <= NOT_LINE_FEEDS


def test_help_shows_a_line_feed_as_it_is_typed(capsys):
    with pytest.raises(SystemExit):
        eval_pass1.parse_args(["--help"])
    shown = capsys.readouterr().out
    assert "\\n" in shown and "\\\\n" not in shown


NUMBERS = ["", " ", "0", "-1", "1", "7", "1e9", "nan", "inf", "-inf", "1e400", "1e-46", "1e-320", "1_0", "٣", "1.5",
           str(2**32), str(2**64), str(10**20), str(-(10**20)), "9" * 5000, "true", "é"]
WORDS = ["auto", "none", "absent", ".", "..", "-", "--", "hpu", "cuda:99", "{problem}", "chat", "{", "lora", "math",
         "all-linear", "[", "(a+)+$", "x" * 5000, "/dev/null", "/proc/self/mem", "\x1b[2J", "\udcff", "a\nb"]
SCRIPTS = {"train": train, "eval_pass1": eval_pass1}


def refused_in_one_line(script, flags, cwd):
    """The script's main, stopped before it loads a model, ends in the one line of a mistake and leaves no file."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(cwd)
        for module, name in ((train, "load_data"), (eval_pass1, "load_base"), (eval_pass1, "regrade")):
            patch.setattr(module, name, lambda *_: (_ for _ in ()).throw(ValueError("no mistake")))
        with pytest.raises(SystemExit) as end:
            script.main(flags)
    told = err.getvalue()
    assert end.value.code == 2 and told.count("\n") == 1 and told.endswith("\n"), (flags, end.value.code, told)
    assert not out.getvalue() and not list(cwd.iterdir()), flags
    return told


@pytest.mark.parametrize("script, flags", [
    *(("eval_pass1", [f"--{name}", value]) for name, value in (
        ("top-p", "1e-46"), ("top-p", "nan"), ("top-p", "1.1"), ("temperature", "inf"), ("temperature", "-1e-9"),
        ("max-new-tokens", str(10**20)), ("samples", str(10**20)), ("samples", "10001"), ("few-shot", "-1"),
        ("few-shot", str(2**64)), ("limit", str(10**20)), ("batch-size", "9" * 5000), ("batch-size", "-1"),
        ("batch-size", "nan"), ("seed", "-1"), ("seed", "1e3"), ("k", "0"), ("device", "hpu"))),
    ("eval_pass1", ["--samples=--"]), ("eval_pass1", ["--adapter=--"]), ("train", ["--rank=--"]),
    *(("train", [f"--{name}", value]) for name, value in (
        ("device", "hpu"), ("device", ""), ("device", "cuda:99"), ("seed", str(2**64)), ("lr", "nan"),
        ("rank", str(10**20)), ("weight-decay", "-inf"), ("alpha", "0"), ("max-length", "1"),
        ("eval-problems", "-1")))], ids=str)
def test_a_value_that_no_run_can_use_is_one_line(script, flags, tmp_path):
    """It names the flag, and nothing is written."""
    (told,) = refused_in_one_line(SCRIPTS[script], flags, tmp_path).splitlines()
    assert flags[0] in told and "no mistake" not in told


# ---- What is printed -------------------------------------------------------------------------------------------------


def test_the_next_command_is_quoted_for_a_shell(trained):
    """As words it names the folders, blanks and all."""
    _, stdout = trained
    asked, evaluated = (shlex.split(line) for line in stdout.splitlines() if line.startswith("  python eval_pass1.py"))
    assert evaluated[evaluated.index("--adapter") + 1] == "a run" and "--base" not in evaluated  # the adapter names it
    assert asked[2:5] == ["--adapter", "a run", "--ask"] and len(asked) == 6


def test_the_loops_line_says_how_many_epochs_the_steps_are(trained):
    assert "3 steps of 8 problems, 1 epochs, peak learning rate" in trained[1]


def test_output_goes_on_without_a_reader(monkeypatch):
    """Of a pipe whose reader has gone, as in "| head", and where the shell has closed it, as by >&-."""
    read, write = os.pipe()
    with open(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        plain_output()
        os.close(read)
        for text in ("lost", "x" * 100_000, "lost, too"):
            print(text)
    monkeypatch.setattr(sys, "stdout", None)
    plain_output()
    print("lost")
    assert not sys.stdout.isatty()


@pytest.mark.parametrize("text, shown", [
    ("plain $x^2$ é 中 🙂\nsecond", "plain $x^2$ é 中 🙂\nsecond"), ("\x1b[2Jgone", "\\x1b[2Jgone"), ("a\rb", "a\\rb"),
    ("bell\x07", "bell\\x07"), ("\x9b31m", "\\x9b31m"), ("\ud83d", "\\ud83d"), ("a\tb", "a\\tb")])
def test_control_characters_are_shown_as_escapes(text, shown):
    assert printable(text) == shown


def test_a_completion_does_not_steer_the_terminal(command, toy, tmp_path):
    """A problem, a gold answer and a level with escape sequences are printed as text, in training and evaluation."""
    row = dict(problem="1 +\x1b[31m 1", solution="s", answer="\x1b]0;2\x07", level="\x1b[1m", type="t")
    rows = [row, dict(row, level="b")]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = command(train, "--data", "p.jsonl", "--val", "p.jsonl", "--steps", 1, "--eval-problems", 2, cwd=tmp_path,
                   base=toy.base)
    assert done.returncode == 0 and not {"\x1b", "\x07"} & set(done.stdout) and "\\x1b[31m" in done.stdout
    done = command(eval_pass1, "--data", "p.jsonl", "--max-new-tokens", 2, cwd=tmp_path, base=toy.base)
    assert done.returncode == 0 and "\x1b" not in done.stdout and "\\x1b[1m" in done.stdout


ESCAPES = "\x1b[31m", "\x1b]0;t\x07", "\x9b2J", "\r", "\x08", "\x7f"


def shown(done):
    """All that a command printed, in which no control character is but the line feed."""
    text = done.stdout + done.stderr
    assert not {c for c in text if unicodedata.category(c) == "Cc"} - {"\n"}, repr(text)
    return text


@pytest.mark.parametrize("escape", ESCAPES, ids=ascii)
def test_no_name_and_no_data_steer_the_terminal(escape, command, toy, tmp_path):
    """Of adapters, files, protocols, levels, stored responses, questions, folders, and in the lines of mistakes."""
    name, flags = f"a{escape}b", ["--max-new-tokens", 2]
    save_adapter(inject_lora(load_model(toy.base), 2), tmp_path / name, base=f"/nowhere/{name}")
    (tmp_path / name / "run.json").write_text(json.dumps(dict(data=f"{name}.data")))
    shutil.copytree(toy.data, tmp_path / f"{name}.data")
    told = shown(command(eval_pass1, "--adapter", name, "--adapter", "none", "--base", toy.base, *flags, "--prompt",
                         f"{escape}{{problem}}", "--out", f"o{escape}", "--limit", 2, cwd=tmp_path))
    assert ascii(escape)[1:-1] in ascii(told).replace("\\\\", "\\") and "McNemar" in told
    asked = command(eval_pass1, "--adapter", name, "--base", toy.base, *flags, "--ask", f"1{escape}", cwd=tmp_path)
    assert asked.returncode == 0 and "base:" in shown(asked)
    row = dict(response=f"\\boxed{{{escape}1}}", gold=f"{escape}2", label=True, level=escape, adapter=name)
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | dict(level="b")) + "\n")
    assert "2 had a verdict" in shown(command(eval_pass1, "--regrade", f"{name}.jsonl", cwd=tmp_path))
    for mistake in (["--adapter", f"gone{name}"], ["--data", f"{escape}gone"], ["--out", f"{name}.jsonl"],
                    ["--prompt", escape], ["--kind", escape], ["--limit", escape], [f"--x{escape}", "1"]):
        done = command(eval_pass1, *mistake, cwd=tmp_path, base=toy.base, adapter="none")\
            if "--adapter" not in mistake else command(eval_pass1, *mistake, cwd=tmp_path)
        assert done.returncode == 2 and shown(done).count("\n") == done.stderr.count("\n") == 1
    for mistake in (["--data", f"{escape}gone"], ["--base", escape], ["--out", f"{name}.jsonl"]):
        done = command(train, *mistake, cwd=tmp_path, base=toy.base)
        assert done.returncode == 2 and shown(done).count("\n") == 1


@given(st.text(st.sampled_from("ab\n\r\x1b\x07\x9b\x00\x7fé\t\ud83d") | st.characters(), max_size=20))
def test_a_stream_passes_no_control_character_on(text):
    """But a line feed, and the carriage return of a bar, which is written alone."""
    stream = io.StringIO()
    Lasting(stream).write(text)
    written = stream.getvalue()
    assert not {c for c in written if unicodedata.category(c) in ("Cc", "Cs")} - {"\n"} or text == written == "\r"
    assert written == printable(text) or text == "\r"


def test_one_adapter_under_two_spellings_is_one(trained, toy, command):
    """A, A/ and ./A are one column, also on going on with --out."""
    folder, _ = trained
    os.symlink(folder, folder.parent / "A")
    flags = ["--base", toy.base, "--data", toy.data, "--max-new-tokens", 2, "--out", "o"]
    done = command(eval_pass1, *flags, "--adapter", "A", "--adapter", "A/", "--adapter", "./A", cwd=folder.parent)
    assert done.returncode == 0 and done.stdout.splitlines()[1].split()[-1:] == ["A"], done.stderr
    again = command(eval_pass1, *flags, "--adapter", "A/", cwd=folder.parent)
    assert again.returncode == 0 and again.stdout.splitlines()[1:-1] == done.stdout.splitlines()[1:-1]


# ---- Data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level, name", [(None, "all"), ("", "all"), (5, "Level 5"), ("5", "Level 5"), (0, "Level 0"),
                                         ("Level ?", "Level ?")])
def test_a_level_has_a_name(level, name, tmp_path):
    """null is no level called None."""
    assert level_name(level) == name
    row = dict(problem="p", solution="s", answer="1", level=level, type=None)
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    (problem,) = load_problems(tmp_path / "p.jsonl")
    assert (problem["level"], problem["subject"]) == (name, "all")


def test_two_files_of_one_name_are_not_chosen_between(tmp_path):
    """test.csv does not silently beat test.jsonl: the folder is refused, each file is taken."""
    for name in ("test.csv", "test.jsonl"):
        (tmp_path / name).write_text("")
        assert data_file(tmp_path / name, "test") == tmp_path / name
    with pytest.raises(ValueError, match="test.jsonl and test.csv; give the one that you mean"):
        data_file(tmp_path, "test")
    (tmp_path / "test.jsonl").unlink()
    assert data_file(tmp_path, "test") == tmp_path / "test.csv"


# ---- What a run writes -----------------------------------------------------------------------------------------------


def test_an_adapter_names_its_base_so_that_it_is_found_from_anywhere(trained, tmp_path, monkeypatch):
    """The path is absolute, and PEFT loads by the adapter alone from another folder."""
    import peft
    folder, _ = trained
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder.parent / "my base")
    assert not {"use_rslora", "use_dora", "bias", "rank_pattern", "lora_dropout", "init_lora_weights"} & config.keys()
    monkeypatch.chdir(tmp_path)
    ours, theirs = load_adapter(load_model(config["base_model_name_or_path"]), folder), \
        peft.AutoPeftModelForCausalLM.from_pretrained(folder)
    idx = torch.tensor([[1, 2, 3, 4]])
    assert (ours(idx)[0] - theirs(idx).logits).abs().max() < 1e-4 * ours(idx)[0].abs().max()


def git(folder, *words):
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=folder, check=True,
                   capture_output=True)


def test_a_run_names_the_commit_only_where_git_keeps_these_files(tmp_path, monkeypatch):
    """No repository, files that it ignores or does not know: None. A changed file: -dirty."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    here = tmp_path / "code"
    here.mkdir()
    for name in ("train.py", "lora_alpha.py"):
        (here / name).write_text("1\n")
    monkeypatch.setattr(train, "HERE", here)
    assert train.commit() is None
    git(tmp_path, "init", "-q")
    (tmp_path / "other").write_text("1")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-qm", "a stranger's")
    assert train.commit() is None
    git(tmp_path, "add", "code")
    git(tmp_path, "commit", "-qm", "ours")
    commit = train.commit()
    assert len(commit) == 40 and set(commit) <= set("0123456789abcdef")
    (tmp_path / "other").write_text("2")  # not these files
    (here / "notes").write_text("untracked")
    assert train.commit() == commit
    (here / "lora_alpha.py").write_text("2\n")
    assert train.commit() == f"{commit}-dirty"


# ---- The rest --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-46, 1e-40, 1.1e-38, 1.2e-38, 1e-30, 1e-6])
def test_a_temperature_near_zero_is_greedy(temperature):
    """Below float32's smallest normal number as well as above it, and no quotient overflows."""
    logits = torch.tensor([[1.0, 30.0, 29.0, -50.0], [400.0, 2.0, 3.0, 399.0]])
    for uniform in (0.0, 0.5, 1 - 2**-24):
        assert sample(logits, temperature, 1.0, torch.tensor([uniform, uniform])).tolist() == [1, 0]


def test_sampling_follows_the_softmax():
    """At temperature T a token falls with exp(logit/T) over their sum."""
    logits, n = torch.tensor([[0.0, 1.0, 2.0]]), 30_000
    uniform = (torch.arange(n) + 0.5) / n
    counts = sample(logits.expand(n, 3), 0.7, 1.0, uniform).bincount(minlength=3) / n
    expected = [math.exp(x / 0.7) for x in (0, 1, 2)]
    for share, e in zip(counts.tolist(), expected):
        assert abs(share - e / sum(expected)) < 1e-3


def test_what_others_import_from_eval_pass1_is_there():
    assert is_correct("so \\boxed{\\frac12}", "0.5") and extract_answer("\\boxed{7}") == "7" and "math" in KINDS
    assert pass_at_k(2, 1, 1) == 0.5 and pass1_interval([1, 0])[0] == 0.5


def test_check_paths_passes_over_flags_that_were_not_given(tmp_path):
    check_paths(base=tmp_path, adapter=None)
    with pytest.raises(ValueError, match="--few-shot-from"):
        check_paths(base=tmp_path, few_shot_from=tmp_path / "absent")


def test_loading_draws_in_no_compiler(toy):
    """A model folder loads without torch's compiler, which takes seconds to import, and nothing is initialised."""
    program = ("import sys, hf, tokens; hf.load_model(sys.argv[1]); tokens.load_tokenizer(sys.argv[1]); "
               "print(*{'torch._dynamo', 'torch._inductor'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", program, str(toy.base)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "\n", done.stdout + done.stderr


def test_a_loaded_model_is_the_files_alone(toy):
    """Two loads are equal though torch's random state differs, and a load leaves that state alone."""
    torch.manual_seed(1)
    first, state = load_model(toy.base), torch.get_rng_state()
    assert torch.equal(state, torch.manual_seed(1).get_state())
    second = load_model(toy.base)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert load_tokenizer(toy.base).eot_token == 511


def test_save_adapter_leaves_out_defaults_and_keeps_what_is_not(toy, tmp_path):
    """Dropout, and ranks and alphas that differ by layer, stand in the file; PEFT reads both."""
    import peft
    model = inject_lora(load_model(toy.base), 2, 8, dropout=0.25)
    save_adapter(model, tmp_path)
    config = peft.LoraConfig.from_pretrained(tmp_path)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 8, 0.25)
    assert (config.use_rslora, config.bias) == (False, "none")

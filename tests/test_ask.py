"""--ask: the words of the training, answers as they come; the progress bar; the random subset of test problems."""

import contextlib
import io
import json
import re
import shlex
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eval_pass1
import train
from eval_pass1 import Answer, Progress, printable, solve
from hf import copy_tokenizer, load_model, save_adapter, save_model
from lora_alpha import GPT, inject_lora
from problems import PROMPT, draw, load_problems, load_tests
from tokens import decode, end_tokens, load_chat, load_tokenizer

TEMPLATE = ("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}")
ROWS = {
    "problem": [dict(problem=f"{i} + 1", solution=f"It is {i + 1}.") for i in range(12)],
    "prompt": [dict(prompt=f"{i} + 1 =", completion=f" {i + 1}") for i in range(12)],
    "text": [dict(text=f"{i} and 1 are {i + 1}") for i in range(12)],
    "messages": [dict(messages=[dict(role="system", content="Be brief."), dict(role="user", content=f"{i} + 1?"),
                                dict(role="assistant", content=f"{i + 1}")]) for i in range(12)]}


@pytest.fixture(scope="module")
def encoding():
    return load_tokenizer(train.HERE / "data/base")


@pytest.fixture
def chat_base(toy, tmp_path):
    save_model(load_model(toy.base), tmp_path / "base")
    copy_tokenizer(toy.base, tmp_path / "base")
    (tmp_path / "base/chat_template.jinja").write_text(TEMPLATE)
    return tmp_path / "base"


@pytest.fixture
def asked(monkeypatch):
    """The prompts that are put to the model from now on."""
    prompts, generate = [], GPT.generate

    def spy(self, questions, *args, **kwargs):
        prompts.extend(questions)
        return generate(self, questions, *args, **kwargs)

    monkeypatch.setattr(GPT, "generate", spy)
    return prompts


@pytest.mark.parametrize("form", ROWS)
def test_a_question_is_asked_in_the_words_of_the_training(form, chat_base, command, tmp_path, encoding, asked):
    """By base and adapter alike: a problem in its wording, a prompt and a text as it is, a chat with its system."""
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[form]))
    done = command(train, "--base", chat_base, "--data", "d.jsonl", "--rank", 2, "--steps", 1, "--batch-size", 2,
                   "--eval-problems", 0, "--out", "o", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    asked.clear()
    done = command(eval_pass1, "--adapter", "o", "--ask", "7 + 8?", "--max-new-tokens", 3, cwd=tmp_path)
    chat = load_chat(chat_base, encoding)
    words = {"problem": encoding.encode_ordinary(PROMPT.format(problem="7 + 8?")), "messages": chat(
        [dict(role="system", content="Be brief."), dict(role="user", content="7 + 8?")])}
    assert done.returncode == 0 and asked == [words.get(form, encoding.encode_ordinary("7 + 8?"))] * 2, done.stderr
    asked.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO("7\n8\n"))
        command(eval_pass1, "--adapter", "o", "--ask", "-", "--prompt", "Q: {problem}", "--max-new-tokens", 3,
                cwd=tmp_path)
    assert asked == [encoding.encode_ordinary(f"Q: {n}") for n in "7788"]


def test_the_answers_are_the_models(toy, command, tmp_path, encoding, asked):
    """Greedy, cut off at the limit, and each line of standard input in turn."""
    flags = "--base", toy.base, "--adapter", "none", "--max-new-tokens", 5
    done = command(eval_pass1, *flags, "--ask", "1 + 1", cwd=tmp_path)
    model, prompt = load_model(toy.base), encoding.encode_ordinary(PROMPT.format(problem="1 + 1"))
    tokens, = model.generate([prompt], 5, end_tokens(encoding, model.config))
    text = printable(decode(encoding, tokens).lstrip())
    assert len(tokens) == 5 and done.stdout == f"\nbase:\n{text} [cut off after 5 tokens]\n"
    asked.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO("1 + 1\n\n  2 + 2 \n"))
        both = command(eval_pass1, *flags, "--ask", "-", cwd=tmp_path)
    first, second = both.stdout.split("\n> 2 + 2\n")
    assert first == "\n> 1 + 1\n" + done.stdout and second.startswith("\nbase:\n")
    assert asked == [encoding.encode_ordinary(PROMPT.format(problem=text)) for text in ("1 + 1", "2 + 2")]
    sampled = command(eval_pass1, *flags, "--ask", "1", "--samples", 3, "--temperature", 1.5, cwd=tmp_path)
    answers = sampled.stdout.split(":\n", 1)[1].split(" [cut off after 5 tokens]\n")[:-1]
    assert len(answers) == 3 and len(set(answers)) > 1


@pytest.mark.parametrize("flags", [("--data", "x"), ("--limit", 3), ("--few-shot", 1), ("--k", 1), ("--out", "x"),
                                   ("--kind", "math"), ("--few-shot-from", "x"), ("--regrade", "x"),
                                   ("--batch-size", 2)])
def test_flags_of_an_evaluation_are_refused(flags, command, tmp_path):
    done = command(eval_pass1, "--ask", "1 + 1", *flags, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr == (
        f"eval_pass1.py: --ask QUESTION grades nothing: leave out {flags[0]}\n")


@pytest.mark.parametrize("flags, said", [
    (("--ask", " "), "--ask: the question is empty"), (("--ask", "1", "--prompt", "chat"), "chat template"),
    (("--ask", "1 + " * 2000), "the context"), (("--ask", "1", "--adapter", "gone"), "gone")])
def test_what_cannot_be_asked_is_one_line(flags, said, toy, command, tmp_path):
    done = command(eval_pass1, "--base", toy.base, *flags, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def adapter(folder, **training):
    """An adapter of 2 layers for the toy, with this training.json."""
    save_adapter(inject_lora(load_model(training["base"]), 2), folder)
    (folder / "training.json").write_text(json.dumps(training))


def test_adapters_of_different_words_are_not_asked_together(toy, command, tmp_path, asked, encoding):
    """The base could be asked as one of them alone; --prompt gives the same words to all."""
    for name, prompt in (("a", PROMPT), ("b", "{problem}"), ("c", PROMPT)):
        adapter(tmp_path / name, base=str(toy.base), prompt=prompt)
    flags = "--ask", "1 + 1", "--max-new-tokens", 2, "--adapter", "a", "--adapter"
    done = command(eval_pass1, *flags, "b", cwd=tmp_path)
    assert done.returncode == 2 and "trained in different words" in done.stderr and done.stderr.count("\n") == 1
    done = command(eval_pass1, *flags, "c", cwd=tmp_path)
    assert [line for line in done.stdout.splitlines() if line in ("base:", "a:", "c:")] == ["base:", "a:", "c:"]
    done = command(eval_pass1, *flags, "b", "--prompt", "own", cwd=tmp_path)
    assert done.returncode == 0 and asked[3:] == [encoding.encode_ordinary("1 + 1")] * 3, done.stderr


def test_a_broken_adapter_is_told_before_anything_is_asked(toy, command, tmp_path, asked):
    adapter(tmp_path / "a", base=str(toy.base))
    (tmp_path / "a/adapter_model.safetensors").write_bytes(b"")
    done = command(eval_pass1, "--adapter", "a", "--ask", "1", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not asked and "base:" not in done.stdout


def test_an_invented_problem_ends_the_answer(toy, command, tmp_path, monkeypatch, encoding):
    """No token is made after it."""
    told, made = encoding.encode_ordinary(" It is 2.\nProblem: 1 + 2\nSolution: 3" + " 4" * 50), []

    def generate(self, prompts, max_new_tokens, stop, temperature, top_p, generator, each):
        for token in told:
            made.append(token)
            each(0, token)

    monkeypatch.setattr(GPT, "generate", generate)
    done = command(eval_pass1, "--base", toy.base, "--adapter", "none", "--ask", "1 + 1", cwd=tmp_path)
    assert done.stdout == "\nbase:\nIt is 2.\n" and decode(encoding, made).endswith("\nProblem:")


class Terminal(io.StringIO):
    encoding = "utf-8"

    def __init__(self):
        super().__init__()
        self.parts = []

    def isatty(self):
        return True

    def write(self, text):
        self.parts.append(text)
        return super().write(text)


@settings(max_examples=40)
@given(text=st.text(st.sampled_from("ab \nPé中🙂:\x1b"), max_size=30), stop=st.booleans())
def test_an_answer_that_is_shown_as_it_comes_is_the_whole_answer(text, stop, encoding):
    """No character is shown in part, no begin of a next problem, no control character, and nothing twice."""
    outputs, text = [], text + "\nProblem: and on" * (not stop)
    for stream in (Terminal(), io.StringIO()):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            answer = Answer(encoding, (511,), "\nProblem:")
            with contextlib.suppress(StopIteration):
                for token in encoding.encode_ordinary(text) + [511] * stop:
                    answer(0, token)
            answer()
        outputs.append(stream.getvalue())
    whole = text.partition("\nProblem:")[0].lstrip().replace("\x1b", "\\x1b")
    assert outputs == [whole + "\n"] * 2


def test_an_answer_comes_in_parts_on_a_terminal(encoding, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    answer = Answer(encoding, (511,), "")
    for token in encoding.encode_ordinary("one two 中"):
        answer(0, token)
    assert "".join(sys.stdout.parts) == "one two 中" and len([part for part in sys.stdout.parts if part]) > 2


@given(st.integers(0, 40), st.none() | st.integers(0, 50), st.integers(0, 5))
def test_a_draw_is_a_random_subset_in_order(n, count, seed):
    drawn = draw(list(range(n)), count, seed)
    assert drawn == sorted(set(drawn)) == draw(list(range(n)), count, seed) and set(drawn) <= set(range(n))
    assert len(drawn) == (n if count is None else min(n, count))
    assert n < 10 or len({tuple(draw(list(range(n)), 3, s)) for s in range(20)}) > 5


def test_pass1_of_a_training_is_of_a_random_subset(toy, command, tmp_path):
    """As --limit draws it, said in the line above the table; of a file that is sorted by subject no subject alone."""
    rows = [dict(problem=f"{i}", solution=f"\\boxed{{{i}}}", type=["Algebra", "Geometry"][i // 20]) for i in range(40)]
    (tmp_path / "d").mkdir()
    for name in ("train", "test"):
        (tmp_path / f"d/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = command(train, "--base", toy.base, "--data", "d", "--rank", 2, "--steps", 1, "--batch-size", 2, "--out", "o",
                   "--eval-problems", 8, "--seed", 3, cwd=tmp_path)
    lines = done.stdout.splitlines()
    table = lines.index("8 of 40 test problems, drawn with seed 0") + 1
    counts = {subject: sum(p["subject"] == subject for p in draw(load_problems(tmp_path / "d/test.jsonl"), 8))
              for subject in ("Algebra", "Geometry")}
    shown = {words[0]: int(words[1]) for words in map(str.split, lines[table + 1 : table + 3])}
    assert lines[table].startswith("pass@1, %") and shown == counts and 0 < counts["Algebra"] < 8


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_one_line_on_a_terminal_and_a_line_a_tenth_in_a_log(terminal):
    stream = Terminal() if terminal else io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    progress = Progress("step", 200, stream)
    for done in range(1, 201):
        progress(done, "loss 1.0", always=done == 7)
    stream.seek(0)
    text = stream.read()
    assert text.count("\n") == (1 if terminal else 11) and text.count("\r") == (200 if terminal else 0)
    assert "step 200/200 ━━━━━━━━━━━━━━━━━━━━ 0:00 left  loss 1.0" in text
    assert "step 100/200 ━━━━━━━━━━────────── 0:0" in text
    quiet = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Progress("step", 1, quiet, quiet=60)(1)
    quiet.seek(0)
    assert quiet.read() == ""


def test_a_line_is_no_longer_than_the_terminal(monkeypatch):
    """A longer one would be broken and not redrawn. The time left counts what this process has done."""
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    progress = Progress("an/adapter/of/a/long/name", 100, stream, first=50)
    monkeypatch.setattr("time.time", lambda: progress.start + 60)
    progress(60, "loss 1.0")
    assert stream.getvalue() == "\ran/adapter/of/a/long/name  60/100 ━━━━━━━━"[:40] and len(stream.getvalue()) == 40
    monkeypatch.setenv("COLUMNS", "90")
    progress(60)
    assert "4:00 left" in stream.getvalue()


def next_commands(done):
    return [shlex.split(line)[2:] for line in done.stdout.partition("To try next:\n")[2].splitlines()]


def test_the_next_command_asks_a_short_question_of_the_data(toy, command, tmp_path):
    """The first that is short, on one line; where none is, they are read. The newest adapter is not named."""
    long = [dict(prompt="a " * 60 + str(i), completion=" b") for i in range(12)]
    flags = "--base", toy.base, "--data", "d.jsonl", "--steps", 1, "--rank", 2, "--eval-problems", 0
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    assert next_commands(command(train, *flags, cwd=tmp_path))[0] == ["--ask", "-"]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*long, dict(
        prompt="it's\n 1 + 1", completion="2")]))
    flags = *flags, "--val", "d.jsonl"
    ask = next_commands(command(train, *flags, "--out", "o", cwd=tmp_path))[0]
    assert ask == ["--adapter", "o", "--ask", "it's 1 + 1"]
    ask = next_commands(command(train, *flags, "--method", "full", "--out", "f", cwd=tmp_path))[0]
    assert ask == ["--base", "f", "--adapter", "none", "--prompt", "{problem}", "--ask", "it's 1 + 1"]
    assert command(eval_pass1, *ask, "--max-new-tokens", 2, cwd=tmp_path).stdout.startswith("\nbase:\n")


def test_a_terminal_shows_validation_loss_and_pass1_as_they_come(toy, command, tmp_path, monkeypatch):
    monkeypatch.setattr(Progress, "terminal", property(lambda self: True, lambda self, value: None), raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    done = command(train, "--base", toy.base, "--data", toy.data, "--steps", 2, "--rank", 2, "--batch-size", 2,
                   "--eval-every", 2, "--eval-problems", 2, "--out", "o", cwd=tmp_path)
    first, last = [line.split("\n")[0] for line in done.stdout.split("\r") if line.startswith("step ")]
    assert "  pass@1 0.0%  " in first and "val" not in first
    assert re.search(r"val \d\.\d{4}  pass@1 0\.0%  [\d,]+ tok/s", last)


def test_the_bar_of_an_evaluation_shows_how_many_are_right_so_far(toy, encoding):
    seen, tests = [], load_tests(toy.data)
    records = solve(load_model(toy.base), encoding, tests * 20, progress=lambda done, text: seen.append((done, text)))
    right = 100 * sum(record["correct"] for record in records) / 120
    assert [done for done, _ in seen] == [100, 120] and seen[-1][1] == f"{right:.1f}% right"

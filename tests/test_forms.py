"""The forms of data, read, refused, learnt and evaluated: python -m pytest tests/test_forms.py"""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import eval_pass1
import train
from hf import load_config
from problems import (Protocol, chat_for, encode_example, encode_examples, encode_prompt, load_problems, read_messages,
                      read_row)
from tokens import decode, encode_continuation, load_tokenizer

ROOT = Path(__file__).parents[1]
END = 511  # data/base's
TEMPLATE = ("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|endoftext|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def user(text):
    return dict(role="user", content=text)


def assistant(text):
    return dict(role="assistant", content=text)


SYSTEM = dict(role="system", content="Be brief.")
PROMPTS = [dict(prompt=f"{n} + 1 =", completion=f" {n + 1}") for n in range(12)]
CHATS = [dict(messages=[SYSTEM, user(f"{n} + 1?"), assistant(f"{n + 1}."), user("Sure?"), assistant("Yes.")])
         for n in range(12)]
TURNS = [dict(prompt=[user(f"{n}?"), assistant("What?"), user(f"{n} + 1?")], completion=[assistant(f"{n + 1}.")])
         for n in range(12)]
TEXTS = [dict(text=f"{n} and one more are {n + 1}.") for n in range(12)]


def answered(rows):
    return [dict(row, answer=n + 1) for n, row in enumerate(rows)]


def write(path, *rows, array=False):
    path.write_text(json.dumps(rows, indent=1) if array else "".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def chat_base(toy, tmp_path_factory):
    """The toy base with a chat template in which every turn ends with <|endoftext|>."""
    folder = tmp_path_factory.mktemp("chat") / "base"
    shutil.copytree(toy.base, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def encoding():
    return load_tokenizer(ROOT / "data/base")


@pytest.fixture
def learn(chat_base, command, tmp_path):
    """learn(rows, *flags): train.py's result on a file of the rows, one step on the chat base."""
    def learn(rows, *flags, **others):
        data = rows if isinstance(rows, Path) else write(tmp_path / "d.jsonl", *rows)
        return command(train, "--data", data, *flags, cwd=tmp_path, **{
            "base": chat_base, "steps": 1, "batch-size": 4, "out": tmp_path / "o", **others})
    return learn


@pytest.fixture
def evaluate(chat_base, command, tmp_path):
    def evaluate(rows, *flags):
        return command(eval_pass1, "--data", write(tmp_path / "d.jsonl", *rows), "--adapter", "none",
                       "--max-new-tokens", 4, *flags, cwd=tmp_path, base=chat_base)
    return evaluate


def refused(done, *words):
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


# ---- What is learnt --------------------------------------------------------------------------------------------------


@given(prompt=TEXT.filter(bool), completion=TEXT, bos=st.sampled_from([None, 7]))
def test_a_completion_is_learnt_and_its_prompt_is_not(encoding, prompt, completion, bos):
    """The labels are the completion's tokens and the end token; the ids are the text as it is, with nothing added."""
    problem = dict(form="prompt", problem=prompt, solution=completion)
    ids, labels = encode_example(encoding, problem, END, bos)
    start = labels.count(-100)
    assert labels == [-100] * start + ids[start:] and ids[-1] == END
    assert ids[:start] == encode_prompt(encoding, problem, bos)
    assert ids[:start] == [bos] * (bos is not None) + encoding.encode_ordinary(prompt)
    assert decode(encoding, ids[bos is not None : -1]) == prompt + completion


@given(text=TEXT, bos=st.sampled_from([None, 7]))
def test_of_a_text_every_token_is_learnt(encoding, text, bos):
    ids, labels = encode_example(encoding, dict(form="text", problem=text, solution=text), END, bos)
    begin = [bos] * (bos is not None)
    assert ids == [*begin, *encoding.encode_ordinary(text), END] and labels == [-100] * len(begin) + ids[len(begin) :]


@given(turns=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), system=st.none() | TEXT, data=st.data())
def test_of_a_chat_exactly_the_assistants_turns_are_learnt(encoding, chat_base, turns, system, data):
    """With their end tokens; where prompt and completion are lists of messages, those of the completion alone."""
    messages = [dict(role="system", content=system)] * (system is not None)
    messages += [message for asked, said in turns for message in (user(asked), assistant(said))]
    first = data.draw(st.sampled_from([0, *(i for i, m in enumerate(messages) if m["role"] == "assistant")]))
    problem = read_messages(messages[:first], messages[first:], None)
    chat = chat_for([problem], chat_base, encoding)
    ((ids, labels),) = encode_examples(encoding, problem, END, None, chat)
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    said = [m["content"] for m in messages[first:] if m["role"] == "assistant"]
    learnt = [token for token in labels if token != -100]
    assert learnt.count(END) == len(said) and learnt[-1] == END
    # A blank before a word may be one token with it: the template's, after "assistant:".
    shown = "".join(f"{text}<|endoftext|>" for text in said)
    assert decode(encoding, learnt).replace(" ", "") == shown.replace(" ", "")
    asked = encode_prompt(encoding, problem, None, chat)
    assert decode(encoding, asked) + said[-1] + "<|endoftext|>" == decode(encoding, ids)


def test_a_continuation_has_no_blank_of_its_own_in_sentencepiece():
    """Where the tokenizer puts a blank before each text, "4" after "2 + 2 =" gets none, and " 4" keeps its one."""
    class Blanks:
        adds_blank = True

        def encode_ordinary(self, text):
            return re.findall("▁?\n|▁?[^▁\n]+", "▁" + text.replace(" ", "▁"))  # a token a word

    assert encode_continuation(Blanks(), "4 5") == ["4", "▁5"] and encode_continuation(Blanks(), " 4 5") == ["▁4", "▁5"]


def test_the_turn_by_turn_examples_of_a_template_are_all_taken(encoding):
    """As many examples as the chat gives, from the completion's first message on; none without the assistant's."""
    class Fake:
        def examples(self, messages, start=0):
            return [([i, 1], [-100, 1]) for i, m in enumerate(messages) if m["role"] == "assistant" and i >= start]

    whole, part = read_row(CHATS[0]), read_row(TURNS[0])
    asks = read_messages([], [user("1?")], "1")
    assert [ids for ids, _ in encode_examples(encoding, whole, END, None, Fake())] == [[2, 1], [4, 1]]
    assert [ids for ids, _ in encode_examples(encoding, part, END, None, Fake())] == [[3, 1]]
    assert encode_examples(encoding, asks, END, None, Fake()) == []


# ---- What is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows, form, problem, solution, answer", [
    (PROMPTS, "prompt", "0 + 1 =", " 1", None), (answered(PROMPTS), "prompt", "0 + 1 =", " 1", "1"),
    (CHATS, "messages", "Sure?", "Yes.", None), (answered(TURNS), "messages", "0 + 1?", "1.", "1"),
    (TEXTS, "text", "0 and one more are 1.", "0 and one more are 1.", None),
    ([dict(text="one two three four five six seven eight nine")], "text", "one two three four five six seven eight",
     "one two three four five six seven eight nine", None),
    ([dict(problem="p", answer=204)], "problem", "p", "", "204"),  # AIME's
    ([dict(problem="p", answer="0", solution=None)], "problem", "p", "", "0"),
    ([dict(problem="p", solution="s", answer=0.5)], "problem", "p", "s", "0.5"),
    ([dict(question="q", solution="so \\boxed{3}")], "problem", "q", "so \\boxed{3}", "3"),
    ([dict(question="q", answer=" 1,018 ")], "problem", "q", " 1,018 ", "1,018"),
    ([dict(question="q", answer=18)], "problem", "q", "18", "18"),
    ([dict(question="q", answer="It is 18")], "problem", "q", "It is 18", None),
    ([dict(prompt="p", answer=7)], "prompt", "p", "", "7"),
    ([dict(messages=[user("a"), assistant("b"), user("c")], answer="7")], "messages", "c", "b", "7")])
@pytest.mark.parametrize("array", [False, True])
def test_a_rows_form_is_told_by_its_fields(rows, form, problem, solution, answer, array, tmp_path):
    """In a JSONL file and in a JSON array; a null is an absent field."""
    found = load_problems(write(tmp_path / "d.json", *(dict(row, level=None, note=None) for row in rows), array=array))
    names = ("form", "problem", "solution", "answer")
    assert [found[0][name] for name in names] == [form, problem, solution, answer]
    assert [p["id"] for p in found] == list(range(len(rows)))


MALFORMED = [
    (dict(instruction="i", input="x", output="o"), "rename 'instruction' to 'prompt' and 'output' to 'completion'"),
    (dict(instruction="i", context="", response="r"), "'response' to 'completion'"),
    (dict(conversations=[{"from": "human", "value": "a"}]), "'conversations' to 'messages', in it 'from' to 'role'"),
    (dict(input="i", output="o"), "rename 'input' to 'prompt'"), (dict(prompt="p", response="r"), "rename 'response'"),
    (dict(question="q", response="r"), "rename 'question' to 'prompt'"), (dict(content="c"), "'content' to 'text'"),
    (dict(prompt="p", chosen="c", rejected="r"), "'chosen' to 'completion'"), (dict(a=1), "fields a: want"),
    (dict(prompt="p"), "want"), (dict(prompt="", completion="c"), "empty"),
    (dict(prompt=3, completion="c"), "'prompt'"),
    (dict(prompt="p", completion=["c"]), "'completion'"), (dict(text=[1]), "'text'"), (dict(messages=[]), "message"),
    (dict(messages="hello"), "must be a list"), (dict(messages=[user("a")]), "no message of the assistant's"),
    (dict(messages=[user("a"), dict(role="bot", content="b")]), "message 2"), (dict(messages=["a"]), "message 1"),
    (dict(messages=[user("a"), assistant(None)]), "message 2"),
    (dict(messages=[user("a"), assistant(["b"])]), "a text"),
    (dict(messages=[{"from": "gpt", "value": "a"}]), "want a role (system, user or assistant)"),
    (dict(messages=[user("a"), dict(assistant("b"), weight=0)]), "weight"),
    (dict(prompt=[user("a"), assistant("b")], completion=[assistant("c")]), "end of the prompt"),
    (dict(prompt=[user("a")], completion="c"), "completion must be a list"),
    (dict(prompt=[user("a")], completion=[user("c")]), "no message of the assistant's"),
    (dict(problem="p", answer=True), "'answer'"), (dict(problem="p"), "solution")]


@pytest.mark.parametrize("row, words", MALFORMED, ids=lambda value: json.dumps(value)[:50])
def test_another_shape_is_refused_in_one_line_that_says_what_to_do(row, words, learn, tmp_path):
    refused(learn([row]), "d.jsonl, line 1", words)
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


@pytest.mark.parametrize("first, other", [(PROMPTS, CHATS), (TEXTS, PROMPTS), (PROMPTS, TURNS)])
def test_a_file_has_one_form(first, other, learn):
    refused(learn(first[:2] + other[:1]), "line 3", "line 1", "one form")


def test_the_line_of_a_faulty_csv_is_the_one_named(tmp_path):
    (tmp_path / "d.csv").write_text("prompt,completion\na,b\n" + "x" * 200_000)
    with pytest.raises(ValueError, match="line 3: not CSV"):
        load_problems(tmp_path / "d.csv")
    (tmp_path / "d.csv").write_text('prompt,completion\n"a, b",c\n')
    assert load_problems(tmp_path / "d.csv")[0]["problem"] == "a, b"


# ---- Training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [PROMPTS, CHATS, TURNS, TEXTS], ids=["prompt", "messages", "turns", "text"])
def test_each_form_trains_and_shows_loss_perplexity_and_an_example(rows, learn, tmp_path):
    """Without answers there is no pass@1; losses are those of run.json, and perplexity is their exponential."""
    done = learn(rows)
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "o/run.json").read_text())
    before, after = (run["results"][f"val_loss_{when}"] for when in ("before", "after"))
    assert (run["n_train"], run["n_val"], run["results"]["pass1_after"]) == (11, 1, None)
    assert f"loss {before:.4f} → {after:.4f}, perplexity {math.exp(before):.4g} → {math.exp(after):.4g}" in done.stdout
    assert "11 training and 1 validation examples" in done.stdout and "1 steps of 4 examples" in done.stdout
    assert re.search(r"\nexample .+\n  before .*(\n.*)*  after  .*(\n.*)*  gold   .+\n", done.stdout)
    assert "pass@1" not in done.stdout and "problem" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("  python eval_pass1.py --adapter o --ask")


@pytest.mark.parametrize("rows", [PROMPTS, CHATS, TURNS], ids=["prompt", "messages", "turns"])
def test_answers_make_pass1_possible_in_training_and_evaluation(rows, learn, evaluate, chat_base, encoding, tmp_path):
    """Each is asked by its own prompt, the same in both commands; a prompt that is given is another."""
    done = learn(answered(rows))
    assert done.returncode == 0 and "pass@1 before: 1 problems" in done.stdout, done.stderr
    done = evaluate(answered(rows), "--out", "e")
    assert done.returncode == 0 and done.stdout.startswith("protocol own"), done.stderr
    problems = load_problems(tmp_path / "d.jsonl")
    chat, lines = chat_for(problems, chat_base, encoding), (tmp_path / "e/samples.jsonl").read_text().splitlines()
    asked = {line["id"]: line["prompt"] for line in map(json.loads, lines)}
    assert asked == {p["id"]: decode(encoding, encode_prompt(encoding, p, None, chat)) for p in problems}
    done = evaluate(answered(rows), "--prompt", "chat", "--out", "c")
    lines = (tmp_path / "c/samples.jsonl").read_text().splitlines()
    assert {line["id"]: line["prompt"] for line in map(json.loads, lines)} == {
        p["id"]: f"user: {p['problem']}<|endoftext|>assistant: " for p in problems}


def test_the_own_prompt_of_a_problem_form_is_trainings(encoding):
    """Whatever --prompt says, None asks problems in PROMPT's words and prompts in their own."""
    problem = dict(form="problem", problem="1 + 1?", solution="2", answer="2")
    for form in ("problem", "prompt"):
        problem = dict(problem, form=form)
        assert Protocol(None, "math", form).encode(encoding, problem, 7) == encode_prompt(encoding, problem, 7)
    own = Protocol(None, "math", "prompt")
    own.examples = [dict(problem="a", solution=" b", working=" b", answer="b")]
    assert own.encode(encoding, problem, None) == encoding.encode_ordinary("a b\n\n1 + 1?")


def test_a_text_is_not_evaluated_and_a_chat_takes_no_examples(evaluate):
    refused(evaluate([dict(text="t", answer="1")]), "a text asks nothing")
    refused(evaluate(answered(CHATS), "--few-shot", 1, "--few-shot-from", "d.jsonl"), "--prompt chat")
    refused(evaluate(CHATS), "row 0 (from 0) has no answer")


def test_an_answer_without_a_solution_is_evaluated_and_not_trained_on(learn, evaluate):
    rows = [dict(problem="1 + 1", answer=2), dict(problem="2 + 2", answer=4, solution="4")]
    assert evaluate(rows).returncode == 0
    done = learn([rows[0], *[rows[1]] * 9])
    assert done.returncode == 0 and "left out 1 of 9 training problems: no solution to learn" in done.stdout
    refused(learn(rows[:1], out="p"), "no problem is left")


@pytest.mark.parametrize("script", [train, eval_pass1], ids=["train", "eval_pass1"])
def test_messages_need_a_template(script, toy, command, tmp_path):
    """Neither command answers chats in other words: one line that names what is missing, nothing written."""
    done = command(script, "--data", write(tmp_path / "d.jsonl", *answered(CHATS)), cwd=tmp_path, base=toy.base)
    refused(done, str(toy.base), "chat_template.jinja", "tokenizer_config.json")
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


def test_a_template_that_refuses_a_test_prompt_is_found_before_anything_is_written(chat_base, learn, tmp_path):
    folder = shutil.copytree(chat_base, tmp_path / "base")
    (folder / "chat_template.jinja").write_text("{% if messages | length == 2 %}{{ raise_exception('odd') }}{% endif %}"
                                                + TEMPLATE)
    (tmp_path / "data").mkdir()
    write(tmp_path / "data/train.jsonl", *TURNS)
    write(tmp_path / "data/test.jsonl", dict(messages=[SYSTEM, user("1 + 1?")], answer=2))
    refused(learn(tmp_path / "data", base=folder), "odd")
    assert not (tmp_path / "o").exists()


# ---- Length ----------------------------------------------------------------------------------------------------------


def some(count, **how):
    """Examples of `count` prompts of 10 tokens each with 1, 2, ... tokens to learn, the end token last."""
    encoding, config = load_tokenizer(ROOT / "data/base"), load_config(ROOT / "data/base")
    problems = [dict(form="prompt", problem="#" * 10, solution="#" * n) for n in range(1, count)]
    return train.encode_all(problems, "training examples", encoding, config, **how)


def test_longer_examples_are_left_out_or_cut_and_counted(capsys):
    """--max-length leaves out; with --truncate they are cut at the end, and left out where the prompt alone is left."""
    whole = some(9)
    lengths = [len(ids) for ids, _ in whole]
    for limit in range(2, max(lengths) + 2):
        long = sum(length > limit for length in lengths)
        capsys.readouterr()
        assert some(9, max_length=limit) == [e for e in whole if len(e[0]) <= limit]
        words = f"of 8 training examples: longer than --max-length {limit} tokens"
        assert capsys.readouterr().out == (f"left out {long} {words}\n" if long else "")
        cut = [(ids[:limit], labels[:limit]) for ids, labels in whole]
        kept = [e for e in cut if set(e[1]) != {-100}]
        assert some(9, max_length=limit, truncate=True) == kept
        said = capsys.readouterr().out
        assert (f"cut {long} {words}\n" in said) == (long > 0)
        assert (f"left out {8 - len(kept)} of 8 training examples: no solution to learn\n" in said) == (len(kept) < 8)


def test_a_length_beyond_the_context_is_the_context(capsys):
    """Of 1024 tokens here: no flag trains beyond it, and without the flag it is the limit."""
    assert some(9, max_length=10**6) == some(9)
    problems = [dict(form="text", problem="", solution="#" * 3000)]
    encoding, config = load_tokenizer(ROOT / "data/base"), load_config(ROOT / "data/base")
    ((ids, labels),) = train.encode_all(problems, "training examples", encoding, config, truncate=True)
    assert len(ids) == len(labels) == 1024 and "the context of 1024" in capsys.readouterr().out


def test_the_flags_of_length_reach_the_examples(learn, tmp_path):
    for name, flags, n_train in (("a", [], 1), ("b", ["--truncate"], 2)):
        rows = [dict(prompt="a", completion="b"), dict(prompt="a", completion="# " * 50)]
        done = learn(rows, "--max-length", 8, *flags, out=tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / name / "run.json").read_text())["n_train"] == n_train
    refused(learn(rows, "--max-length", 1, out="c"), "--max-length 1: it must be 2 or more")

"""Strangers' files are read, or refused in one line that names the file, within 10 s. Each hostile kind has its test;
behind them a fuzzer spoils a few bytes or values of whole folders at a time.

python -m pytest tests/test_bad_input.py"""

import gc
import hashlib
import json
import os
import random
import resource
import shutil
import socket
import struct
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_hub import sentencepiece, train_tokenizer

import eval_pass1
import hf
import tokens
import train
from hf import copy_tokenizer, load_adapter, load_model, save_adapter, save_model, targeted
from lora_alpha import inject_lora, lora_layers
from problems import encode_examples, encode_prompt, load_problems
from tokens import load_chat, load_tokenizer
from tests.conformance import run as conformance

REAL = Path(__file__).parents[2] / "shared/real/tokenizers"
CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
TALK = [dict(role="user", content="1 + 1?"), dict(role="assistant", content="2.")]
ROWS = {
    "math.jsonl": [dict(problem=f"{n} + 1?", solution=f"so \\boxed{{{n + 1}}}", level="Level 1", type="a")
                   for n in range(4)],
    "gsm8k.jsonl": [dict(question=f"{n} + 1?", answer=f"<<{n}+1={n + 1}>> #### {n + 1}") for n in range(4)],
    "prompts.jsonl": [dict(prompt=f"{n} + 1 =", completion=f" {n + 1}", answer=n + 1) for n in range(4)],
    "talks.jsonl": [dict(messages=[dict(role="system", content="Be brief."), *TALK]) for n in range(4)],
    "texts.jsonl": [dict(text=f"{n} and one are {n + 1}.") for n in range(4)],
}
GPQA = ("Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\n"
        '"1 + 1, or\n2?",2,3,4,5\nMore?,yes,no,"""so""",maybe\n')


@pytest.fixture(scope="session")
def whole(toy, tmp_path_factory):
    """A folder with base/, adapter/, data files of each form, and tokenizers in tokens/ and pieces/: all is read."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(toy.base, folder / "base")
    config = dict(bos_token=None, eos_token=dict(content="<|endoftext|>"), chat_template=CHATML)
    (folder / "base/tokenizer_config.json").write_text(json.dumps(config))
    (folder / "base/special_tokens_map.json").write_text(json.dumps(dict(eos_token="<|endoftext|>")))
    model = inject_lora(load_model(folder / "base"), 2, 4.0, targets=["q_proj", "v_proj"])
    save_adapter(model, folder / "adapter", base=str(folder / "base"))
    path = folder / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(
        rank_pattern={"q_proj": 2}, alpha_pattern={"layers.0.*": 4.0}, lora_dropout=0.1, use_rslora=False,
        layers_to_transform=None, layers_pattern=None, exclude_modules=None)))
    for name, rows in ROWS.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "array.json").write_text(json.dumps(ROWS["math.jsonl"], indent=1))
    (folder / "gpqa.csv").write_text(GPQA)
    for name, make in dict(tokens=train_tokenizer, pieces=sentencepiece).items():
        (folder / name).mkdir()
        make(folder / name)
        (folder / name / "tokenizer_config.json").write_text(json.dumps(config))
    read(folder)
    return folder


def read(folder, *names, chats=True):
    """Reads what of a folder the names call for, all of it without names, as the commands do."""
    encoding = chat = None
    for name in names or sorted(path.name for path in folder.iterdir()):
        path = folder / name
        if name == "base":
            load_model(path)
        if name in ("base", "tokens", "pieces"):
            encoding = load_tokenizer(path)
            encoding.encode_ordinary("A text: 1 + 1 = 2,\n\n  \t<|endoftext|> é中🙂")
            chat = load_chat(path, encoding)
            if chat and chats:
                chat(TALK[:1])
                chat.examples(TALK)
        elif name == "adapter":
            load_adapter(load_model(folder / "base"), path)
        elif path.suffix:
            encoding = encoding or load_tokenizer(folder / "base")
            for problem in load_problems(path):
                if problem["form"] != "messages" or chats:
                    encode_prompt(encoding, problem, 0, chat)
                    encode_examples(encoding, problem, 0, 0, chat)


def refused(call, *words, seconds=10, megabytes=1000):
    """The call is a ValueError or OSError of one line with these words, in time and memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises((ValueError, OSError)) as caught:
        call()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
    assert time.monotonic() - start < seconds and grown < megabytes * 1e6, (time.monotonic() - start, grown)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 2000 and all(str(word) in text for word in words), text


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def copy(whole, tmp_path, monkeypatch):
    """A copy of the whole folder; and less patience than users have, so that what takes too long takes a second."""
    monkeypatch.setattr(hf, "PATIENCE", 0.5)
    monkeypatch.setattr(tokens, "PATIENCE", 1)
    return shutil.copytree(whole, tmp_path / "copy")


# ---- What is no file -------------------------------------------------------------------------------------------------

FILES = ["base/config.json", "base/generation_config.json", "base/model.safetensors", "base/spec.json",
         "base/base.tiktoken", "base/tokenizer_config.json", "base/special_tokens_map.json",
         "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "tokens/tokenizer.json",
         "math.jsonl", "array.json", "gpqa.csv"]


def no_file(path, kind):
    """Puts something else in the file's place."""
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))  # at most a hundred characters
    elif kind == "nowhere":
        path.symlink_to("absent")


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "loop", "socket", "nowhere"])
@pytest.mark.parametrize("file", FILES)
def test_what_is_no_file_is_refused_at_once(file, kind, copy, monkeypatch):
    """Or is as if it were not there, where it may be missing; no pipe is waited for and no device read to its end."""
    monkeypatch.chdir(copy)
    no_file(copy / file, kind)
    start = time.monotonic()
    names = [Path(file).parts[0]]
    if Path(file).name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        read(copy, *names)
    else:
        refused(lambda: read(copy, *names), copy / names[0], megabytes=50)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("name", ["special_tokens_map.json", "chat_template.jinja", "merges.txt"])
def test_a_link_out_of_the_folder_is_not_copied(name, copy, tmp_path):
    """A stranger's link to a file of the user's goes into no merged folder; one into the hub's cache is a file."""
    (tmp_path / "secret").write_text("{}")
    (copy / "base" / name).unlink(missing_ok=True)
    (copy / "base" / name).symlink_to("../../secret")
    refused(lambda: save_model(load_model(copy / "base"), tmp_path / "merged", copy / "base"), name, "link")
    assert not (tmp_path / "merged" / name).exists()
    (copy / "base" / name).unlink()
    snapshot = tmp_path / "models--a--b/snapshots/0123"
    snapshot.mkdir(parents=True)
    shutil.move(tmp_path / "secret", snapshot.parents[1] / "blobs/4567" if (snapshot.parents[1] / "blobs").mkdir()
                else snapshot.parents[1] / "blobs/4567")
    (snapshot / name).symlink_to("../../blobs/4567")
    (tmp_path / "link").symlink_to(snapshot)
    (tmp_path / "merged").mkdir(exist_ok=True)
    copy_tokenizer(tmp_path / "link", tmp_path / "merged")
    assert (tmp_path / "merged" / name).read_text() == "{}" and not (tmp_path / "merged" / name).is_symlink()


# ---- Tensors ---------------------------------------------------------------------------------------------------------


def sparse(path, name, size):
    """Adds a tensor of zeros that takes no room on the disk."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    end = len(raw) - 8 - length
    header[name] = dict(dtype="F32", shape=[size // 4], data_offsets=[end, end + size])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    os.truncate(path, 8 + len(text) + end + size)


@pytest.mark.parametrize("name", ["stranger.weight", "model.layers.9.self_attn.rotary_emb.inv_freq"])
@pytest.mark.parametrize("file", ["base/model.safetensors", "adapter/adapter_model.safetensors"])
def test_a_tensor_is_not_read_before_its_name_is_checked(file, name, copy):
    """Three gigabytes of zeros under a name of no layer are no memory; the old inv_freq is passed over unread."""
    sparse(copy / file, name, 3 * 2**30)
    load = {"base": lambda: load_model(copy / "base", torch.bfloat16), "adapter": lambda: load_adapter(
        load_model(copy / "base"), copy / "adapter")}[Path(file).parts[0]]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if name.startswith("stranger"):
        refused(load, file, name, seconds=2, megabytes=50)
    else:
        load()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50e3


def test_a_merge_that_overflows_is_refused_by_the_tensors_name(copy, tmp_path):
    """float16 ends at 65,504: nothing is written."""
    model = load_adapter(load_model(copy / "base", torch.float16), copy / "adapter")
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_A.fill_(300.0)
            layer.lora_B.fill_(300.0)
    refused(lambda: train.save_merged(model, tmp_path / "merged", copy / "base"), "q_proj.weight", "not finite")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("alpha", [1e299, 1e39, -1e308, 10**400, float("nan"), float("inf"), True, "8", None])
def test_an_alpha_that_no_float32_holds_is_refused(alpha, copy):
    change(copy / "adapter/adapter_config.json", lora_alpha=alpha, alpha_pattern={})
    refused(lambda: read(copy, "adapter"), copy / "adapter", "lora_alpha")


# ---- Regular expressions ---------------------------------------------------------------------------------------------

ENDLESS = r"(?:.|..|...)+[A-Z]"


@pytest.mark.parametrize("pattern", [ENDLESS, r"(.|..|.a|a.)*(.|..)*(.|..)*!", "(" * 500, "(", "[a", "a" * 10**6,
                                     "(?:" * 60 + "a*" + ")*" * 60 + "!", "a{99999999999}", "\\", "(?P<index>a)", "*"])
@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "layers_pattern", "rank_pattern",
                                 "alpha_pattern"])
def test_a_pattern_of_an_adapter_is_stopped_or_refused(key, pattern, copy):
    """A regular expression that backtracks without end, one that is none and one of a million characters."""
    value = {pattern: 2} if key.endswith("k_pattern") or key.startswith("alpha") else pattern
    value = [pattern] if key == "layers_pattern" else value
    more = dict(layers_to_transform=[0, 1]) if key == "layers_pattern" else {}
    change(copy / "adapter/adapter_config.json", **{key: value}, **more)
    refused_or_read(lambda: read(copy, "adapter"), copy)


def refused_or_read(call, folder):
    start = time.monotonic()
    try:
        call()
    except (ValueError, OSError) as error:
        assert "\n" not in str(error) and str(folder) in str(error) and len(str(error)) < 2000, error
    assert time.monotonic() - start < 10


def test_that_pattern_is_endless(monkeypatch):
    """So that the test above shows something."""
    monkeypatch.setattr(hf, "PATIENCE", 0.5)
    refused(lambda: targeted(dict(target_modules=ENDLESS), "model.layers.0.self_attn.q_proj"), "pattern", "timed out")


def test_many_patterns_are_refused_and_a_pattern_a_layer_is_read(copy, monkeypatch):
    """100,000 keys that match nothing are stopped; a thousand, more than a large model has layers, are no matter."""
    monkeypatch.setattr(hf, "PATIENCE", 4)
    keys = {f"model.layers.{n}.self_attn.q_proj": 2 for n in range(1000)}
    change(copy / "adapter/adapter_config.json", rank_pattern=keys)
    read(copy, "adapter")
    monkeypatch.setattr(hf, "PATIENCE", 0.5)
    change(copy / "adapter/adapter_config.json", rank_pattern={f"{'x' * 40}.{n}": 2 for n in range(100_000)})
    refused(lambda: read(copy, "adapter"), copy / "adapter", "too long")


def test_the_conformance_runner_stops_a_pattern(copy, capsys):
    change(copy / "adapter/adapter_config.json", target_modules=ENDLESS, rank_pattern={}, alpha_pattern={})
    (copy / "logits.json").write_text(json.dumps(dict(idx=[[1, 2]], logits=[[[0.0] * 512] * 2])))
    start = time.monotonic()
    flags = ["--adapter", copy / "adapter", "--base", copy / "base", "--logits", copy / "logits.json"]
    assert conformance.main([*map(str, flags)]) == 1 and time.monotonic() - start < 10
    assert "timed out" in capsys.readouterr().out


# ---- Tokenizers ------------------------------------------------------------------------------------------------------


def pattern_of(folder, kind, pattern):
    """Puts a pattern into the tokenizer of a folder."""
    if kind == "base":
        change(folder / "base/spec.json", pat_str=pattern)
    else:
        raw = json.loads((folder / "tokens/tokenizer.json").read_text())
        split = dict(type="Split", pattern=dict(Regex=pattern), behavior="Isolated", invert=False)
        byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
        raw["pre_tokenizer"] = dict(type="Sequence", pretokenizers=[split, byte_level])
        (folder / "tokens/tokenizer.json").write_text(json.dumps(raw))


@pytest.mark.parametrize("pattern", ["", "a*", "(?=a)", "(", "(?:x+x+)+y(?!z)", r"(?:a+a+)+y(?!z)|.", "(a|a)*(?!a)b",
                                     r"(?:(?:[^\x00]{0,9}){0,6}(?!a)\x00)|.", "(?:a?){60}a{60}(?!b)", "(" * 300])
@pytest.mark.parametrize("kind", ["base", "tokens"])
def test_a_tokenizers_pattern_is_refused_or_harmless(kind, pattern, copy, capfd):
    """One that is empty, matches nothing, backtracks: no panic, no word on stderr, no hang, on long texts either."""
    pattern_of(copy, kind, pattern)
    (copy / "math.jsonl").write_text(json.dumps(dict(problem="a" * 3000 + " x" * 3000, solution="x" * 3000)) + "\n")
    refused_or_read(lambda: read(copy, kind, "math.jsonl"), copy)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["base", "tokens"])
@pytest.mark.parametrize("text", [" " * 10**6, "\n" * 10**6 + "x", "a" * 10**6, "\t \n" * 10**5],
                         ids=lambda text: repr(text)[:9])
def test_a_long_run_in_a_text_is_read_or_refused_by_its_line(kind, text, copy, capfd):
    (copy / "texts.jsonl").write_text(json.dumps(dict(text="short")) + "\n" + json.dumps(dict(text=text)) + "\n")
    try:
        read(copy, kind, "texts.jsonl")
    except ValueError as error:
        assert str(error).startswith(f"{copy / 'texts.jsonl'}, line 2: ") and "\n" not in str(error)
    assert capfd.readouterr() == ("", "")


def test_a_closed_stderr_does_not_matter(copy):
    """Descriptor 2 is redirected while a library is called, and is closed after it if it was so before."""
    saved = os.dup(2)
    os.close(2)
    try:
        read(copy, "base")
        with pytest.raises(OSError):
            os.fstat(2)
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@pytest.mark.parametrize("special", [{"": 511}, {"<|endoftext|>": 2**40}, {"<|endoftext|>": -1}, {"a": "b"}, [], "x",
                                     {"<|endoftext|>": 5}, {"<|endoftext|>": True}, {"\ud800": 511}], ids=str)
def test_special_tokens_of_no_use_are_refused(special, copy):
    change(copy / "base/spec.json", special_tokens=special)
    refused(lambda: read(copy, "base"), copy / "base")


# ---- Chat templates --------------------------------------------------------------------------------------------------

HOSTILE = {
    "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops without a call": "{% set r = range(9999)|list %}" + "{% for i in r %}" * 5 + "{% endfor %}" * 5,
    "power": "{{ 9**(9**9) }}", "text": "{{ 'a'*10**10 }}", "list": "{{ [1]*10**10 }}",
    "center": "{{ 'a'|center(10**9) }}", "format": "{{ '%1000000000d' % 1 }}", "indent": "{{ 'a\nb'|indent(10**9) }}",
    "doubling": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "join": "{% set n = namespace(s=['ab']) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}"
            "{{ n.s|join }}",
    "replace": "{{ ('a'*10**6)|replace('a', 'a'*10**6) }}", "words": "{{ lipsum(n=10**9) }}",
    "json": "{{ messages|tojson(indent=10**9) }}", "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "filters": "{% for i in range(99999) %}{{ range(99999)|map('string')|sort|join|length }}{% endfor %}",
    "long": "{{ 'x'*(2**23) }}", "parentheses": "{{" + "(" * 9999 + "1" + ")" * 9999 + "}}",
    "minus": "{{ " + "-" * 99999 + "1 }}", "attribute": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "include": "{% include '/etc/passwd' %}", "cut": "{% for", "surrogate": "\ud800",
}


@pytest.mark.parametrize("case", [case if case in ("power", "doubling", "cut") else
                                  pytest.param(case, marks=pytest.mark.thorough) for case in HOSTILE])
def test_a_template_without_end_or_bounds_is_stopped(case, copy):
    """In time, memory and length of its text, with the folder's name; the next template is rendered."""
    change(copy / "base/tokenizer_config.json", chat_template=HOSTILE[case])
    if case in ("attribute", "surrogate", "minus", "words"):
        refused_or_read(lambda: read(copy, "base"), copy)
    else:
        refused(lambda: read(copy, "base"), copy / "base", megabytes=300)
    change(copy / "base/tokenizer_config.json", chat_template=CHATML)
    read(copy, "base")


def test_a_template_that_was_stopped_does_not_stop_the_next_rendering(copy):
    """What one conversation makes endless, another does not; and the process of a template ends with its chat."""
    change(copy / "base/tokenizer_config.json", chat_template="{{ messages[0].content }}{% if 'no end' in "
           "messages[0].content %}{{ 9**(9**(messages|length + 8)) }}{% endif %}")
    chats = [load_chat(copy / "base", load_tokenizer(copy / "base"))]
    good = chats[0]([dict(role="user", content="an end")])
    refused(lambda: chats[0]([dict(role="user", content="no end")]), "1 s or 1 GB")
    assert chats[0]([dict(role="user", content="an end")]) == good
    process = chats[0].process
    assert process.poll() is None
    chats.clear()
    gc.collect()
    assert process.poll() == 0


@pytest.mark.parametrize("template", [5, {"a": 1}, [], [1], [{"name": "default"}], [{"name": "default", "template": 5}],
                                      [{"name": ["default"], "template": "x"}], None, True, ""], ids=str)
def test_a_template_of_another_type_is_refused_or_none(template, copy):
    change(copy / "base/tokenizer_config.json", chat_template=template)
    refused_or_read(lambda: read(copy, "base"), copy / "base")


# ---- Data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, words", [
    ('{"problem": "\xff"}\n', ["not UTF-8"]), ('{"problem": "p", "solution": "s"}\n{"pro', ["line 2: ", "JSON"]),
    ("[" * 10**5, ["JSON"]), ('{"a":' * 10**5, ["line 1: ", "JSON"]), ("{}\n" * 10**5, ["line 1: "]),
    ('{"problem": "p", "solution": ' + "9" * 5000 + "}", ["line 1: ", "JSON"]), ("\0", ["line 1: "]),
    ("", ["no problem"]), ("[]", ["no problem"]), ("3\n", ["line 1: "]),
    ('{"problem": "p", "solution": ' + "[" * 900 + "]" * 900 + "}", ["line 1: "]),
    ('{"messages": [' + '{"a":' * 800 + "1" + "}" * 800 + "]}", ["line 1: "]),
    ('{"' + "k\\n" * 999 + '": 1}', ["line 1: fields"])], ids=lambda value: repr(value)[:30])
def test_rows_that_are_none_are_refused_by_their_line(text, words, tmp_path):
    (tmp_path / "p.jsonl").write_bytes(text.encode("latin-1"))
    refused(lambda: load_problems(tmp_path / "p.jsonl"), tmp_path / "p.jsonl", *words, megabytes=100)


@pytest.mark.parametrize("text", ["\ufeff" + json.dumps(ROWS["math.jsonl"][0]),
                                  json.dumps(ROWS["math.jsonl"][0]) + "\r\n",
                                  json.dumps(ROWS["math.jsonl"])[1:-1].replace("}, {", "}\r\n\r\n{"),
                                  '{"problem": "a", "problem": "0 + 1?", "solution": "so \\\\boxed{1}"}'])
def test_a_mark_of_byte_order_crlf_and_a_key_that_stands_twice_are_read(text, tmp_path):
    """Of a key that stands twice the last counts, as to Python's json, and so to transformers, PEFT and datasets."""
    (tmp_path / "p.jsonl").write_bytes(text.encode())
    first = load_problems(tmp_path / "p.jsonl")[0]
    assert (first["problem"], first["answer"]) == ("0 + 1?", "1")


@pytest.mark.parametrize("name, row", [
    ("c.csv", ",".join(f"c{n}" for n in range(200_000)) + "\n"), ("c.csv", "a" * 10**6 + "\n" + "b" * 10**6 + "\n"),
    ("p.jsonl", json.dumps(dict(question="?", answer="<" * 10**6 + "#### 1")) + "\n"),
    ("p.jsonl", json.dumps(dict(problem="?", solution="\\boxed{" * 10**5)) + "\n"),
    ("p.jsonl", json.dumps(dict(problem="?", solution="{" * 10**6 + "\\boxed{1}")) + "\n"),
    ("p.jsonl", json.dumps(dict(text=" \n" * 10**5)) + "\n"),
    ("p.jsonl", json.dumps(dict(question="?", answer="1," * 10**6)))],
    ids=lambda value: value[:30])
def test_a_row_that_is_large_is_read_in_time(name, row, copy):
    """Nothing takes the square of its size."""
    (copy / name).write_text(row)
    refused_or_read(lambda: read(copy, name), copy / name)


@pytest.mark.parametrize("form", ["text", "messages"])
@pytest.mark.parametrize("kind", ["base", "tokens"])
@pytest.mark.thorough
def test_a_line_of_100_megabytes_is_refused_by_its_number(kind, form, copy):
    """In a few times its memory."""
    letters = "word " * 20_000_000
    row = dict(text=letters) if form == "text" else dict(messages=[dict(role="user", content=letters), *TALK])
    (copy / "p.jsonl").write_text(json.dumps({**ROWS["texts.jsonl" if form == "text" else "talks.jsonl"][0]}) + "\n"
                                  + json.dumps(row) + "\n")
    del letters, row
    refused(lambda: read(copy, kind, "p.jsonl"), f"{copy / 'p.jsonl'}, line 2: ", seconds=20)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5)
FIELDS = ["problem", "solution", "answer", "question", "prompt", "completion", "messages", "text", "level", "type",
          "role", "content", "Question", "Correct Answer", "Explanation", "conversations", "weight"]


def test_any_row_is_read_or_refused_by_its_line(whole, fuzz, tmp_path):
    """Any JSON under the names of fields, also within messages."""
    rows = st.dictionaries(st.sampled_from(FIELDS), JSON | st.lists(st.dictionaries(st.sampled_from(
        ["role", "content", "weight"]), JSON | st.sampled_from(["user", "assistant"]))), max_size=4)
    encoding = load_tokenizer(whole / "base")
    chat = load_chat(whole / "base", encoding)

    @given(st.lists(rows, min_size=1, max_size=2))
    @fuzz(400)
    def holds(rows):
        path = tmp_path / "p.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        try:
            for problem in load_problems(path):
                encode_prompt(encoding, problem, 0, chat)
                encode_examples(encoding, problem, 0, 0, chat)
        except ValueError as error:
            assert str(error).startswith(f"{path}, line ") and "\n" not in str(error), error

    holds()


# ---- The fuzzer ------------------------------------------------------------------------------------------------------

NASTY = [None, True, -1, 0, 1.5, 2**31, 2**63, 10**30, -1e308, 1e39, float("nan"), float("inf"), "", "a", "\ud800",
         "\0", "../" * 9, "/dev/zero", "x" * 10**5, "{{ 1 }}", "(a+)+$", [], {}, [[]], [1, "a", None], {"a": {"b": 1}},
         [0] * 10**4, "llama", "LORA", "all-linear", "<|endoftext|>", "<s>"]


def spoil_json(rng, text):
    """JSON with one value another, one key gone, another name or twice; or a line that is so."""
    lines = text.split("\n")
    spot = rng.randrange(len(lines)) if len(lines) > 2 and lines[0][-1:] == "}" else None
    raw = json.loads(text if spot is None else lines[spot] or "{}")
    places, queue = [], [raw]
    while queue:
        inside = queue.pop()
        for key in inside if isinstance(inside, dict) else range(len(inside)):
            places.append((inside, key))
            if isinstance(inside[key], dict | list):
                queue.append(inside[key])
    inside, key = rng.choice(places) if places else ({}, "a")
    how = rng.choice(["value", "value", "value", "gone", "renamed", "twice", "swapped"])
    if how == "gone" and key in inside if isinstance(inside, dict) else how == "gone":
        del inside[key]
    elif how == "renamed" and isinstance(inside, dict):
        inside[rng.choice(["x", "", str(key).upper(), str(key) + "_"])] = inside.pop(key, 1)
    elif how == "swapped":
        other, name = rng.choice(places) if places else ({"a": 1}, "a")
        inside[key] = json.loads(json.dumps(other[name])) if name in other or isinstance(other, list) else 1
    else:
        inside[key] = rng.choice(NASTY)
    done = json.dumps(raw)
    if how == "twice":
        again = f"{json.dumps(str(key))}: {json.dumps(rng.choice(NASTY))}}}"
        done = done[:-1] + ("," if len(done) > 2 else "") + again if done[-1] == "}" else done
    return done if spot is None else "\n".join([*lines[:spot], done, *lines[spot + 1 :]])


def spoil_bytes(rng, raw):
    """Bytes flipped, cut, doubled, put in or out."""
    at, raw = rng.randrange(len(raw) + 1), bytearray(raw)
    how = rng.choice(["flip", "flip", "flips", "cut", "less", "double", "in", "crlf", "bom", "utf-16", "zeros",
                      "empty"])
    if how.startswith("flip") and raw:
        for _ in range(1 if how == "flip" else 20):
            raw[rng.randrange(min(len(raw), rng.choice([100, 10**9])))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        raw = raw[:at]
    elif how == "less":
        del raw[at : at + rng.randrange(1, 20)]
    elif how == "double":
        raw[at:at] = raw[at : at + rng.choice([1, 10, 1000])] * rng.choice([1, 2, 100])
    elif how == "in":
        raw[at:at] = rng.choice([b"\0", b"\xff", b"\xed\xa0\x80", b"\"", b"{", b"[" * 10**5, b"\n", b"\r", b",",
                                  b"\\", b"9" * 5000])
    elif how == "crlf":
        raw = raw.replace(b"\n", b"\r\n")
    elif how == "bom":
        raw = b"\xef\xbb\xbf" + raw
    elif how == "utf-16":
        raw = raw.decode("latin-1").encode("utf-16")
    elif how == "zeros":
        raw = bytes(len(raw))
    return b"" if how == "empty" else bytes(raw)


def spoil_tensors(rng, path):
    """One tensor with another name, shape, type or value; or the header's JSON spoilt, with its length as it is."""
    if rng.random() < 0.5:
        raw = path.read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        text = spoil_json(rng, raw[8 : 8 + size].decode()).encode("utf-8", "surrogatepass")
        length = rng.choice([len(text), len(text), size, 2**40])
        return path.write_bytes(struct.pack("<Q", length) + text + raw[8 + size :])
    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    tensor = tensors.pop(name).clone()
    how = rng.choice(["gone", "renamed", "value", "cast", "flat", "cut", "more"])
    if how == "value":
        tensor.view(-1)[rng.randrange(tensor.numel())] = rng.choice([float("nan"), float("inf"), -float("inf"), 3e38])
    elif how == "cast":
        tensor = tensor.to(rng.choice([torch.int8, torch.bool, torch.float64, torch.float8_e4m3fn, torch.float16]))
    elif how == "flat":
        tensor = tensor.reshape(-1)
    elif how == "cut":
        tensor = tensor[: rng.randrange(len(tensor))]
    names = dict(gone=[], renamed=[name + "x"], more=[name, "more"]).get(how, [name])
    save_file(tensors | {name: tensor.clone() for name in names}, path)


def spoil(rng, path):
    """The file with some damage; or something else in its place."""
    if rng.random() < 0.05:
        return no_file(path, rng.choice(["folder", "pipe", "device", "loop", "nowhere", "gone"]))
    if path.suffix == ".safetensors" and rng.random() < 0.7:
        return spoil_tensors(rng, path)
    if path.suffix in (".json", ".jsonl") and rng.random() < 0.7:
        return path.write_text(spoil_json(rng, path.read_text()))
    path.write_bytes(spoil_bytes(rng, path.read_bytes()))


def contents(folder):
    """What lies in a folder: names, kinds and bytes."""
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).digest() if path.is_file() else None
            for path in folder.rglob("*") if not path.is_char_device()}


def spoilt(whole, seed, where):
    """A copy of what belongs together, one file or two of it spoilt by this seed: the folder, the file, the parts."""
    rng, folder = random.Random(seed), where / "f"
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.suffix != ".md")
    file = rng.choice(names)
    parts = [file.parts[0]] if file.parts[0] in ("base", "tokens", "pieces") else ["base", file.parts[0]]
    for part in parts:
        if (whole / part).is_dir():
            shutil.copytree(whole / part, folder / part)
        else:
            shutil.copy(whole / part, folder / part)
    spoil(rng, folder / file)
    beside = [name for name in names if name.parts[0] == file.parts[0] and name != file]
    if beside and rng.random() < 0.2:
        spoil(rng, folder / rng.choice(beside))
    return SimpleNamespace(folder=folder, file=file, parts=parts)


def fuzzed(whole, seeds, tmp_path, capfd):
    """How many of these cases were read, and how many refused."""
    read_, refused_ = 0, 0
    for seed in seeds:
        case = spoilt(whole, seed, tmp_path)
        before, start = contents(case.folder), time.monotonic()
        try:
            read(case.folder, *case.parts, chats="token" in case.file.name or case.file.name == "talks.jsonl")
            read_ += 1
        except (ValueError, OSError) as error:
            refused_ += 1
            named = isinstance(error, OSError) and error.filename  # as the commands print it
            text = f"{error.filename}: {error.strerror}" if named else str(error)
            assert "\n" not in text and str(case.folder) in text and len(text) < 2000, (seed, case.file, text)
        except BaseException:
            print("seed", seed, case.file)
            raise
        assert time.monotonic() - start < 10, (seed, case.file)
        assert contents(case.folder) == before, (seed, case.file)
        output = capfd.readouterr()
        assert output == ("", ""), (seed, case.file, output)
        shutil.rmtree(case.folder)
    return read_, refused_


def test_spoilt_files_are_read_or_refused_in_one_line(whole, tmp_path, capfd):
    good, bad = fuzzed(whole, range(60), tmp_path, capfd)
    assert good + bad == 60 and good > 5 and bad > 25, (good, bad)


@pytest.mark.thorough
@pytest.mark.parametrize("part", range(10))
def test_thousands_of_spoilt_files_are_read_or_refused_in_one_line(whole, part, tmp_path, capfd):
    """5,000 in all."""
    good, bad = fuzzed(whole, range(1000 + 500 * part, 1500 + 500 * part), tmp_path, capfd)
    assert good + bad == 500 and good > 50 and bad > 250, (good, bad)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not here")
@pytest.mark.thorough
@pytest.mark.parametrize("name", ["smollm2", "qwen3"])
def test_a_spoilt_tokenizer_of_a_real_model_is_read_or_refused(name, tmp_path, capfd):
    for seed in range(60 if name == "smollm2" else 15):
        rng = random.Random(seed)
        folder = shutil.copytree(REAL / name, tmp_path / str(seed))
        spoil(rng, folder / rng.choice(["tokenizer.json", "tokenizer_config.json"]))
        shutil.move(folder, tmp_path / "tokens")
        refused_or_read(lambda: read(tmp_path, "tokens"), tmp_path)
        assert capfd.readouterr() == ("", "")
        shutil.rmtree(tmp_path / "tokens")


def commanded(whole, seeds, tmp_path, command):
    for seed in seeds:
        case = spoilt(whole, seed, tmp_path)
        file, rng = case.file.parts[0], random.Random(seed)
        data = file if Path(file).suffix else shutil.copy(whole / rng.choice([*ROWS, "gpqa.csv"]), case.folder)
        if not (case.folder / "base").is_dir():
            shutil.copytree(whole / "base", case.folder / "base")
        base = file if file in ("tokens", "pieces") else "base"
        before = contents(tmp_path)
        if rng.random() < 0.5 and file != "adapter":
            flags = [train, "--steps", 1, "--batch-size", 2, "--eval-problems", 0, "--rank", 2, "--out", tmp_path / "o"]
        else:
            adapter = ["--adapter", "adapter"] if file == "adapter" else []
            flags = [eval_pass1, "--max-new-tokens", 1, "--kind", "math", "--few-shot", 0, *adapter]
        done = command(flags[0], "--base", base, "--data", data, *flags[1:], cwd=case.folder)
        shutil.rmtree(tmp_path / "o", ignore_errors=True)
        assert done.returncode in (0, 2) and "Traceback" not in done.stdout + done.stderr, (seed, case.file, done)
        assert done.stderr.count("\n") == (1 if done.returncode else 0), (seed, case.file, done.stderr)
        assert contents(tmp_path) == before, (seed, case.file)
        shutil.rmtree(case.folder)


def test_a_command_with_spoilt_files_ends_with_0_or_2_and_a_line(whole, tmp_path, command):
    commanded(whole, range(8), tmp_path, command)


@pytest.mark.thorough
def test_a_hundred_commands_with_spoilt_files_end_with_0_or_2_and_a_line(whole, tmp_path, command):
    commanded(whole, range(100, 200), tmp_path, command)

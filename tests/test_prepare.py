"""What data/*/prepare.py writes and refuses: python -m pytest tests/test_prepare.py"""

import csv
import io
import json
import os
import re
import runpy
import shutil
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from collections import Counter
from fractions import Fraction
from hashlib import sha256
from pathlib import Path

import pytest

from data.choice import prepare as choice
from data.gpqa import prepare as gpqa
from data.gsm8k import prepare as gsm8k
from data.math import prepare as maths
from problems import load_problems

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "real"
OLD = {"train.jsonl": b"old train\n", "test.jsonl": b"old test\n", "test.csv": b"old csv\n"}
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="shared/real is not here")


@pytest.fixture
def to(tmp_path):
    """A folder that holds files of an earlier run."""
    folder = tmp_path / "to"
    folder.mkdir()
    for name, content in OLD.items():
        (folder / name).write_bytes(content)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(result, folder, *words):
    """One line on stderr that holds the words, exit status 2, and the folder as it was."""
    status, _, err = result
    assert status == 2 and err.count("\n") == 1 and err.endswith("\n") and "Traceback" not in err, err
    assert all(str(word) in err for word in words), err
    assert contents(folder) == OLD


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- choice ----------------------------------------------------------------------------------------------------------


def choice_rows(name):
    with open(ROOT / "data/choice" / name, newline="", encoding="ascii") as file:
        return list(csv.DictReader(file))


def exact(expression):
    """The value of +, -, *, / and brackets, in fractions, by Python's own rules of order."""
    return eval(re.sub(r"\d+", r"Fraction(\g<0>)", expression), {"Fraction": Fraction})


def true_answer(question):
    """A choice question's answer, worked out from its words."""
    numbers = [Fraction(number) for number in re.findall(r"\d+", question)]
    if question.startswith("A coat"):
        return numbers[0] * (1 - numbers[1] / 100)
    if question.startswith("After a rise"):
        return numbers[1] / (1 + numbers[0] / 100)
    if "% of" in question:
        return numbers[0] * numbers[1] / 100
    return exact(re.sub(r"^(What is|Evaluate:|Worked out, what is)\s|\?$", "", question))


def test_choice_is_written_again_byte_for_byte(tmp_path):
    """A copy of the script writes the committed bytes, whatever the hash seed; lines end in LF."""
    shutil.copy(ROOT / "data/choice/prepare.py", tmp_path)
    done = subprocess.run([sys.executable, tmp_path / "prepare.py"], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONHASHSEED": "7"})
    assert done.returncode == 0 and done.stdout.endswith("python eval_pass1.py --data data/choice\n"), done.stderr
    made = contents(tmp_path)
    assert made.keys() == {"prepare.py", "test.csv", "train.csv"}
    for name in ("test.csv", "train.csv"):
        assert made[name] == (ROOT / "data/choice" / name).read_bytes() and b"\r" not in made[name]


def test_every_choice_answer_is_right():
    """Each answer is what its question asks for, worked out here by another way."""
    for row in choice_rows("test.csv") + choice_rows("train.csv"):
        assert Fraction(row["Correct Answer"]) == true_answer(row["Question"]), row


def test_choice_options_are_four_values_and_say_little_alone():
    """Four different exact values; the answer is about as often the least as the second, third or greatest of them."""
    for name in ("test.csv", "train.csv"):
        ranks = Counter()
        for row in choice_rows(name):
            values = [Fraction(row[column]) for column in choice.OPTIONS]
            assert len(set(values)) == 4, row
            ranks[sorted(values).index(values[0])] += 1
        assert len(ranks) == 4 and all(30 <= count <= 70 for count in ranks.values()), ranks  # 50 ± 20 of 200


def test_choice_distractors_are_the_usual_mistakes():
    """Carry forgotten, order ignored, sign lost, top and bottom added, what is left for the part: each often enough."""
    seen = Counter()
    for row in choice_rows("test.csv") + choice_rows("train.csv"):
        answer, wrong = Fraction(row["Correct Answer"]), {Fraction(row[column]) for column in choice.OPTIONS[1:]}
        numbers = list(map(int, re.findall(r"\d+", row["Question"])))
        seen["off by one"] += bool({answer - 1, answer + 1} & wrong)
        if row["Subdomain"] == "Addition with carry":
            assert sum(number % 10 for number in numbers) >= 10
            seen["carry"] += answer - 10 in wrong
        elif row["Subdomain"] == "Order of operations" and "+" in row["Question"] and "(" not in row["Question"]:
            seen["order"] += (numbers[0] + numbers[1]) * numbers[2] in wrong
        elif row["Subdomain"] == "Negative numbers":
            seen["sign"] += -answer in wrong
        elif row["Subdomain"] == "Fractions" and len(numbers) == 4:
            seen["top and bottom"] += Fraction(numbers[0] + numbers[2], numbers[1] + numbers[3]) in wrong
        elif row["Question"].startswith("What is"):
            seen["other part"] += numbers[1] - answer in wrong
        elif row["Question"].startswith("After"):
            seen["wrong base"] += Fraction(numbers[1] * (100 - numbers[0]), 100) in wrong
    assert len(seen) == 7 and min(seen.values()) >= 5, seen


def test_no_choice_question_stands_in_both_files():
    """Nor in one file twice, nor its numbers in another order with the same answer; 40 of each kind in each file."""
    test, train = choice_rows("test.csv"), choice_rows("train.csv")
    assert len({row["Question"] for row in test + train}) == 400
    sums = {(row["Subdomain"], row["Correct Answer"], *sorted(re.findall(r"\d+", row["Question"])))
            for row in test + train}
    assert len(sums) == 400 and len({row["Record ID"] for row in test + train}) == 400
    for rows in (test, train):
        assert Counter(row["Subdomain"] for row in rows) == dict.fromkeys(choice.KINDS, 40)


def test_choice_exercises_quoting_and_keeps_to_gpqas_columns():
    """Short ASCII questions, some with commas or newlines, in exactly GPQA's columns, with a line or two of working."""
    for name in ("test.csv", "train.csv"):
        rows = choice_rows(name)
        assert ",".join(rows[0]) == ("Record ID,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,"
                                     "Incorrect Answer 3,Explanation,Subdomain")
        assert all(len(row["Question"]) <= 120 and "".join(row.values()).isascii() for row in rows)
        assert all(row["Explanation"] and row["Explanation"].count("\n") <= 1 for row in rows)
        assert sum("," in row["Question"] for row in rows) >= 5 and sum("\n" in row["Question"] for row in rows) >= 5


# ---- gsm8k -----------------------------------------------------------------------------------------------------------

GSM8K = {"train": jsonl([{"question": f"{n} + 1?", "answer": f"One more.\n#### {n + 1}"} for n in range(3)]),
         "test": jsonl([{"question": "2 + 2?", "answer": "#### 4"}])}


@pytest.fixture
def made_up_gsm8k(monkeypatch, tmp_path):
    """Made-up rows in place of the published ones, and a folder that holds them."""
    monkeypatch.setattr(gsm8k, "SHA256", {name: sha256(content).hexdigest() for name, content in GSM8K.items()})
    monkeypatch.setattr(gsm8k, "COUNTS", {"train": 3, "test": 1})
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    for name, content in GSM8K.items():
        (folder / f"{name}.jsonl").write_bytes(content)
    return folder


@pytest.mark.parametrize("names", [("train.jsonl", "test.jsonl"), ("gsm8k_train.jsonl", "gsm8k_test.jsonl")])
def test_gsm8k_from_a_folder_is_copied_byte_for_byte(made_up_gsm8k, tmp_path, run, names):
    """Under the published names or with gsm8k_ before them, into a folder that is made."""
    for old, new in zip(("train.jsonl", "test.jsonl"), names):
        os.rename(made_up_gsm8k / old, made_up_gsm8k / new)
    status, out, err = run(gsm8k, "--from", made_up_gsm8k, "--to", tmp_path / "new" / "folder")
    assert (status, err) == (0, "")
    assert contents(tmp_path / "new" / "folder") == {f"{name}.jsonl": content for name, content in GSM8K.items()}
    assert "train.jsonl 3 problems" in out and out.endswith(f"python eval_pass1.py --data {tmp_path}/new/folder\n")


def test_gsm8k_knows_files_of_any_name_by_their_sha256(made_up_gsm8k, to, run):
    """Given in the wrong order, under other names, by one --from or two; one alone leaves the other as it was."""
    a, b = made_up_gsm8k / "a", made_up_gsm8k / "b"
    os.rename(made_up_gsm8k / "test.jsonl", a)
    os.rename(made_up_gsm8k / "train.jsonl", b)
    assert run(gsm8k, "--from", b, "--to", to)[0] == 0
    assert contents(to) == {**OLD, "train.jsonl": GSM8K["train"]}
    for number, args in enumerate((["--from", a, b], ["--from", a, "--from", b])):
        new = made_up_gsm8k / str(number)
        assert run(gsm8k, *args, "--to", new)[0] == 0
        assert contents(new) == {f"{name}.jsonl": content for name, content in GSM8K.items()}


@needs_real
def test_gsm8k_takes_the_published_files(tmp_path, run):
    """7,473 and 1,319 problems under the pinned sha256, byte for byte."""
    status, out, _ = run(gsm8k, "--from", REAL, "--to", tmp_path)
    assert status == 0 and "train.jsonl 7,473" in out and "test.jsonl 1,319" in out
    assert contents(tmp_path) == {f"{n}.jsonl": (REAL / f"gsm8k_{n}.jsonl").read_bytes() for n in ("train", "test")}


def test_gsm8k_refuses_what_is_not_the_published_file(made_up_gsm8k, tmp_path, to, run):
    """A changed byte, a folder without the files, no file, a flag that is none, a --to that is a file."""
    (made_up_gsm8k / "test.jsonl").write_bytes(GSM8K["test"].replace(b"\n", b"\r\n"))
    found = sha256(GSM8K["test"].replace(b"\n", b"\r\n")).hexdigest()
    refused(run(gsm8k, "--from", made_up_gsm8k, "--to", to), to, made_up_gsm8k / "test.jsonl", found,
            gsm8k.SHA256["test"], gsm8k.URL.format("{train,test}"))
    (made_up_gsm8k / "test.jsonl").unlink()
    refused(run(gsm8k, "--from", made_up_gsm8k, "--to", to), to, "no test.jsonl in this folder")
    refused(run(gsm8k, "--from", tmp_path / "none", "--to", to), to, "no such file or folder")
    refused(run(gsm8k, "--from"), to, "expected at least one argument")
    refused(run(gsm8k, "--fro", made_up_gsm8k), to, "unrecognized arguments")
    refused(run(gsm8k, "--from", made_up_gsm8k / "train.jsonl", "--to", to / "test.csv"), to, "not a folder")


def test_gsm8k_refuses_a_download_that_was_changed(made_up_gsm8k, to, run, monkeypatch):
    """Such as a login page with status 200."""
    monkeypatch.setattr(gsm8k.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"<html>log in</html>"))
    refused(run(gsm8k, "--to", to), to, gsm8k.URL.format("train"), gsm8k.SHA256["train"])
    served = {gsm8k.URL.format(name): content for name, content in GSM8K.items()}
    monkeypatch.setattr(gsm8k.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(served[url]))
    assert run(gsm8k, "--to", to)[0] == 0
    assert contents(to) == {**OLD, **{f"{name}.jsonl": content for name, content in GSM8K.items()}}


def test_gsm8k_without_a_network_says_what_to_fetch(to):
    """Both addresses, at the pinned commit, and the command to go on with; as a script, in one line."""
    done = subprocess.run([sys.executable, ROOT / "data/gsm8k/prepare.py", "--to", to], capture_output=True, text=True,
                          env={**os.environ, "https_proxy": "http://127.0.0.1:9", "no_proxy": ""})
    place = ("https://raw.githubusercontent.com/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/"
             "grade_school_math/data/")
    refused((done.returncode, done.stdout, done.stderr), to, f"{place}train.jsonl", f"{place}test.jsonl",
            "python data/gsm8k/prepare.py --from FOLDER")


# ---- math ------------------------------------------------------------------------------------------------------------


def competition(answer, level="Level 2", kind="Algebra"):
    return {"problem": f"What, in $\\LaTeX$,\u2028is {answer}?", "level": level, "type": kind,
            "solution": f"First $\\boxed{{0}}$, but no: $\\boxed{{{answer}}}$. So it is {{x}}."}


FILES = {"train/algebra/10.json": competition("\\frac{1}{2}"), "train/algebra/9.json": competition("9", "Level ?"),
         "train/geometry/1.json": competition("\\{1, 2\\}", "Level 5", "Geometry"),
         "test/algebra/2.json": competition("(0,\\frac{\\pi}{2}]")}


@pytest.fixture
def math_folder(tmp_path):
    """A MATH of four problems, with what an unpacked archive has beside them."""
    folder = tmp_path / "MATH"
    for name, raw in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(raw, indent=4), encoding="utf-8")
    (folder / "test/algebra/._2.json").write_bytes(b"\0\5\26\7")
    (folder / "test/algebra/notes.txt").write_text("no problem")
    (folder / "README.json").write_text("{}")
    return folder


def written(name):
    """The row that FILES[name] must become."""
    raw = FILES[name]
    answer = re.fullmatch(r"What, in \$\\LaTeX\$,\u2028is (.*)\?", raw["problem"])[1]
    return {**raw, "answer": answer, "unique_id": name}


def test_math_from_its_folder(math_folder, tmp_path, run):
    """Both splits, by subject and number, the last box's contents as answer; the folder above MATH does as well."""
    for source in (math_folder, tmp_path):
        status, out, err = run(maths, "--from", source, "--to", tmp_path / "to")
        assert status == 0 and err.count("warning") == 2 and out.endswith(f"eval_pass1.py --data {tmp_path}/to\n")
        train = ["train/algebra/9.json", "train/algebra/10.json", "train/geometry/1.json"]
        assert rows_of(tmp_path / "to/train.jsonl") == [written(name) for name in train]
        assert rows_of(tmp_path / "to/test.jsonl") == [written("test/algebra/2.json")]
        assert [problem["answer"] for problem in load_problems(tmp_path / "to/test.jsonl")] == ["(0,\\frac{\\pi}{2}]"]
        assert contents(tmp_path / "to").keys() == {"train.jsonl", "test.jsonl"}


@pytest.mark.parametrize("mode, top", [("w", "MATH"), ("w:gz", "."), ("w", "..")])
def test_math_from_a_tar_writes_the_same_and_nothing_else(math_folder, tmp_path, run, mode, top):
    """Whatever paths the archive names, links among them: only --to is written to."""
    with tarfile.open(tmp_path / "it.tar", mode) as archive:
        archive.add(math_folder, top)
        link = tarfile.TarInfo("MATH/test/algebra/3.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    run(maths, "--from", math_folder, "--to", tmp_path / "a")
    before = {path for path in tmp_path.parent.rglob("*")}
    status, out, err = run(maths, "--from", tmp_path / "it.tar", "--to", tmp_path / "b")
    assert status == 0 and contents(tmp_path / "a") == contents(tmp_path / "b")
    assert {path for path in tmp_path.parent.rglob("*")} - before == {
        tmp_path / "b", tmp_path / "b/train.jsonl", tmp_path / "b/test.jsonl"}


def test_math_from_a_jsonl_is_a_test_set(tmp_path, to, run):
    """MATH-500's fields become MATH's; a given answer stays; train.jsonl is left alone."""
    lines = [{"problem": "a\u2028b", "solution": "\\boxed{1}", "answer": "1", "subject": "Number Theory", "level": 3,
              "unique_id": "test/number_theory/7.json"},
             {"problem": "c", "solution": "no box", "answer": "x^2", "type": "Algebra", "level": "Level 5"},
             {"problem": "d", "solution": "none \\boxed{", "level": None}]
    text = "\ufeff" + "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\r\n"
    (tmp_path / "set.jsonl").write_text(text, encoding="utf-8", newline="")
    status, out, err = run(maths, "--from", tmp_path / "set.jsonl", "--to", to)
    assert status == 0 and "3 problems, 1 of them without an answer" in out and err.count("\n") == 1
    made = [tuple(row.values()) for row in rows_of(to / "test.jsonl")]
    assert made == [("a\u2028b", "\\boxed{1}", "1", "Level 3", "Number Theory", "test/number_theory/7.json"),
                    ("c", "no box", "x^2", "Level 5", "Algebra", "set.jsonl:3"),
                    ("d", "none \\boxed{", "", "Level ?", "", "set.jsonl:5")]
    assert contents(to) == {**OLD, "test.jsonl": (to / "test.jsonl").read_bytes()}


@pytest.mark.parametrize("count, warnings", [(499, 1), (500, 0), (5000, 0)])
def test_math_warns_of_another_count(tmp_path, run, count, warnings):
    """One warning unless there are 500 problems or 5,000; the file is written all the same."""
    (tmp_path / "set.jsonl").write_bytes(jsonl([{"problem": "p", "solution": "\\boxed{1}"}] * count))
    status, out, err = run(maths, "--from", tmp_path / "set.jsonl", "--to", tmp_path / "to")
    assert status == 0 and f"test.jsonl {count:,} problems\n" in out
    assert err.count("warning: ") == err.count("\n") == warnings


@needs_real
def test_math_500_as_published(tmp_path):
    """As a script: all 500 rows, problem, solution, answer and id unchanged, the level in MATH's words."""
    done = subprocess.run([sys.executable, ROOT / "data/math/prepare.py", "--from", REAL / "math500.jsonl", "--to",
                           tmp_path / "to"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "500 problems\n" in done.stdout
    for made, raw in zip(rows_of(tmp_path / "to/test.jsonl"), rows_of(REAL / "math500.jsonl"), strict=True):
        assert made == {**{key: raw[key] for key in ("problem", "solution", "answer", "unique_id")},
                        "level": f"Level {raw['level']}", "type": raw["subject"]}


def test_math_refuses_what_is_no_math(math_folder, tmp_path, to, run):
    """Nothing given, nothing there, no problem in it, not JSON, a damaged archive, a problem twice: one line each."""
    refused(run(maths, "--to", to), to, "HuggingFaceH4/MATH-500", "MATH.tar", "python data/math/prepare.py --from FILE")
    refused(run(maths, "--from", tmp_path / "none", "--to", to), to, "no such file or folder")
    refused(run(maths, "--from", to, "--to", to), to, f"{to}: no problem in it", "want")
    refused(run(maths, "--from", math_folder, "--to", to / "test.csv"), to, "not a folder")
    refused(run(maths, "--form", math_folder, "--to", to), to, "unrecognized arguments")
    for content, words in (
            (b"", "no problem in it"), (b'{"problem": "p", "solution": "s"}\n{"problem', "line 2: not JSON"),
            (b"\xff\xfe\xff", "line 1: not JSON"), (b"[" * 100_000, "line 1: not JSON"), (b"3", "line 1: no text for"),
            (b'{"question": "q", "answer": "#### 1"}', "line 1: no text for 'problem'"),
            (b'{"problem": "p", "answer": "1"}', "line 1: no text for 'solution'")):
        (tmp_path / "bad.jsonl").write_bytes(content)
        refused(run(maths, "--from", tmp_path / "bad.jsonl", "--to", to), to, tmp_path / "bad.jsonl", words, "want")
    for mode in ("w", "w:gz"):
        with tarfile.open(tmp_path / "it.tar", mode) as archive:
            archive.add(math_folder, "MATH")
        whole = (tmp_path / "it.tar").read_bytes()
        (tmp_path / "it.tar").write_bytes(whole[: 5000 if mode == "w" else len(whole) - 40])
        refused(run(maths, "--from", tmp_path / "it.tar", "--to", to), to, "damaged archive", "get it anew")
    with tarfile.open(tmp_path / "it.tar", "w") as archive:
        archive.add(math_folder, "MATH")
        archive.add(math_folder, "copy")
    refused(run(maths, "--from", tmp_path / "it.tar", "--to", to), to, "stands in it twice")
    (math_folder / "test/algebra/2.json").write_text("{")
    refused(run(maths, "--from", math_folder, "--to", to), to, "test/algebra/2.json: not JSON")


# ---- gpqa ------------------------------------------------------------------------------------------------------------

SECRET = "Who, if \"anyone\", knows?\r\nOr\n\u03b1"
CELLS = {"Record ID": "rec1", "Pre-Revision Question": "old", "Incorrect Answer 3": "d\n", "Incorrect Answer 1": "b, b",
         "Question": SECRET, "Correct Answer": "a", "Incorrect Answer 2": "'c'", "Subdomain": "Optics",
         "High-level domain": "Physics", "Canary String": "extra"}
KEPT = ["Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3", "Subdomain",
        "High-level domain", "Record ID"]


def gpqa_csv(count=2, **changes):
    """A made-up GPQA file: columns in another order, more of them, cells with commas, quotes and newlines."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CELLS)
    writer.writeheader()
    writer.writerows({**CELLS, "Record ID": f"rec{n}", **changes} for n in range(count))
    return text.getvalue().encode("utf-8")


def as_zip(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def zipcrypto(name, content, password):
    """An archive of one file under PKWARE's old encryption (APPNOTE 6.1), which zipfile reads but cannot write."""
    def crc(key, byte):
        return zlib.crc32(bytes([byte]), key ^ 0xFFFFFFFF) ^ 0xFFFFFFFF

    def update(keys, byte):
        first = crc(keys[0], byte)
        second = ((keys[1] + (first & 0xFF)) * 134775813 + 1) & 0xFFFFFFFF
        return first, second, crc(keys[2], second >> 24)

    keys = (0x12345678, 0x23456789, 0x34567890)
    for byte in password:
        keys = update(keys, byte)
    packer = zlib.compressobj(wbits=-15)
    check, coded = zlib.crc32(content), bytearray()
    for byte in bytes(11) + bytes([check >> 24]) + packer.compress(content) + packer.flush():
        mask = (keys[2] | 2) & 0xFFFF
        coded.append(byte ^ (mask * (mask ^ 1) >> 8) & 0xFF)
        keys = update(keys, byte)
    fields = struct.pack("<5H3I2H", 20, 1, 8, 0, 0x21, check, len(coded), len(content), len(name), 0)
    local = b"PK\3\4" + fields + name + coded
    central = b"PK\1\2\24\0" + fields + struct.pack("<3H2I", 0, 0, 0, 0, 0) + name
    return local + central + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 1, 1, len(central), len(local), 0)


def gpqa_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_gpqa_keeps_the_needed_columns_cell_for_cell(tmp_path, run, start):
    """By name, whatever their order; commas, quotes and newlines of every kind stay as they are; lines end in LF."""
    (tmp_path / "gpqa_main.csv").write_bytes(start.encode() + gpqa_csv(448))
    status, out, err = run(gpqa, "--from", tmp_path / "gpqa_main.csv", "--to", tmp_path / "to")
    assert (status, err) == (0, "") and "test.csv 448 questions, GPQA main\n" in out
    assert out.endswith(f"python eval_pass1.py --data {tmp_path}/to\n") and SECRET[:8] not in out
    rows = gpqa_rows(tmp_path / "to/test.csv")
    assert [list(row) for row in rows] == [KEPT] * 448
    assert rows == [{**{column: CELLS[column] for column in KEPT}, "Record ID": f"rec{n}"} for n in range(448)]
    assert (tmp_path / "to/test.csv").read_bytes().count(b"\r\n") == 448  # SECRET's own, none at a line's end


def test_gpqa_does_without_what_only_helps(tmp_path, run):
    """Five columns are enough."""
    (tmp_path / "mine.csv").write_text(",".join(KEPT[:5]) + "\n1,2,3,4,5\n")
    assert run(gpqa, "--from", tmp_path / "mine.csv", "--to", tmp_path)[0] == 0
    assert gpqa_rows(tmp_path / "test.csv") == [dict(zip(KEPT[:5], "12345"))]


@pytest.mark.parametrize("name, count, said", [
    ("gpqa_diamond.csv", 198, "GPQA diamond"), ("gpqa_extended.csv", 546, "GPQA extended"), ("x.csv", 448, "GPQA main"),
    ("gpqa_diamond.csv", 197, "not a published number"), ("gpqa_diamond.csv", 448, "not a published number")])
def test_gpqa_says_how_many_there_are(tmp_path, run, name, count, said):
    """By the published subset of that number, or that there is none."""
    (tmp_path / name).write_bytes(gpqa_csv(count))
    status, out, err = run(gpqa, "--from", tmp_path / name, "--to", tmp_path / "to")
    assert status == 0 and f"test.csv {count} questions, {said}" in out
    assert len(gpqa_rows(tmp_path / "to/test.csv")) == count


def test_gpqa_from_the_zip(tmp_path, to, run):
    """diamond unless --subset says otherwise, from any folder in it; with the password where it is encrypted."""
    path = tmp_path / "dataset.zip"
    path.write_bytes(as_zip({"__MACOSX/._gpqa_main.csv": b"\0", "dataset/gpqa_main.csv": gpqa_csv(448),
                             "dataset/gpqa_diamond.csv": gpqa_csv(198)}))
    for subset, args in (("diamond", []), ("main", ["--subset", "main"])):
        status, out, _ = run(gpqa, "--from", path, "--to", to, *args)
        assert status == 0 and f"{gpqa.COUNTS[subset]} questions, GPQA {subset}" in out
        assert len(gpqa_rows(to / "test.csv")) == gpqa.COUNTS[subset]
    path.write_bytes(zipcrypto(b"dataset/gpqa_diamond.csv", gpqa_csv(7), b"open sesame"))
    assert run(gpqa, "--from", path, "--password", "open sesame", "--to", to)[0] == 0
    assert len(gpqa_rows(to / "test.csv")) == 7 and list(tmp_path.rglob("gpqa_*")) == []


def test_gpqa_refuses_a_zip_that_it_cannot_open(tmp_path, to, run):
    """No password, 600 wrong ones (2 or 3 of them pass the one byte of check), AES, another subset, a damaged file."""
    path = tmp_path / "dataset.zip"
    path.write_bytes(zipcrypto(b"gpqa_diamond.csv", gpqa_csv(), b"open sesame"))
    refused(run(gpqa, "--from", path, "--to", to), to, "encrypted", "--password", "https://github.com/idavidrein/gpqa")
    refused(run(gpqa, "--from", path, "--password", "x", "--to", to), to, "check --password", "--from gpqa_diamond.csv")
    for n in range(600):
        with pytest.raises(ValueError, match="check --password"):
            gpqa.unzip(path, "diamond", f"wrong {n}")
    refused(run(gpqa, "--from", path, "--password", "x", "--subset", "main", "--to", to), to, "no gpqa_main.csv in it")
    refused(run(gpqa, "--from", path, "--subset", "experts", "--to", to), to, "invalid choice")
    aes = bytearray(as_zip({"gpqa_diamond.csv": gpqa_csv()}))
    central = aes.index(b"PK\1\2")
    aes[6], aes[8:10], aes[central + 8], aes[central + 10 : central + 12] = 1, b"c\0", 1, b"c\0"  # method 99
    path.write_bytes(aes)
    refused(run(gpqa, "--from", path, "--password", "x", "--to", to), to, "by hand", "--from gpqa_diamond.csv")
    damaged = bytearray(as_zip({"gpqa_diamond.csv": gpqa_csv(50)}))
    damaged[60:90] = bytes(30)
    path.write_bytes(damaged)
    refused(run(gpqa, "--from", path, "--to", to), to, "cannot be read")


def test_gpqa_refuses_what_is_no_gpqa_and_shows_no_question(tmp_path, to, run):
    """One line without a word of any question: it may end up in a public log."""
    path = tmp_path / "gpqa_main.csv"
    whole = gpqa_csv()
    for content, words in (
            (b"", "no column Question"), (whole.replace(b"Incorrect Answer 2", b"W"), "no column Incorrect Answer 2"),
            (whole[: whole.index(b"\n") + 1], "no question in it"), (whole[: whole.index(b"knows")], "not a whole CSV"),
            (gpqa_csv(**{"Correct Answer": " "}), "question 1 has no Correct Answer"),
            (whole + b"x,y\r\n", "question 3 has no"),
            (whole.replace(b"extra\r\n", b"extra,more\r\n"), "question 1 has more cells"),
            (whole.replace("\u03b1".encode(), b"\xe1"), "in UTF-8")):
        path.write_bytes(content)
        result = run(gpqa, "--from", path, "--to", to)
        refused(result, to, path, words)
        assert not any(word in "".join(result[1:]) for word in ("Who", "anyone", "knows", "Optics"))
    path.write_bytes(whole)
    refused(run(gpqa, "--to", to), to, "huggingface.co/datasets/Idavidrein/gpqa", "https://github.com/idavidrein/gpqa",
            "python data/gpqa/prepare.py --from FILE")
    refused(run(gpqa, "--from", tmp_path / "none.csv", "--to", to), to, "no such file")
    refused(run(gpqa, "--from", tmp_path, "--to", to), to, "no such file")
    refused(run(gpqa, "--from", path, "--subset", "main", "--to", to), to, "no zip archive", "leave them out")
    refused(run(gpqa, "--from", path, "--to", to / "test.csv"), to, "not a folder")
    refused(run(gpqa, "--from", path, "--pass", "x", "--to", to), to, "unrecognized arguments")


# ---- all -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_stopped_run_leaves_the_earlier_files(made_up_gsm8k, math_folder, tmp_path, to, run, monkeypatch, stop):
    """Whether the disk is full or Ctrl-C is pressed just before the new files take their places; no rest is left."""
    (tmp_path / "mine.csv").write_bytes(gpqa_csv())

    def stopped(new, place):
        assert Path(new).parent.suffix == ".tmp"  # git-ignored, should the run be killed
        raise stop

    monkeypatch.setattr(os, "replace", stopped)
    for module, source in ((gsm8k, made_up_gsm8k), (maths, math_folder), (gpqa, tmp_path / "mine.csv")):
        if isinstance(stop, OSError):
            refused(run(module, "--from", source, "--to", to), to, "No space left")
        else:
            with pytest.raises(KeyboardInterrupt):
                run(module, "--from", source, "--to", to)
            assert contents(to) == OLD
    (to / "train.jsonl").rename(tmp_path / "aside")
    shutil.copy(ROOT / "data/choice/prepare.py", to)
    before = contents(to)
    monkeypatch.setattr(sys, "argv", ["prepare.py"])
    with pytest.raises(SystemExit, match="2" if isinstance(stop, OSError) else "130"):
        runpy.run_path(str(to / "prepare.py"), run_name="__main__")
    assert contents(to) == before


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="not a git checkout")
def test_what_others_own_is_ignored_by_git():
    """GSM8K's, MATH's and GPQA's files, and what a killed run leaves of them, cannot be committed by mistake."""
    def ignored(name):
        return subprocess.run(["git", "check-ignore", "-q", "--no-index", name], cwd=ROOT).returncode == 0

    for name in ("gsm8k/train.jsonl", "gsm8k/test.jsonl", "math/train.jsonl", "math/test.jsonl", "gpqa/test.csv"):
        assert ignored(f"data/{name}") and ignored(f"data/{Path(name).parent}/x.tmp/{Path(name).name}"), name
    for name in ("choice/test.csv", "choice/train.csv", "gpqa/prepare.py", "math/prepare.py", "gsm8k/prepare.py"):
        assert not ignored(f"data/{name}"), name


PROBLEM = json.dumps({"problem": "1+1", "solution": "\\boxed{2}", "level": "Level 1", "type": "Algebra"}).encode()


def test_an_archive_that_would_grow_without_end_is_refused(tmp_path, to, run):
    """By what it says of itself, before anything is unpacked; a file that no problem has a name like is not read."""
    files = {"dataset/gpqa_diamond.csv": bytes(101 * 10**6)}
    (tmp_path / "dataset.zip").write_bytes(as_zip(files))
    refused(run(gpqa, "--from", tmp_path / "dataset.zip", "--to", to), to, "101,000,000 bytes")
    for name, fine in (("MATH/test/algebra/1.json", False), ("MATH/notes.bin", True)):
        with tarfile.open(tmp_path / "it.tar.gz", "w:gz") as archive:
            for path, content in ((name, bytes(2_000_000)), ("MATH/test/algebra/2.json", PROBLEM)):
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        found = run(maths, "--from", tmp_path / "it.tar.gz", "--to", to)
        if fine:
            assert found[0] == 0, found
        else:
            refused(found, to, "2,000,000 bytes are no problem")


def test_an_archive_that_holds_more_than_it_says_is_refused(tmp_path, to, run):
    """200 MB that call themselves 1,000 bytes, in a zip of one: no more than that is unpacked."""
    content = as_zip({"gpqa_diamond.csv": bytes(2 * 10**8)})
    assert content.count(struct.pack("<I", 2 * 10**8)) == 2  # before the file and in the directory
    (tmp_path / "dataset.zip").write_bytes(content.replace(struct.pack("<I", 2 * 10**8), struct.pack("<I", 1000)))
    tracemalloc.start()
    try:
        refused(run(gpqa, "--from", tmp_path / "dataset.zip", "--to", to), to, "cannot be read")
        assert tracemalloc.get_traced_memory()[1] < 30 * 10**6
    finally:
        tracemalloc.stop()


def test_archives_of_many_large_or_oddly_named_problems(tmp_path, to, run, monkeypatch):
    """All together are bounded, too; a control character in a name reaches no terminal."""
    monkeypatch.setattr(maths, "LARGEST", (1_000_000, 2 * len(PROBLEM)))
    with tarfile.open(tmp_path / "it.tar", "w") as archive:
        for name in ("MATH/test/a/1.json", "MATH/test/\x1b[2J/1.json", "\x1b[2J/test/a/2.json", "MATH/test/a/3.json"):
            entry = tarfile.TarInfo(name)
            entry.size = len(PROBLEM)
            archive.addfile(entry, io.BytesIO(PROBLEM))
    found = run(maths, "--from", tmp_path / "it.tar", "--to", to)
    refused(found, to, "test/a/3.json", "too many for a set of problems")
    assert "\x1b" not in "".join(found[1:])

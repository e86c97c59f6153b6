"""The flags of every script, whatever they are given: python -m pytest tests/test_flags.py"""

import argparse
import contextlib
import io
import math
import runpy
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eval_pass1
import train

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted([*ROOT.glob("experiments/*.py"), *ROOT.glob("data/*/prepare.py")]), ROOT / "train.py merge",
           ROOT / "train.py", ROOT / "eval_pass1.py"]
READ = {"train.py": train.parse_args, "eval_pass1.py": eval_pass1.parse_args}  # these look at the values together
FEW = ["nan", "inf", "1e400", "5e-324", "-1", "0", str(2**64), "9" * 5000, "", "\x1b[2J\x07", "a\rb\nc", "é🙂\udcff"]
ODD = [*FEW, "-inf", "1e-46", "-0.0", "1", "2", str(2**32), str(10**20), "1_0", "0x10", "²", "٣", " ", "-", "--", "=",
       "%s", "{", "%(prog)s", "{problem}", "\\", "auto", "none", "hpu", "cuda:99", "~", ".", "/dev/null", "absent/x",
       "a@b/c@d", "x" * 5000]


class Found(Exception):
    """The parser of a script that was about to read its flags."""


def parser_of(script: Path) -> argparse.ArgumentParser:
    def stop(self, *args, **kwargs):
        raise Found(self)

    path, _, command = str(script).partition(" ")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Found) as found:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "path", [str(Path(path).parent), *sys.path])
        patch.setattr(sys, "argv", [path, *command.split()])
        patch.setattr(sys, "stdout", sys.stdout)  # which scripts wrap
        patch.setattr(sys, "stderr", sys.stderr)
        runpy.run_path(path, run_name="__main__")
    signal.signal(signal.SIGINT, handler)
    return found.value.args[0]


values = st.one_of(st.sampled_from(ODD), st.integers().map(str), st.floats().map(repr),
                   st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20))


@st.composite
def words(draw, actions):
    """Flags of a script with any values: too few and too many, joined by = or not, and words that are no flags."""
    line = []
    for action in draw(st.lists(st.sampled_from(actions), max_size=5)):
        flag = draw(st.sampled_from(action.option_strings or [""]))
        given = draw(st.lists(st.sampled_from([*action.choices]) if action.choices and draw(st.booleans()) else values,
                              max_size=2))
        line += [f"{flag}={given[0]}", *given[1:]] if given and draw(st.booleans()) else [flag, *given]
    return line + draw(st.lists(values, max_size=1))


def numbers(value) -> list:
    return [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int | float)]


def taken_or_refused(script: Path, parser, line: list[str]) -> None:
    """Status 2, one line and nothing in it that steers the terminal; or numbers that are finite and not huge."""
    if script.name not in READ and not isinstance(parser, eval_pass1.Parser):  # argparse repeats what the user typed
        line = ["".join(c for c in word if c.isprintable()) for word in line]
    out, err, taken = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            taken = READ[script.name](line)[1] if script.name in READ else parser.parse_args(line)
        except SystemExit as end:
            status = end.code or 0
    said = err.getvalue()
    if taken is None:
        assert status == 0 and not said or status == 2 and said.count("\n") == 1 and said.endswith("\n"), (line, said)
        assert not {"\x1b", "\x07", "\r"} & set(said) and "Traceback" not in said, (line, said)
    else:
        for name, value in vars(taken).items():
            fine = name in ("seed", "dropout") or all(math.isfinite(n) and n <= 1e30 for n in numbers(value))
            assert fine, (name, line)  # dropout: inject_lora refuses it


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_flag_takes_odd_values_or_refuses_them(script, monkeypatch, tmp_path):
    parser = parser_of(script)
    monkeypatch.chdir(tmp_path)
    for action in parser._actions:
        for value in FEW:
            taken_or_refused(script, parser, [*action.option_strings[:1], value])
    assert not [*tmp_path.iterdir()]


@pytest.mark.thorough
def test_any_flags_are_taken_or_refused_in_one_line(monkeypatch, tmp_path):
    """6,000 command lines."""
    parsers = {script: parser_of(script) for script in SCRIPTS}
    monkeypatch.chdir(tmp_path)

    @settings(max_examples=6000)
    @given(st.data())
    def check(data):
        script = data.draw(st.sampled_from(SCRIPTS))
        taken_or_refused(script, parsers[script], data.draw(words(parsers[script]._actions)))

    check()
    assert not [*tmp_path.iterdir()]

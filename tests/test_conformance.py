"""The vectors, the runner, its examples and the mistakes that it names: python -m pytest tests/test_conformance.py"""

import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import lora_alpha
from hf import save_adapter, save_model
from lora_alpha import GPT, GPTConfig, inject_lora, lora_layers
from tests.conformance import make
from tests.conformance import run as runner
from tests.conformance.examples import numpy_only, ours
from tests.conformance.examples.planted import PLANTED
from tests.conformance.run import CHECKS, check, check_adapter, main

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "tests" / "conformance"
VECTORS = {name: json.loads((HERE / "vectors" / f"{name}.json").read_text(encoding="utf-8")) for name in CHECKS}
CASES = [(name, case) for name in CHECKS for case in VECTORS[name]["cases"]]
TWELVE = ["your s is alpha/sqrt(r)", "A and B exchanged", "alpha not divided by r", "weight decay coupled",
          "bias correction missing", "drift without s", "c·r instead of c·sqrt(r)", "merge lost s",
          "gradient of A not scaled", "epsilon inside the root", "bf16 merge rounded twice",
          "alpha fixed while rank changed"]


def functions_of(module):
    return {name: getattr(module, name) for name in CHECKS if hasattr(module, name)}


def table(capsys):
    """{check: (status, the rest of its line)} of what was printed last."""
    lines = capsys.readouterr().out.splitlines()
    found = [re.match(r"(PASS|FAIL|not offered) +(\w+) *(.*)", line) for line in lines]
    return {match[2]: (match[1], match[3]) for match in found if match}


def failures(capsys):
    return {name: words for name, (status, words) in table(capsys).items() if status == "FAIL"}


# ---- The vectors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", ["11", pytest.param("12", marks=pytest.mark.thorough)], ids=["once", "twice"])
def test_the_vectors_are_what_make_writes(runs, tmp_path):
    """make.py writes the bytes in the folder, and the same twice; the traces of torch to 9 digits."""
    for n in {*runs}:
        make.main(tmp_path / n)
    assert sorted(path.name for path in (HERE / "vectors").iterdir()) == sorted(f"{name}.json" for name in CHECKS)
    for name in CHECKS:
        first, again = ((tmp_path / n / f"{name}.json").read_bytes() for n in runs)
        kept = (HERE / "vectors" / f"{name}.json").read_bytes()
        assert first == again
        if name != "train_gpt":
            assert first == kept, f"{name}.json is not what make.py writes"
    new, old = json.loads(first), VECTORS["train_gpt"]  # other machines add up in another order
    assert new["cases"][0]["inputs"] == old["cases"][0]["inputs"]
    traces = [[case["outputs"]["losses"], *(wrong["losses"] for wrong in case["mistakes"].values())]
              for case in (new["cases"][0], old["cases"][0])]
    np.testing.assert_allclose(*traces, rtol=1e-9, atol=0)


def test_the_vectors_are_small_and_plain():
    """Under 2 MB in all, JSON without NaN or Infinity, and no number of more than 17 significant digits."""
    def refuse(word):
        raise AssertionError(word)

    texts = [path.read_text(encoding="utf-8") for path in (HERE / "vectors").iterdir()]
    assert sum(len(text.encode()) for text in texts) < 2_000_000
    for text in texts:
        json.loads(text, parse_constant=refuse)
        for number in re.findall(r"(?<=[\s\[])-?\d+\.\d+", text):
            assert len(number.replace(".", "").strip("-0")) <= 17


def test_no_case_hides_a_wrong_s_or_a_transposed_matrix():
    """s is never 1, m, n, r and the rows all differ, and every array that goes in is exact in float32."""
    seen = set()
    for name, case in CASES:
        given, out = case["inputs"], case["outputs"]
        if name == "lora_scaling":
            assert out["s"] != 1
        if "A" in given:
            (r, n), (m, _) = np.shape(given["A"]), np.shape(given["B"])
            s = given["scaling"] if name == "signal_drift" else given["alpha"] / r
            assert abs(s - 1) > 0.1 and len({m, n, r, len(given.get("x", "")) or 1}) == 4
            seen |= {name}
        for value in given.values():
            if isinstance(value, list):
                assert (np.array(value) == np.array(value).astype(np.float32)).all() or value is given.get("lr")
    assert seen == set(CHECKS) - {"alpha_for_rank", "lora_scaling", "adamw_steps", "train_gpt"}
    gpt = VECTORS["train_gpt"]["cases"][0]["inputs"]
    assert all(len(weight) != len(weight[0]) for name, weight in gpt["weights"].items() if "norm" not in name)
    A = gpt["adapter"]["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    assert len(A) == 3 and gpt["alpha"] / 3 > 100


def test_the_readme_states_each_check_as_the_vectors_do():
    """Call, sentence, equation and tolerance of each check stand in the README, word for word; so do the twelve."""
    readme = "".join((HERE / "README.md").read_text(encoding="utf-8").split())
    for name in CHECKS:
        for key in ("call", "says", "equation", "tolerance"):
            assert "".join(VECTORS[name][key].split()) in readme, (name, key)
        function = re.match(r"\w+\((.*?)\)", VECTORS[name]["call"])[1].split(", ")
        assert all(list(case["inputs"]) == function for case in VECTORS[name]["cases"])
    assert all("".join(label.split()) in readme for label in TWELVE)


@given(x=st.floats(width=32, allow_nan=False, allow_infinity=False))
@example(x=1 + 2.0**-8)  # a tie, to even
@example(x=1 + 3 * 2.0**-8)
@example(x=-(2 - 2.0**-9))  # up to the next power of two
@example(x=0.0)
def test_bf16_is_rounded_as_torch_rounds(x):
    """make.py's and the example's rounding to bfloat16 are torch's, for every float32 in bfloat16's normal range."""
    want = torch.tensor(x).bfloat16().double().item()
    if abs(x) > 2.0**-126 and math.isfinite(want):
        assert float(make.to_bf16(make.Decimal(x))) == want
        assert numpy_only.to_bf16(np.array([x], np.float32))[0] == want


# ---- What passes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["numpy_only", "ours", "peft_impl"])
def test_the_examples_pass(name, dtype, capsys):
    """numpy alone, lora_alpha.py, and PEFT with torch's AdamW and transformers reach the same answers."""
    module = importlib.import_module(f"tests.conformance.examples.{name}")
    assert check(functions_of(module), dtype)
    statuses = {name: status for name, (status, _) in table(capsys).items()}
    absent = {"train_gpt"} if name == "numpy_only" else set()
    assert statuses == {name: "not offered" if name in absent else "PASS" for name in CHECKS}


def test_absent_is_not_offered_and_nothing_is_no_pass(capsys):
    """A check whose function is absent is not offered; with none at all the result is False; a misspelt one is said."""
    assert check({"lora_scaling": lambda rank, alpha: alpha / rank}) is True
    statuses = table(capsys)
    assert statuses.pop("lora_scaling")[0] == "PASS"
    assert len(statuses) == 9 and {status for status, _ in statuses.values()} == {"not offered"}
    assert check({}) is False and check({"merge": None}) is False
    with pytest.raises(ValueError, match="'lora_foward' is not a check"):
        check({"lora_foward": numpy_only.lora_forward})


def test_what_a_function_does_to_its_arguments_is_its_own_affair():
    """A function that overwrites its arguments is judged by its result, in this run and in the next."""
    def merge(W0, A, B, alpha):
        W0 += alpha / A.shape[0] * (B @ A)
        A[:] = B[:] = 0
        return W0

    assert check({"merge": merge}) and check({"merge": merge})


# ---- Mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("label", TWELVE)
def test_each_planted_mistake_is_caught_and_named(label, dtype, capsys):
    """Each of the twelve fails its own check, in a line with FAIL, the function's name and the mistake's."""
    assert list(PLANTED) == TWELVE
    assert check(PLANTED[label], dtype) is False
    found = failures(capsys)
    assert list(found) == list(PLANTED[label]) and f"likely: {label}" in found[list(found)[0]]


@pytest.mark.parametrize("name", CHECKS)
def test_every_wrong_rule_in_the_vectors_is_told_from_every_other(name, capsys):
    """A function that gives what a wrong rule gives fails and is told that rule, with float32's rounding on top too."""
    cases = VECTORS[name]["cases"]
    labels = dict.fromkeys(label for case in cases for label in case["mistakes"])
    assert len(labels) >= 7
    for label in labels:
        answers = iter(cases)

        def wrong(*_, label=label, answers=answers):
            case = next(answers)
            parts = [np.array(part).astype(case.get("dtype", "float64"))
                     for part in case["mistakes"].get(label, case["outputs"]).values()]
            return parts[0] if len(parts) == 1 else parts

        assert check({name: wrong}) is False
        words = failures(capsys)[name]
        assert re.search(r"likely: (.*?) \[", words)[1] == label, words


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_one_wrong_line_of_lora_alpha_is_named_by_every_check_that_it_touches(dtype, capsys, monkeypatch):
    """s = alpha/sqrt(r) in lora_alpha.py fails every check of the layer, merges and traces, and each one says so."""
    monkeypatch.setattr(lora_alpha, "lora_scaling", lambda rank, alpha: alpha / rank**0.5)
    functions = functions_of(ours)
    assert check(functions, dtype) is False
    found = failures(capsys)
    assert set(found) == {"lora_forward", "lora_grads", "merge", "merge_bf16", "train_linear", "train_gpt"}
    assert all("likely: your s is alpha/sqrt(r)" in words for words in found.values())


def test_torchs_adam_is_told_its_coupled_weight_decay(capsys, monkeypatch):
    """With Adam in AdamW's place in the loop, steps and both traces name the weight decay."""
    monkeypatch.setattr(torch.optim, "AdamW", torch.optim.Adam)
    assert check(functions_of(ours)) is False
    found = failures(capsys)
    assert set(found) == {"adamw_steps", "train_linear", "train_gpt"}
    assert all("likely: weight decay coupled" in words for words in found.values())


def test_pefts_safe_merge_is_told_that_it_rounds_twice(capsys):
    """PEFT's safe_merge rounds s·B·A to bf16 before it adds it."""
    from tests.conformance.examples import peft_impl
    assert check({"merge_bf16": lambda *given: peft_impl.merge_bf16(*given, safe_merge=True)}) is False
    assert "likely: bf16 merge rounded twice [" in failures(capsys)["merge_bf16"]


def test_the_other_ways_to_exchange_or_turn_a_matrix_are_named(capsys):
    """B before A, gradients in the other order, and JAX's (in, out) matrices: each has its words."""
    forward, grads, merge = numpy_only.lora_forward, numpy_only.lora_grads, numpy_only.merge
    drift = numpy_only.signal_drift
    for function, words in [
            ({"lora_forward": lambda x, W0, B, A, alpha: forward(x, W0, A, B, alpha)}, "A and B exchanged"),
            ({"merge": lambda W0, B, A, alpha: merge(W0, A, B, alpha)}, "A and B exchanged"),
            ({"signal_drift": lambda B, A, dB, dA, s: drift(A, B, dA, dB, s)}, "A and B exchanged"),
            ({"lora_grads": lambda *given: grads(*given)[::-1]}, "A and B exchanged"),
            ({"lora_grads": lambda x, W0, B, A, alpha, dy: grads(x, W0, A, B, alpha, dy)}, "A and B exchanged"),
            ({"lora_grads": lambda x, W0, B, A, alpha, dy: grads(x, W0, A, B, alpha, dy)[::-1]}, "A and B exchanged"),
            ({"lora_forward": lambda x, W0, A, B, alpha: forward(x, W0, A.T, B.T, alpha)}, "A and B transposed"),
            ({"lora_forward": lambda x, W0, A, B, alpha: forward(x, W0.T, A, B, alpha)}, "W0 transposed"),
            ({"lora_forward": lambda x, W0, A, B, alpha: forward(x, W0.T, A.T, B.T, alpha)}, "W0, A and B transposed")]:
        assert check(function) is False
        assert f"likely: {words};" in list(failures(capsys).values())[0]


def shut(*_):
    sys.exit(0)


@pytest.mark.parametrize("function, reason", [
    (lambda *_: 1 / 0, "ZeroDivisionError: division by zero"),
    (shut, "SystemExit: 0"),
    (lambda x: x, "TypeError: "),
    (lambda *_: None, "dA, dB"),
    (lambda *_: (1, 2, 3), "returned 3 values, want 2 values: dA, dB"),
    (lambda x, W0, A, B, alpha, dy: (A, B.T), "dB has shape (4, 7), want (7, 4)"),
    (lambda x, W0, A, B, alpha, dy: (A + 1j, B), "dA is a ndarray, want real numbers"),
    (lambda x, W0, A, B, alpha, dy: (A.astype(str), B), "dA is a ndarray, want real numbers"),
    (lambda x, W0, A, B, alpha, dy: (A * np.nan, B), "= nan, want"),
    (lambda x, W0, A, B, alpha, dy: (A * np.inf, B), "no known mistake fits"),
    (lambda x, W0, A, B, alpha, dy: (A, B), "no known mistake fits"),
    (lambda x, W0, A, B, alpha, dy: ([[1], [2, 3]], B), "inhomogeneous"),
])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_whatever_a_function_does_is_a_line_and_no_traceback(function, reason, capsys):
    """An exception, an exit, a wrong number, shape or kind of results, or NaN: one line with FAIL and the reason."""
    assert check({"lora_grads": function}) is False
    found = failures(capsys)
    assert list(found) == ["lora_grads"] and reason in found["lora_grads"]


def test_the_merge_keeps_w0s_dtype(capsys):
    """A merge that answers in float64 for a float32 W0, or in float32 for a float64 one, fails and is told so."""
    assert check({"merge": lambda *given: numpy_only.merge(*given).astype(np.float64)}) is False
    assert "W is float64, want W0's dtype float32" in failures(capsys)["merge"]
    assert check({"merge": lambda *given: numpy_only.merge(*given).astype(np.float32)}) is False
    assert "W is float32, want W0's dtype float64 (--dtype float32" in failures(capsys)["merge"]
    assert check({"merge": lambda *given: numpy_only.merge(*given).astype(np.float32)}, "float32") is True


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_function_gets_arrays_of_the_dtype_that_it_asked_for(dtype):
    """All arrays of numbers are of the run's dtype, ids int64; only the merges fix a dtype of their own."""
    def arrays(value):
        return [value] if isinstance(value, np.ndarray) else \
            [array for part in value.values() for array in arrays(part)] if isinstance(value, dict) else []

    seen = {name: set() for name in CHECKS}
    check({name: lambda *given, name=name: seen[name].update(a.dtype.name for v in given for a in arrays(v))
           for name in CHECKS}, dtype)
    # No function returns a value here, so that each is called once, and again where A and B might be exchanged.
    assert seen["merge"] == {dtype} and seen["merge_bf16"] == {"float32"}
    assert seen["train_gpt"] == {dtype, "int64"} and seen["lora_scaling"] == set()
    assert all(seen[name] == {dtype} for name in CHECKS[2:9] if name != "merge_bf16")


@pytest.mark.parametrize("way", [0.5, 0.97, 1.03])
def test_what_is_near_a_wrong_rule_is_not_taken_for_it(way, capsys):
    """An s that is half the way, or 3% short or too far, from alpha/r to alpha/sqrt(r) is no mistake of the list."""
    def forward(x, W0, A, B, alpha):
        return numpy_only.lora_forward(x, W0, A, B, alpha * (1 + way * (A.shape[0] ** 0.5 - 1)))

    assert check({"lora_forward": forward}) is False
    assert "no known mistake fits" in failures(capsys)["lora_forward"]


def test_float32_in_a_float64_run_is_told_which_option_it_wants(capsys):
    """A right answer in float32 fails in float64, with the option to give, and a wrong one is not sent there."""
    def forward(x, W0, A, B, alpha):
        return numpy_only.lora_forward(*(v.astype(np.float32) for v in (x, W0, A, B)), alpha)

    assert check({"lora_forward": forward}) is False
    assert "right to float32's precision: run with --dtype float32" in failures(capsys)["lora_forward"]
    assert check({"lora_forward": forward}, "float32") is True
    capsys.readouterr()
    for wrong in (lambda *given: 1.001 * forward(*given),
                  lambda *given: (1.001 if given[-1] == 12 else 1) * forward(*given)):  # in one case alone
        assert check({"lora_forward": wrong}) is False
        assert "no known mistake fits" in failures(capsys)["lora_forward"]


@pytest.mark.parametrize("name", sorted(functions_of(numpy_only)))
def test_an_error_a_little_beyond_the_tolerance_fails(name):
    """Twice the tolerance on one output of one case is too much, and half of it is not."""
    cases = VECTORS[name]["cases"]
    for i, (output, bound) in [(i, item) for i, case in enumerate(cases) for item in case["bound"].items()]:
        for factor, passes in (2.0, False), (0.5, True):
            answers = iter(enumerate(cases))

            def off(*_, i=i, output=output, bound=bound, factor=factor, answers=answers):
                n, case = next(answers)
                parts = {key: np.array(value) for key, value in case["outputs"].items()}
                if n == i:
                    u = VECTORS[name]["roundoff"][case.get("dtype", "float64")]
                    parts[output] = parts[output] + factor * (bound * u or 1e-30 * (factor > 1))
                parts = [part.astype(case.get("dtype", "float64")) for part in parts.values()]
                return parts[0] if len(parts) == 1 else parts

            if bound or name != "merge_bf16":  # 1e-30 is lost in float32
                assert check({name: off}) is passes, (cases[i]["name"], output)


# ---- The command line ------------------------------------------------------------------------------------------------


def shell(folder, *flags, block=("torch",)):
    """run.py in a process of its own, started in folder, to which the blocked modules do not exist."""
    program = (f"import sys, runpy; sys.modules.update(dict.fromkeys({block}))\n"
               f"sys.argv[0] = {str(HERE / 'run.py')!r}; runpy.run_path(sys.argv[0], run_name='__main__')")
    return subprocess.run([sys.executable, "-W", "error", "-c", program, *map(str, flags)], cwd=folder, text=True,
                          encoding="utf-8", capture_output=True)


def test_run_needs_no_torch_and_no_repository(tmp_path):
    """Where torch cannot be imported, run.py checks a module of the folder that it was started in; here 9 pass."""
    (tmp_path / "mine.py").write_text((HERE / "examples" / "numpy_only.py").read_text(encoding="utf-8"), "utf-8")
    done = shell(tmp_path, "--impl", "mine", block=("torch", "safetensors", "regex", "lora_alpha", "hf"))
    assert (done.returncode, done.stderr) == (0, "") and "9 passed, 0 failed, 1 not offered" in done.stdout
    imported = re.findall(r"^\s*(?:import|from) (\w+)", (HERE / "run.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(imported) - sys.stdlib_module_names == {"numpy", "regex", "safetensors", "tests"}  # tests: the docstring


def test_the_exit_status_says_what_happened(tmp_path, capsys, monkeypatch):
    """0: what is offered passes; 1: something fails, or nothing is offered; 2, with one line: no such module."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    Path("one_right.py").write_text("def lora_scaling(rank, alpha):\n    return alpha / rank\n")
    Path("one_wrong.py").write_text("from one_right import *\ndef alpha_for_rank(rank, c):\n    return c * rank\n")
    Path("nothing.py").write_text("merge = 3\n")
    Path("broken.py").write_text("import no_such_thing\n")
    Path("leaves.py").write_text("import sys; sys.exit(0)\n")
    for name, status in ("one_right", 0), ("one_right.py", 0), ("one_wrong", 1), ("one_wrong.py", 1), ("nothing", 1):
        assert main(["--impl", name]) == status
        assert capsys.readouterr().err == ""
    for flags in (["--impl", "missing"], ["--impl", "missing.py"], ["--impl", "broken"], ["--impl", "leaves"], [],
                  ["--impl", "one_right", "--base", "x"], ["--adapter", "x", "--base", "x"],
                  ["--impl", "one_right", "--dtype", "bfloat16"], ["--dtype", "float16"], ["--imp", "one_right"],
                  ["--adapter", "x", "--base", "x", "--logits", "x"]):
        with pytest.raises(SystemExit) as stop:
            main(flags)
        out = capsys.readouterr()
        assert stop.value.code == 2 and out.out == "" and out.err.count("\n") == 1 and out.err.startswith("run.py: ")
    done = shell(tmp_path, "--impl", "missing")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert shell(tmp_path, "--impl", "one_wrong").returncode == 1


# ---- Adapters and logits ---------------------------------------------------------------------------------------------


@torch.no_grad()
def folders(folder, rank=4, dtype=torch.float32, s=None, **options):
    """A base, an adapter and the logits of a tiny GPT, written by hf.py; s: what the logits are computed with."""
    config = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, max_position_embeddings=64)
    model = GPT(GPTConfig(**{**config, **options}))
    generator = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        p.copy_(torch.rand(p.shape, generator=generator) + 0.5 if "norm" in name else
                torch.randn(p.shape, generator=generator) * 0.2)
    save_model(model.to(dtype), folder / "base")
    inject_lora(model, rank)
    for layer in lora_layers(model).values():
        layer.lora_A.copy_(torch.randn(layer.lora_A.shape, generator=generator) * 0.1)
        layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.003)
    save_adapter(model, folder / "adapter")
    for layer in lora_layers(model).values():
        layer.scaling = s or layer.scaling
    idx = torch.randint(61, (2, 24), generator=generator)
    logits = {"idx": idx.tolist(), "logits": model(idx)[0].float().tolist()}
    (folder / "logits.json").write_text(json.dumps(logits))
    np.save(folder / "logits.npy", model(torch.arange(48).reshape(2, 24))[0].float().numpy())
    return [folder / "adapter", folder / "base", folder / "logits.json"]


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)


@pytest.mark.parametrize("options", [dict(), dict(rank=3, tie_word_embeddings=True, head_dim=6),
                                     dict(rope_scaling=LLAMA3),
                                     dict(attention_bias=True, num_key_value_heads=4, rms_norm_eps=0.1)])
def test_an_adapter_of_ours_passes(options, tmp_path, capsys):
    """Base, adapter and logits from lora_alpha.py and hf.py pass: GQA, tied, Llama 3's RoPE, Qwen2's biases."""
    adapter, base, logits = folders(tmp_path, **options)
    assert main(["--adapter", str(adapter), "--base", str(base), "--logits", str(logits)]) == 0
    found = table(capsys)
    assert [found[name][0] for name in ("adapter_config", "adapter_tensors", "logits")] == ["PASS"] * 3
    assert f"s = {256 / options.get('rank', 4) ** 0.5:.9g}" in found["adapter_config"][1]
    assert check_adapter(adapter, base, tmp_path / "logits.npy")


def test_an_adapter_on_a_bfloat16_base_passes_in_bfloat16_only(tmp_path, capsys):
    """Logits computed in bfloat16 pass with --dtype bfloat16, which a wrong s does not, and fail as float32's."""
    paths = folders(tmp_path, dtype=torch.bfloat16)
    assert check_adapter(*paths, "bfloat16") and not check_adapter(*paths)
    assert not check_adapter(*folders(tmp_path, dtype=torch.bfloat16, s=256.0), "bfloat16")
    assert "likely: your s is alpha/sqrt(r)" in failures(capsys)["logits"]


@pytest.mark.parametrize("s, words", [
    (256.0, "your s is alpha/sqrt(r)"), (512.0, "alpha not divided by r"), (1.0, "s lost: 1 stands in its place"),
    (1e-9, "the adapter is not applied"), (2.0, "s is 2, the habit"), (128.0**2, "s applied twice"),
    (100.0, "your s is 100, the files say 128"), (128.25, "your s is 128.25, the files say 128")])
def test_logits_of_another_s_fail_and_the_s_is_named(s, words, tmp_path, capsys):
    """Logits that a wrong s made fail, with its name, or its value where it has none."""
    assert main([part for pair in zip(["--adapter", "--base", "--logits"], map(str, folders(tmp_path, s=s)))
                 for part in pair]) == 1
    found = failures(capsys)
    assert list(found) == ["logits"] and f"likely: {words}" in found["logits"]


def test_an_adapter_whose_config_says_another_s_fails(tmp_path, capsys):
    """The same files with another lora_alpha, or with use_rslora: the logits' own s is found."""
    paths = folders(tmp_path)
    for changes, says in (dict(lora_alpha=8), "2"), (dict(use_rslora=True), "256"):
        edit(paths[0] / "adapter_config.json", **{"lora_alpha": 512, "use_rslora": False, **changes})
        assert check_adapter(*paths) is False
        assert f"likely: your s is 128, the files say {says} " in failures(capsys)["logits"]
    edit(paths[0] / "adapter_config.json", lora_alpha=256, use_rslora=True)  # s = 256/√4, said in another way
    assert check_adapter(*paths) is True
    logits = np.load(tmp_path / "logits.npy")
    logits[1, 3, 5] += 0.1
    np.save(tmp_path / "logits.npy", logits)
    assert check_adapter(*paths[:2], tmp_path / "logits.npy") is False
    assert "no known mistake fits [logits[1, 3, 5] = " in failures(capsys)["logits"]


def test_an_adapters_files_are_checked_for_names_shapes_and_targets(tmp_path, capsys):
    """Halves exchanged or turned, another r, another name, a target without tensors, no file: FAIL, and why."""
    paths = folders(tmp_path)
    file, config = paths[0] / "adapter_model.safetensors", paths[0] / "adapter_config.json"
    right, written = load_file(file), config.read_text()
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    other = {name.replace("lora_A", "lora_X").replace("lora_B", "lora_A").replace("lora_X", "lora_B"): tensor
             for name, tensor in right.items()}
    for tensors, words in [
            (other, "likely: A and B exchanged"),
            ({k: t.T.contiguous() for k, t in right.items()}, "likely: A and B transposed"),
            ({**right, key: right[key] * math.nan}, "not finite"), ({}, "no tensor"),
            ({k: t for k, t in right.items() if k != key}, "model.layers.1.mlp.up_proj has not both lora_A and lora_B"),
            ({k: t for k, t in right.items() if "layers.1.mlp.up" not in k}, "differ in model.layers.1.mlp.up_proj"),
            ({k.removeprefix("base_model.model."): t for k, t in right.items()}, "is not of PEFT's form"),
            ({k.replace("up_proj", "embed_tokens"): t for k, t in right.items()}, "is not of PEFT's form")]:
        save_file(tensors, file)
        assert check_adapter(*paths) is False
        assert words in failures(capsys)["adapter_tensors"]
    save_file(right, file)
    for changes, name, words in [
            (dict(r=8), "adapter_tensors", "likely: r of the config is not that of the file"),
            (dict(target_modules=["q_proj"]), "adapter_tensors", "PEFT goes by the former"),
            (dict(peft_type="IA3"), "adapter_config", "want 'LORA'"),
            (dict(use_dora=True), "adapter_config", "use_dora"),
            (dict(lora_alpha=None), "adapter_config", "lora_alpha None"), (dict(r=0), "adapter_config", "r is 0")]:
        config.write_text(json.dumps({**json.loads(written), **changes}))
        assert check_adapter(*paths) is False
        assert words in failures(capsys)[name]
    for targets in "all-linear", r".*\.(self_attn|mlp)\..*_proj":
        config.write_text(json.dumps({**json.loads(written), "target_modules": targets}))
        assert check_adapter(*paths) is True
    file.unlink()
    assert check_adapter(*paths) is False and "No such file" in failures(capsys)["adapter_tensors"]
    config.write_text("{")
    assert check_adapter(*paths) is False and "adapter_config" in failures(capsys)


def test_what_cannot_be_checked_is_status_2(tmp_path, capsys):
    """No adapter folder, logits of another shape, ids that do not exist, another model type: one line, no verdict."""
    paths = folders(tmp_path)
    right = json.loads(paths[2].read_text())
    for wrong in ({"logits": right["logits"]}, {**right, "idx": [[61] * 24] * 2}, {**right, "idx": [[-1] * 24] * 2},
                  {**right, "idx": [[1]]}, {**right, "logits": [[[0.0]]]}, [], {**right, "idx": [[0.5] * 24] * 2}):
        paths[2].write_text(json.dumps(wrong))
        with pytest.raises(SystemExit) as stop:
            main(["--adapter", str(paths[0]), "--base", str(paths[1]), "--logits", str(paths[2])])
        out = capsys.readouterr()
        assert stop.value.code == 2 and out.out == "" and out.err.count("\n") == 1
    paths[2].write_text(json.dumps(right))
    with pytest.raises(ValueError, match="there is no such folder"):
        check_adapter(tmp_path / "none", *paths[1:])
    for changes in (dict(model_type="gpt2"), dict(hidden_act="gelu"), dict(rope_scaling={"rope_type": "yarn"}),
                    dict(sliding_window=8)):
        written = (paths[1] / "config.json").read_text()
        edit(paths[1] / "config.json", **changes)
        with pytest.raises(ValueError):
            check_adapter(*paths)
        (paths[1] / "config.json").write_text(written)


def test_the_adapter_check_needs_no_torch(tmp_path):
    """Where torch cannot be imported, files and logits are checked all the same: a bfloat16 base, in shards."""
    folders(tmp_path, dtype=torch.bfloat16)
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "model.safetensors").unlink()
    for n, names in enumerate([sorted(tensors)[:5], sorted(tensors)[5:]], 1):
        save_file({name: tensors[name] for name in names}, tmp_path / "base" / f"model-0000{n}-of-00002.safetensors")
    done = shell(tmp_path, "--adapter", "adapter", "--base", "base", "--logits", "logits.json", "--dtype", "bfloat16")
    assert (done.returncode, done.stderr) == (0, "") and "3 passed" in done.stdout


def test_the_numpy_gpt_reaches_the_first_loss_of_the_trace():
    """The forward pass of run.py gives the loss before the first step in train_gpt.json, to float64's precision."""
    case = VECTORS["train_gpt"]["cases"][0]
    given = {key: runner.to_numpy(value, "float64") for key, value in case["inputs"].items()}
    adapter = given["adapter"]
    layers = {key.split(".", 2)[2].removesuffix(".lora_A.weight"): (A, adapter[key.replace("lora_A", "lora_B")])
              for key, A in adapter.items() if "lora_A" in key}
    assert len(layers) == 14
    logits = runner.gpt_logits(given["config"], given["weights"], given["idx"][0], layers, given["alpha"] / 3)
    targets = given["targets"][0]
    picked = np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)[..., 0]
    loss = (np.log(np.exp(logits).sum(-1)) - picked)[targets != -100].mean()
    assert math.isclose(loss, case["outputs"]["losses"][0], rel_tol=1e-10)

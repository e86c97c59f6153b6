"""For every test: one thread, the same Hypothesis examples on every run, a toy base with toy data, and commands run
in this process."""

import contextlib
import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # of child processes
torch.set_num_threads(1)
# No deadline: torch's first call takes longer than Hypothesis's 200 ms. Derandomized: a failure comes back on a rerun.
settings.register_profile("default-run", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("default-run")

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=["few", pytest.param("many", marks=pytest.mark.thorough)])
def fuzz(request):
    """@fuzz(n) under @given: n examples with -m thorough, a quarter of them without."""
    return lambda n: settings(max_examples=n if request.param == "many" else n // 4)


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """toy.base: a random Llama of two layers and width 32 with data/base's tokenizer and context, in float32.
    toy.data: a folder of 24 problems to train on, 6 for validation and 6 for test, of data/equations."""
    from hf import copy_tokenizer, save_model
    from lora_alpha import GPT, GPTConfig

    base, data = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("data")
    model = GPT(GPTConfig(vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                          num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
                          tie_word_embeddings=True, eos_token_id=(511,)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:  # peaked attention and logits: no two tokens are as likely but for rounding
                p.copy_(0.4 * torch.randn(p.shape, generator=generator))
    save_model(model, base)
    copy_tokenizer(ROOT / "data/base", base)
    for name, count in (("train", 24), ("val", 6), ("test", 6)):
        lines = (ROOT / f"data/equations/{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        lines = lines[:: len(lines) // count][:count]  # of every level
        (data / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return SimpleNamespace(base=base, data=data)


@pytest.fixture(scope="session")
def command():
    """command(script, *flags, cwd, **others): .returncode, .stdout and .stderr of a script's main, in this process.
    others: flags with the values that they have unless they are among the flags."""
    def command(script, *flags, cwd, **others):
        out, err, status = io.StringIO(), io.StringIO(), 0
        for name, value in others.items():
            flags = flags if f"--{name}" in flags else (f"--{name}", value, *flags)
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.chdir(cwd)
            patch.setattr(sys, "argv", [Path(script.__file__).name, *map(str, flags)])
            try:
                script.main()
            except SystemExit as end:
                status = end.code or 0
        assert "is given twice" not in err.getvalue(), "a mistake of the test's own"
        return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())
    return command


@pytest.fixture
def run(monkeypatch, capfd):
    """run(module, *args): (exit status, stdout, stderr) of a prepare.py's main, its child processes included."""
    def run(module, *args):
        monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, args)])
        capfd.readouterr()
        try:
            module.main()
            status = 0
        except SystemExit as end:
            status = end.code
        return status, *capfd.readouterr()
    return run

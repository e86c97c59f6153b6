"""Numbers and cells that no run can use: each is refused in one line that names it, before or after the training."""

import math

import pytest
import torch

import eval_pass1
import train
from hf import load_model, save_model
from lora_alpha import sample
from problems import load_problems


@pytest.mark.parametrize("flags, said", [
    (("--rank", 10**20), "--rank 100000000000000000000: it must be 1 or more, and 10**9 at most"),
    (("--steps", 10**23), "--steps"), (("--batch-size", 10**20), "--batch-size"),
    (("--device", "hpu"), "--device hpu"),
    (("--alpha", 1e-320), "s = alpha/r is 0 in float32"), (("--c", 1e-45), "s = alpha/r is 0 in float32"),
    (("--lr", 1e30, "--steps", 1), "not finite after step 1"),
    (("--lr", 1e37, "--steps", 1), "not finite after step 1")])
def test_a_number_that_no_run_can_use(flags, said, toy, command, tmp_path):
    done = command(train, *flags, cwd=tmp_path, base=toy.base, data=toy.data, steps=2, out="o", **{"eval-problems": 0})
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "o/run.json").exists() and not (tmp_path / "o/adapter_config.json").exists()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_base_with_a_number_that_is_not_finite(number, toy, command, tmp_path):
    """It is named by its tensor, in training and evaluation."""
    model = load_model(toy.base)
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = number
    save_model(model, tmp_path / "b")
    for name in ("base.tiktoken", "spec.json"):
        (tmp_path / "b" / name).write_bytes((toy.base / name).read_bytes())
    for script, flags in (train, ["--data", toy.data]), (eval_pass1, ["--data", toy.data, "--adapter", "none"]):
        done = command(script, "--base", tmp_path / "b", *flags, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "tensor model.layers.1.mlp.up_proj.weight holds numbers that are not finite" in done.stderr


@pytest.mark.parametrize("top_p", [1e-46, 1e-320, 1e-9, 1e-3])
def test_the_smallest_nucleus_is_the_likeliest_token(top_p):
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(logits, 1.0, top_p, torch.rand(50)), logits.argmax(-1))


@pytest.mark.parametrize("text, said", [
    ('problem,solution\n1,"a\n2,b\n', "not CSV"), ("problem,solution\n1,a,b\n", "line 2: more cells than columns"),
    ("problem,problem,solution\n1,2,a\n", "the column 'problem' stands twice")])
def test_a_csv_that_would_lose_cells(text, said, tmp_path):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        load_problems(tmp_path / "p.csv")


def test_a_seed_of_any_size_asks(toy, command, tmp_path):
    flags = "--base", toy.base, "--adapter", "none", "--ask", "1", "--temperature", 1, "--max-new-tokens", 4
    done = [command(eval_pass1, *flags, "--seed", seed, cwd=tmp_path).stdout for seed in (3, 2**64 + 5, 3)]
    assert done[0] == done[2] != done[1]

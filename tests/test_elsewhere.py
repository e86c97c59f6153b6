"""What a run writes, read by other programs: python -m pytest tests/test_elsewhere.py

Two thorough tests need more than requirements-dev.txt, and are skipped without it:
    PEFT_PYTHON=/path/to/python    a Python that has another version of PEFT, for example an environment in which
                                   `pip install peft==0.10.0 transformers==4.40.2 "numpy<2" torch` was run
    LLAMA_CPP=/path/to/llama.cpp   vendor/llama.cpp of the unpacked source package of llama-cpp-python (`pip download
                                   --no-deps --no-binary llama-cpp-python llama-cpp-python`); pip install sentencepiece
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

import train
from hf import copy_tokenizer, load_adapter, load_model, save_model
from lora_alpha import GPT, GPTConfig

REAL = Path(__file__).parents[2] / "shared/real/tokenizers"
PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def finished(toy, command, tmp_path_factory):
    """The folder of a run of rank 8, whose alpha, 256·√8, is no whole number; out/merged beside the adapter."""
    out = tmp_path_factory.mktemp("run") / "out"
    done = command(train, "--rank", 8, "--steps", 3, "--batch-size", 4, "--eval-problems", 0, "--lr", 1e-2, "--merge",
                   "--out", out, cwd=out.parent, base=toy.base, data=toy.data)
    assert done.returncode == 0, done.stderr
    (out / "training.json").write_text('{"base": "x", "prompt": "{problem}"}')  # no file of PEFT's
    return out


IDX = torch.arange(24).reshape(2, 12)
LOAD = """
import sys, torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
idx = torch.arange(24).reshape(2, 12)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
loaded = AutoModelForCausalLM.from_pretrained(base).eval()
loaded.load_adapter(adapter)
with torch.no_grad():
    save_file({"wrapped": model(idx).logits, "loaded": loaded(idx).logits}, out)
"""


def far(a, b):
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.fixture(scope="module")
def ours(toy, finished):
    """The logits of base and adapter here."""
    base = load_model(toy.base, torch.float32)
    with torch.no_grad():
        before = base(IDX)[0].numpy()
        after = load_adapter(base, finished).eval()(IDX)[0].numpy()
    assert far(before, after) > 1e-2
    return after


@pytest.mark.thorough
def test_another_peft_loads_the_adapter(toy, finished, ours, tmp_path):
    """PeftModel.from_pretrained and transformers' load_adapter give the logits that we have."""
    python = os.environ.get("PEFT_PYTHON")
    if not python:
        pytest.skip("PEFT_PYTHON names no Python with another PEFT")
    done = subprocess.run([python, "-c", LOAD, toy.base, finished, tmp_path / "x"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for logits in load_file(tmp_path / "x").values():
        assert far(logits, ours) <= 2e-5


def test_transformers_loads_the_adapter_and_the_merged_folder(toy, finished, ours):
    """By load_adapter and from_pretrained, with our logits; the tokenizer's files are the base's byte for byte."""
    loaded = AutoModelForCausalLM.from_pretrained(toy.base).eval()
    loaded.load_adapter(str(finished))
    merged = AutoModelForCausalLM.from_pretrained(finished / "merged").eval()
    with torch.no_grad():
        assert far(loaded(IDX).logits.numpy(), ours) <= 2e-5 and far(merged(IDX).logits.numpy(), ours) <= 2e-5
    names = {path.name for path in toy.base.iterdir()} - {"config.json", "model.safetensors"}
    assert {"base.tiktoken", "spec.json"} <= names
    assert all((finished / "merged" / name).read_bytes() == (toy.base / name).read_bytes() for name in names)


def test_the_adapter_has_what_vllm_reads(finished):
    """Compared with vLLM's source, not run. At the commits named, of vllm-project/vllm:

    peft_helper.py (e745baff), PEFTHelper: r, lora_alpha and target_modules are required; s is lora_alpha / r, for all
    layers alike, as rank_pattern and alpha_pattern are not read; validate_legal refuses modules_to_save, use_dora, bias
    and an r above max_lora_rank. config/lora.py (a78dc92f): its default is 16. utils.py (0fd15707),
    parse_fine_tuned_lora_name: base_model.model.NAME.lora_A.weight. lora_model.py (532cc258), from_local_checkpoint:
    adapter_model.safetensors, the last word of NAME one of the model's linear layers; A and B are taken as they are.
    """
    config = json.loads((finished / "adapter_config.json").read_text())
    assert config["r"] == 8 and config["lora_alpha"] == 256 * 8**0.5 and isinstance(config["target_modules"], list)
    assert not config.keys() & {"modules_to_save", "use_dora", "use_rslora", "bias", "rank_pattern", "alpha_pattern"}
    tensors = load_file(finished / "adapter_model.safetensors")
    linear = load_file(finished / "merged/model.safetensors")
    for name, tensor in tensors.items():
        head, layer, half, weight = name[: len(PREFIX)], *name[len(PREFIX) :].rsplit(".", 2)
        assert (head, weight) == (PREFIX, "weight") and half in ("lora_A", "lora_B")
        assert layer.split(".")[-1] in config["target_modules"]
        rows, columns = linear[f"{layer}.weight"].shape
        assert tensor.shape == ((8, columns) if half == "lora_A" else (rows, 8))
    assert set(config["target_modules"]) == GGUF.keys()  # every linear layer of a Llama


# ---- llama.cpp's converters ------------------------------------------------------------------------------------------

GGUF = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
        "up_proj": "ffn_up", "down_proj": "ffn_down"}
HEAD = 16


def interleaved(name: str, weight, kind: str):
    """The rows of a Llama's q and k in llama.cpp's order: row 2j + h of a head is Hugging Face's row h·HEAD/2 + j."""
    if kind != "llama" or name.split(".")[-1] not in ("q_proj", "k_proj"):
        return weight
    order = [row + h * HEAD // 2 + j for row in range(0, len(weight), HEAD) for j in range(HEAD // 2) for h in (0, 1)]
    return weight[order]


def convert(script: str, *arguments) -> gguf.GGUFReader:
    done = subprocess.run([sys.executable, Path(os.environ["LLAMA_CPP"], script), "--outtype", "f32", *arguments],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return gguf.GGUFReader(arguments[arguments.index("--outfile") + 1])


@pytest.mark.thorough
@pytest.mark.skipif(not REAL.is_dir(), reason="the real tokenizers are not here")
@pytest.mark.parametrize("kind, tokenizer", [("llama", "smollm2"), ("qwen3", "qwen3")])
def test_llama_cpp_converts_adapter_and_merged_folder(kind, tokenizer, toy, command, tmp_path):
    """alpha, which is no whole number, and every tensor stand in the GGUF files, to the last bit of float32."""
    if not os.environ.get("LLAMA_CPP"):
        pytest.skip("LLAMA_CPP names no folder of llama.cpp")
    pytest.importorskip("sentencepiece", reason="convert_hf_to_gguf.py imports it")
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=151_936 if kind == "qwen3" else 49_152, hidden_size=32, intermediate_size=48,
                          num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=HEAD,
                          max_position_embeddings=1024, qk_norm=kind == "qwen3", tie_word_embeddings=True))
    save_model(model, tmp_path / "base")
    copy_tokenizer(REAL / tokenizer, tmp_path / "base")
    done = command(train, "--rank", 8, "--alpha", 724.07, "--steps", 2, "--batch-size", 2, "--eval-problems", 0,
                   "--merge", "--out", "o", cwd=tmp_path, base="base", data=toy.data)
    assert done.returncode == 0, done.stderr

    adapter = convert("convert_lora_to_gguf.py", "--base", tmp_path / "base", "--outfile", tmp_path / "a.gguf",
                      tmp_path / "o")
    assert adapter.fields["adapter.lora.alpha"].contents() == np.float32(724.07)
    assert adapter.fields["general.architecture"].contents() == kind
    found = {tensor.name: tensor.data for tensor in adapter.tensors}
    tensors = load_file(tmp_path / "o/adapter_model.safetensors")
    assert len(found) == len(tensors) == 28
    for name, tensor in tensors.items():
        layer, half, _ = name.removeprefix(PREFIX).rsplit(".", 2)
        tensor = interleaved(layer, tensor, kind) if half == "lora_B" else tensor
        number, leaf = layer.split(".")[2], layer.split(".")[-1]
        assert np.array_equal(found[f"blk.{number}.{GGUF[leaf]}.weight.{half.lower()}"], tensor), name

    merged = convert("convert_hf_to_gguf.py", "--outfile", tmp_path / "m.gguf", tmp_path / "o/merged")
    found = {tensor.name: tensor.data for tensor in merged.tensors}
    tensors = load_file(tmp_path / "o/merged/model.safetensors")
    assert len(found) == len(tensors)
    assert np.array_equal(found["token_embd.weight"], tensors["model.embed_tokens.weight"])
    for name, tensor in tensors.items():
        leaf = name.split(".")[-2]
        if leaf in GGUF:
            here = found[f"blk.{name.split('.')[2]}.{GGUF[leaf]}.weight"]
            assert np.array_equal(here, interleaved(name.removesuffix(".weight"), tensor, kind)), name

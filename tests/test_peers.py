"""The peers are what they are called, against PEFT and LoRA-α: python -m pytest tests/test_peers.py"""

import json

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import hf
import train as script
from hf import load_adapter, load_model, save_adapter, save_model
from lora_alpha import GPT, GPTConfig, inject_lora, lora_layers, train

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64)
IDX = torch.randint(61, (3, 24), generator=torch.Generator().manual_seed(1))
TARGETS = torch.where(torch.rand(3, 24, generator=torch.Generator().manual_seed(2)) < 0.7, IDX.roll(-1, 1), -100)
METHODS = {"lora-alpha": dict(lora_alpha=512.0), "lora": dict(lora_alpha=8), "lora+": dict(lora_alpha=8),  # rank 4
           "rslora": dict(lora_alpha=16, use_rslora=True), "pissa": dict(lora_alpha=4, init_lora_weights="pissa")}


@torch.no_grad()
def tiny(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    model = GPT(GPTConfig(**SIZES))
    for p in model.parameters():
        p.copy_(torch.rand(p.shape, generator=generator) + 0.5 if p.dim() == 1
                else torch.randn(p.shape, generator=generator) * 0.2)
    return model.to(dtype)


@torch.no_grad()
def shake(model, std=0.05):
    generator = torch.Generator().manual_seed(3)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) * std)
    return model


@torch.no_grad()
def logits(model):
    found = model(IDX)
    return found[0] if isinstance(found, tuple) else found.logits


def far(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def changes(model):
    return {name: layer.scaling * layer.lora_B.detach() @ layer.lora_A.detach()
            for name, layer in lora_layers(model).items()}


# ---- One step against PEFT -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_one_step_is_that_of_peft(method):
    """In float64, from the same A and B (B not 0), every A and B is PEFT's after a step to a relative 1e-9.

    PEFT's layers stand in this GPT: transformers' norms and softmax are float32 in a float64 model as well.
    """
    theirs = peft.inject_adapter_in_model(peft.LoraConfig(r=4, target_modules=ALL, **METHODS[method]), tiny())
    theirs = shake(theirs.double())
    ours = inject_lora(tiny(), 4, script.method_alpha(method, 4, None, None), dtype=torch.float64).double()
    peers = {name: module for name, module in theirs.named_modules() if hasattr(module, "lora_A")}
    for name, layer in lora_layers(ours).items():
        assert layer.scaling == pytest.approx(peers[name].scaling["default"], rel=1e-15)
        layer.base.weight.data.copy_(peers[name].base_layer.weight)  # PiSSA's residual
        layer.lora_A.data.copy_(peers[name].lora_A["default"].weight)
        layer.lora_B.data.copy_(peers[name].lora_B["default"].weight)
    ratio = 16.0 if method == "lora+" else 1.0
    start = {name: (layer.lora_A.detach().clone(), layer.lora_B.detach().clone())
             for name, layer in lora_layers(ours).items()}
    train(ours, [(IDX, TARGETS)], steps=1, lr=1e-3, lr_ratio=ratio)
    trained = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = (create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, weight_decay=0.0)
                 if method == "lora+" else torch.optim.AdamW(trained, 1e-3, weight_decay=0.0))
    theirs(IDX, TARGETS)[1].backward()
    optimizer.step()
    assert peers.keys() == lora_layers(ours).keys() and len(peers) == 14
    for name, layer in lora_layers(ours).items():
        A, B = peers[name].lora_A["default"].weight, peers[name].lora_B["default"].weight
        assert far(layer.lora_A - start[name][0], A - start[name][0]) < 1e-9
        assert far(layer.lora_B - start[name][1], B - start[name][1]) < 1e-9
        assert (layer.lora_B - start[name][1]).abs().max().item() == pytest.approx(1e-3 * ratio, rel=1e-3)


# ---- LoRA+ -----------------------------------------------------------------------------------------------------------


def run(alpha, lr, lr_ratio=1.0, B=1.0, **options):
    """The changes s·B·A after 12 steps in float64 from the same A and from B times the same random matrix."""
    torch.manual_seed(0)
    model = shake(inject_lora(tiny(torch.float64), 4, alpha, dtype=torch.float64))
    for layer in lora_layers(model).values():
        layer.lora_B.data *= B
    train(model, [(IDX, TARGETS)] * 12, steps=12, lr=lr, **{"eps": 0.0, **options}, lr_ratio=lr_ratio)
    return changes(model)


@pytest.mark.parametrize("k", [8.0, 3.0])
def test_lora_plus_is_lora_alpha(k):
    """alpha·k is LoRA+ at the ratio k, and no other learning rate, under Adam with eps 0 and no decay."""
    alpha = run(8 * k, 1e-3)
    plus = run(8, 1e-3, lr_ratio=k, B=k)
    for name in alpha:
        assert far(plus[name], alpha[name]) < 1e-6  # the loss is taken in float32
    assert max(far(change, alpha[name]) for name, change in run(8, k * 1e-3, B=k).items()) > 1e-2


@pytest.mark.parametrize("options", [dict(grad_clip=0.01), dict(weight_decay=0.5)], ids=str)
def test_what_breaks_the_equivalence(options):
    """Clipping by the global norm and weight decay see alpha, so LoRA+ and LoRA-α part."""
    alpha, plus = run(64, 1e-3, **options), run(8, 1e-3, lr_ratio=8.0, B=8.0, **options)
    assert max(far(plus[name], alpha[name]) for name in alpha) > 1e-4


def test_a_learning_rate_of_b_that_is_none_is_refused():
    """lr_ratio must be a finite number above 0; the lr of a row is A's whatever is frozen."""
    for ratio in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="lr_ratio"):
            run(8, 1e-3, lr_ratio=ratio)
    model = inject_lora(tiny(), 4)
    for layer in lora_layers(model).values():
        layer.lora_A.requires_grad_(False)
    assert train(model, [(IDX, TARGETS)], steps=1, lr=1e-3, lr_ratio=16.0)[0]["lr"] == 1e-3


# ---- PiSSA -----------------------------------------------------------------------------------------------------------


def test_pissa_starts_at_the_base_with_its_principal_directions():
    """The model is unchanged, s·B·A is W0's best approximation of rank r, and A and B share the singular values."""
    model = tiny()
    before, weights = logits(model), dict(model.state_dict())
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    inject_lora(model, 4, 12.0)
    script.pissa_init(model)
    assert far(logits(model), before) < 1e-5
    for name, layer in lora_layers(model).items():
        singular = torch.linalg.svdvals(weights[f"{name}.weight"])
        rest = torch.linalg.svdvals(weights[f"{name}.weight"] - changes(model)[name])
        assert torch.allclose(rest[0], singular[4], rtol=1e-4) and torch.allclose(rest[:-4], singular[4:], atol=1e-4)
        assert torch.allclose(layer.lora_A @ layer.lora_A.T, layer.lora_B.T @ layer.lora_B, atol=1e-4)


def test_pissa_starts_as_peft_does():
    """A, B and the residual are PEFT's, up to the sign that a singular vector has free."""
    llama = LlamaForCausalLM(LlamaConfig(**SIZES, rms_norm_eps=1e-5))
    llama.load_state_dict(tiny().state_dict())
    theirs = peft.get_peft_model(llama, peft.LoraConfig(r=4, lora_alpha=12, target_modules=ALL,
                                                        init_lora_weights="pissa"))
    model = inject_lora(tiny(), 4, 12.0)
    script.pissa_init(model)
    for name, layer in lora_layers(model).items():
        peer = theirs.base_model.model.get_submodule(name)
        assert far(layer.base.weight, peer.base_layer.weight) < 1e-5
        assert far(layer.lora_A.abs(), peer.lora_A["default"].weight.abs()) < 1e-4
        assert far(layer.lora_B.abs(), peer.lora_B["default"].weight.abs()) < 1e-4


def test_a_trained_pissa_is_an_ordinary_adapter_of_twice_the_rank(tmp_path):
    """Against the original base, in hf.py and in PEFT, it gives the trained model's logits."""
    save_model(tiny(), tmp_path / "base")
    model = inject_lora(load_model(tmp_path / "base"), 4, 12.0)
    start = script.pissa_init(model)
    train(model, [(IDX, TARGETS)] * 5, steps=5, lr=1e-2)
    trained = logits(model)
    assert far(trained, logits(tiny())) > 1e-2
    script.pissa_to_lora(model, start)
    assert far(logits(model), trained) < 1e-5
    save_adapter(model, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], "init_lora_weights" in config) == (8, 24, False)
    assert far(logits(load_adapter(load_model(tmp_path / "base"), tmp_path / "adapter")), trained) < 1e-5
    llama = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    assert far(logits(peft.PeftModel.from_pretrained(llama, tmp_path / "adapter")), trained) < 1e-5


# ---- By the command line ---------------------------------------------------------------------------------------------


def test_each_peer_is_one_flag(tmp_path, toy, command):
    """--method lora+ and pissa train, say what they do, and write adapters that load."""
    for method, rank, alpha, words in [("lora+", 4, 8, "B's learning rate 16 times"), ("pissa", 8, 8, "alpha 4 = r")]:
        done = command(script, "--base", toy.base, "--data", toy.data, "--method", method, "--rank", 4, "--steps", 3,
                       "--eval-problems", 0, "--batch-size", 4, "--out", method, cwd=tmp_path)
        assert done.returncode == 0 and words in done.stdout
        config = json.loads((tmp_path / method / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (rank, alpha)
        tensors = load_file(tmp_path / method / "adapter_model.safetensors")
        assert all(tensor.shape[0 if "lora_A" in key else 1] == rank for key, tensor in tensors.items())
        load_adapter(load_model(toy.base), tmp_path / method)
    assert json.loads((tmp_path / "lora+/run.json").read_text())["lr_ratio"] == 16
    assert json.loads((tmp_path / "pissa/run.json").read_text())["first_step_ratio"] is None  # B is not 0


@pytest.mark.parametrize("flags, word", [
    (["--method", "lora", "--lr-ratio", "4"], "--lr-ratio belongs to --method lora+"),
    (["--method", "lora+", "--lr-ratio", "0"], "above 0"), (["--method", "lora+", "--lr-ratio", "nan"], "finite"),
    (["--method", "pissa", "--rank", "5000"], "singular vectors")], ids=str)
def test_a_peers_mistake_is_one_line_and_status_2(flags, word, tmp_path, toy, command):
    """A flag without its method, a ratio that is none, more singular vectors than there are."""
    done = command(script, "--base", toy.base, "--data", toy.data, *flags, "--steps", 1, cwd=tmp_path)
    assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype, least, most", [(torch.float32, 0.99, 1.0), (torch.bfloat16, 0.1, 0.9)], ids=str)
def test_merge_writes_a_whole_folder_and_says_what_changed(dtype, least, most, tmp_path, capsys):
    """transformers gives the adapted model's logits, the base's other files are there, and bfloat16 loses changes."""
    base = tmp_path / "base"
    save_model(tiny(dtype), base)
    for name in ("base.tiktoken", "spec.json"):
        (base / name).write_bytes((script.HERE / "data/base" / name).read_bytes())
    (base / "generation_config.json").write_text('{"eos_token_id": [3, 4],  "top_p": 0.9}')
    config = json.loads((base / "config.json").read_text()) | {"model_type": "mistral", "sliding_window": 48}
    (base / "config.json").write_text(json.dumps(config | {"architectures": ["MistralForCausalLM"]}))
    model = inject_lora(load_model(base), 4, 8.0)
    shake(model, std=0.003)
    save_adapter(model, tmp_path / "adapter")
    script.main(["merge", "--base", str(base), "--adapter", str(tmp_path / "adapter"), "--out",
                 str(tmp_path / "merged")])
    share = float(capsys.readouterr().out.split(": ")[-1].split("%")[0]) / 100
    merged = load_file(tmp_path / "merged/model.safetensors")
    moved = torch.cat([(merged[f"{name}.weight"] != layer.base.weight).flatten()
                       for name, layer in lora_layers(model).items()])
    assert share == pytest.approx(moved.double().mean().item(), abs=1e-4) and least <= share <= most
    for name in ("base.tiktoken", "spec.json", "generation_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()
    assert json.loads((tmp_path / "merged/config.json").read_text()) == json.loads((base / "config.json").read_text())
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert peer.dtype == dtype
    assert far(logits(peer.float()), logits(model.float())) < (1e-5 if dtype == torch.float32 else 0.05)


def no_room(tensors, path, metadata):
    raise SafetensorError("no room on the disk")


def test_a_merge_that_fails_is_one_line_and_writes_nothing(tmp_path, capsys, monkeypatch):
    """A full disk, a folder that holds something, a base that is none, an adapter of another model."""
    save_model(tiny(), tmp_path / "base")
    save_adapter(inject_lora(tiny(), 4), tmp_path / "adapter")
    save_adapter(inject_lora(torch.nn.Sequential(torch.nn.Linear(3, 3)), 4), tmp_path / "other")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    monkeypatch.setattr(hf, "save_file", no_room)
    for base, adapter, out, word in [("base", "adapter", "full", "no room"), ("base", "adapter", "base", "not an"),
                                     ("x", "adapter", "out", "x: there is no"), ("base", "other", "out", "lora_A")]:
        with pytest.raises(SystemExit) as stop:
            script.main(["merge", "--base", str(tmp_path / base), "--adapter", str(tmp_path / adapter),
                         "--out", str(tmp_path / out)])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and word in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.suffix != ".tmp"} == before

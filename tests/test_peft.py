"""load_adapter and save_adapter held against PEFT itself, its configs old and new, its files, and what is refused:
python -m pytest tests/test_peft.py"""

import copy
import dataclasses
import functools
import json
import math
import tempfile
import time
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from hf import load_adapter, save_adapter
from lora_alpha import GPT, GPTConfig, LoRALinear, inject_lora, lora_layers

# PEFT warns of the odd configs below, which are odd on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::RuntimeWarning:peft")

SIZES = dict(vocab_size=31, hidden_size=16, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=32)
IDX = torch.randint(31, (2, 12), generator=torch.Generator().manual_seed(1))
LEAVES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PREFIX = "base_model.model."
KEY = PREFIX + "model.layers.0.self_attn.q_proj.lora_{}.weight"


@torch.no_grad()
def shake(model):
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.copy_(noise * 0.25 if p.dim() > 1 else 1 + noise * 0.1)
    return model


@functools.cache
def base(layers=2):
    model = shake(GPT(GPTConfig(**SIZES, num_hidden_layers=layers))).eval()
    c = model.config
    llama = LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=layers, head_dim=c.head_dim,
                                         rms_norm_eps=c.rms_norm_eps, tie_word_embeddings=False,
                                         rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta}))
    llama.load_state_dict(model.state_dict())
    return model, llama.eval()


def gpt(layers=2):
    return copy.deepcopy(base(layers)[0])


def llama(layers=2):
    return copy.deepcopy(base(layers)[1])


@torch.no_grad()
def logits(model):
    out = model.eval()(IDX)
    return out[0] if isinstance(out, tuple) else out.logits


def far(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def peft_layers(wrapped):
    return {name.removeprefix(PREFIX): layer for name, layer in wrapped.named_modules() if isinstance(layer, LoraLayer)}


@torch.no_grad()
def fill(wrapped, seed=3):
    """Draws A and B of every layer so that s·B·A is about a third of the weight, whatever s and r are."""
    generator = torch.Generator().manual_seed(seed)
    for layer in peft_layers(wrapped).values():
        std = 0.3 / math.sqrt(abs(layer.scaling["default"]) * layer.r["default"])
        for half in (layer.lora_A, layer.lora_B):
            weight = half["default"].weight
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)
    return wrapped


def assert_same(ours, wrapped):
    """Same adapted layers, same rank and scaling in each, same logits."""
    mine, theirs = lora_layers(ours), peft_layers(wrapped)
    assert mine.keys() == theirs.keys()
    assert {n: x.rank for n, x in mine.items()} == {n: x.r["default"] for n, x in theirs.items()}
    assert {n: x.scaling for n, x in mine.items()} == pytest.approx(
        {n: x.scaling["default"] for n, x in theirs.items()}, rel=1e-12)
    assert far(logits(ours), logits(wrapped)) <= 2e-5


def there_and_back(layers, options):
    """PEFT saves, load_adapter reads; save_adapter saves, PEFT reads: one function all the way."""
    wrapped = fill(peft.get_peft_model(llama(layers), peft.LoraConfig(task_type="CAUSAL_LM", **options)))
    with tempfile.TemporaryDirectory() as folder:
        wrapped.save_pretrained(f"{folder}/theirs", save_embedding_layers=False)
        ours = load_adapter(gpt(layers), f"{folder}/theirs")
        assert_same(ours, wrapped)
        assert far(logits(gpt(layers)), logits(ours)) > 1e-3
        assert {layer.dropout for layer in lora_layers(ours).values()} == {options.get("lora_dropout", 0.0)}
        assert {(name, p.dtype) for name, p in ours.named_parameters() if p.requires_grad} == {
            (f"{name}.lora_{half}", torch.float32) for name in lora_layers(ours) for half in "AB"}
        save_adapter(ours, f"{folder}/ours")
        again = peft.PeftModel.from_pretrained(llama(layers), f"{folder}/ours")
    assert_same(ours, again)
    assert far(logits(again), logits(wrapped)) <= 2e-5


# ---- Every option of a LoraConfig ------------------------------------------------------------------------------------

NAMES = [*LEAVES, "self_attn.q_proj", "1.self_attn.k_proj", "layers.1.mlp.up_proj", "model.layers.0.self_attn.v_proj",
         "lm_head", "proj", "nothing"]
REGEXES = [r".*\.(q|v)_proj", r"model\.layers\.1\..*_proj", r".*\.layers\.(0|2)\.mlp\.(up|down)_proj", r".*lm_head",
           r".*self_attn\.[kq]_proj$|.*\.0\.mlp\.up_proj", r"model.layers.1.self_attn.q_proj"]
KEYS = ["q_proj", "layers.1.self_attn.q_proj", "model.layers.0.*", "^model.layers.1.mlp.up_proj", "layers.1.*",
        ".*_proj", "mlp.(gate|down)_proj", "^q_proj", "self_attn", "proj", "lm_head", "nothing"]
ALPHAS = st.one_of(st.integers(1, 2048), st.floats(0.1, 2048.0), st.sampled_from([256 * math.sqrt(8), 16.0, -4]))


def patterns(values):
    """Patterns in the order in which PEFT writes them, by key: the first that matches wins, in memory and in a file."""
    return st.dictionaries(st.sampled_from(KEYS), values, max_size=3).map(lambda d: dict(sorted(d.items())))


@st.composite
def lora_options(draw):
    ranks = st.sampled_from([1, 2, 4, 6, 8, 3])
    options = dict(
        r=draw(ranks), lora_alpha=draw(ALPHAS), use_rslora=draw(st.booleans()), rank_pattern=draw(patterns(ranks)),
        alpha_pattern=draw(patterns(ALPHAS)), lora_dropout=draw(st.sampled_from([0.0, 0.1])),
        init_lora_weights=draw(st.sampled_from([True, False, "gaussian", "orthogonal"])),
        target_modules=draw(st.one_of(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True),
                                      st.sampled_from(REGEXES), st.sampled_from(["all-linear", "All-Linear"]))),
        exclude_modules=draw(st.one_of(st.none(), st.lists(st.sampled_from(NAMES), max_size=2, unique=True),
                                       st.sampled_from([r".*\.1\..*", "q_proj", r".*down_proj"]))))
    if isinstance(options["target_modules"], list):
        options["layers_to_transform"] = draw(st.one_of(
            st.none(), st.integers(0, 2), st.lists(st.integers(0, 11), max_size=4)))
        if options["layers_to_transform"] is not None:
            options["layers_pattern"] = draw(st.sampled_from(
                [None, "layers", ["layers"], ["h", "layers"], "", [], "model.layers", "lay[a-z]+"]))
    return options


def test_any_lora_config_of_peft_goes_there_and_back(fuzz):
    """Whatever LoraConfig PEFT takes, its adapter is the same function here, and here saved is the same in PEFT."""
    @given(layers=st.sampled_from([2, 3, 12]), options=lora_options())
    @fuzz(40)
    def holds(layers, options):
        try:
            peft.get_peft_model(llama(layers), peft.LoraConfig(**options))
        except ValueError:
            reject()
        there_and_back(layers, options)

    holds()


@pytest.mark.parametrize("layers, options", [
    (12, dict(target_modules=["layers.1.self_attn.q_proj", "1.mlp.up_proj"])),
    (12, dict(target_modules=["q_proj", "up_proj"], layers_to_transform=1)),
    (12, dict(target_modules=["q_proj"], layers_to_transform=[1, 10], layers_pattern="layers")),
    (3, dict(target_modules=["q_proj"], layers_to_transform=[0, 2], layers_pattern=["h", "layers"])),
    (3, dict(target_modules=["q_proj"], layers_to_transform=0, layers_pattern=[])),
    (3, dict(target_modules=["model.layers.0.mlp.up_proj", "q_proj"], layers_to_transform=[2])),
    (3, dict(target_modules=["model.layers.0.mlp.up_proj", "q_proj"], layers_to_transform=2, layers_pattern="ayers")),
    (3, dict(target_modules=["model.layers.0.mlp.up_proj", "q_proj"], layers_to_transform=2,
             layers_pattern="h|layers")),
    (3, dict(target_modules=LEAVES, layers_to_transform=[])),
    (12, dict(target_modules=LEAVES, rank_pattern={"model.layers.1.*": 2, "q_proj": 6})),
    (12, dict(target_modules=LEAVES, alpha_pattern={"layers.1.self_attn.q_proj": 3, "layers.11.self_attn.q_proj": 5})),
    (3, dict(target_modules=LEAVES, rank_pattern={"^model.layers.1.mlp.up_proj": 2}, alpha_pattern={"^q_proj": 99})),
    (3, dict(target_modules=LEAVES, use_rslora=True, rank_pattern={"layers.1.self_attn.q_proj": 3, "q_proj": 2},
             alpha_pattern={"model.layers.0.*": 2.5, "q_proj": 512.0})),
    (3, dict(target_modules=LEAVES, rank_pattern={"nothing": 3, "proj": 5, "model.layers.1": 2},
             alpha_pattern={"_proj": 7})),
    (2, dict(target_modules="all-linear", lora_dropout=0.1)),
    (2, dict(target_modules="all-linear", exclude_modules=["layers.0.self_attn.q_proj", "mlp.up_proj"])),
    (2, dict(target_modules=LEAVES, exclude_modules=r".*\.(0\.mlp|1\.self_attn)\..*")),
    (2, dict(target_modules=r".*layers\.1\..*(q|up)_proj")),
    (2, dict(target_modules=["lm_head", "q_proj"])),
    (2, dict(target_modules=["q_proj"], init_lora_weights="orthogonal")),
    (2, dict(target_modules=["q_proj"], init_lora_weights="mica")),
    (2, dict(target_modules=["q_proj"], init_lora_weights=False)),
    (2, dict(target_modules=["q_proj"], r=40, lora_alpha=1024.5, use_rslora=True)),
], ids=str)
def test_this_lora_config_of_peft_goes_there_and_back(layers, options):
    """The cases that a drawn config may miss: layers.1 beside layers.11, two keys that match, keys that match none."""
    there_and_back(layers, {"r": 4, "lora_alpha": 12, **options})


# ---- Configs written by hand and by other versions -------------------------------------------------------------------

OLD = dict(base_model_name_or_path="decapoda-research/llama-7b-hf", bias="none", fan_in_fan_out=False,
           inference_mode=True, lora_alpha=16, lora_dropout=0.05, modules_to_save=None, peft_type="LORA", r=8,
           target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
V05 = dict(OLD, auto_mapping=None, init_lora_weights=True, layers_pattern=None, layers_to_transform=None, revision=None)
V10 = dict(V05, alpha_pattern={}, layer_replication=None, loftq_config={}, megatron_config=None,
           megatron_core="megatron.core", rank_pattern={}, use_dora=False, use_rslora=False)
BY_HAND = {
    "0.2": dict(OLD, enable_lora=None, merge_weights=False),
    "0.3": dict(OLD, init_lora_weights=True),
    "0.5": V05,
    "0.5, one layer": dict(V05, layers_to_transform=1, layers_pattern="layers"),
    "0.10": V10,
    "0.10, rsLoRA": dict(V10, use_rslora=True, lora_alpha=256, init_lora_weights="gaussian"),
    "0.10, patterns": dict(V10, rank_pattern={"q_proj": 2}, alpha_pattern={"layers.0.self_attn.v_proj": 3}),
    "0.14": dict(V10, eva_config=None, exclude_modules=None, lora_bias=False),
    "0.14, runtime_config": dict(V10, runtime_config={"ephemeral_gpu_offload": False}),
    "default targets": dict(V10, target_modules=None),
    "all-linear": dict(V10, target_modules="all-linear"),
    "all-linear, but": dict(V10, target_modules="all-linear", exclude_modules=["q_proj", "layers.1.mlp.up_proj"]),
    "the first key wins": dict(V10, rank_pattern={"v_proj": 2, "layers.0.*": 6, "q_proj": 3},
                               alpha_pattern={"q_proj": 5.5, "layers.0.*": 40, ".*": 7}),
    "few fields": dict(peft_type="LORA", r=3, lora_alpha=2.5, target_modules=["up_proj"]),
}


@pytest.mark.parametrize("config", BY_HAND.values(), ids=BY_HAND)
def test_a_config_of_an_old_version_or_by_hand_is_read_as_peft_reads_it(config, tmp_path):
    """The fields that PEFT 0.2 to 0.14 wrote, and what people write, give the layers, scalings and logits of PEFT."""
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    wrapped = fill(peft.get_peft_model(llama(), peft.PeftConfig.from_pretrained(tmp_path)))
    save_file(peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False),
              tmp_path / "adapter_model.safetensors")
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == config
    ours = load_adapter(gpt(), tmp_path)
    assert_same(ours, peft.PeftModel.from_pretrained(llama(), tmp_path))
    assert far(logits(gpt()), logits(ours)) > 1e-3


# ---- Adapters of a changed base --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    dict(init_lora_weights="pissa"), dict(init_lora_weights="pissa_niter_8"), dict(init_lora_weights="olora"),
    dict(init_lora_weights="pissa", use_rslora=True), dict(init_lora_weights="pissa", rank_pattern={"q_proj": 2}),
    dict(init_lora_weights="pissa", alpha_pattern={"layers.1.self_attn.q_proj": 3}),
], ids=str)
def test_pissa_loads_converted_and_not_otherwise(options, tmp_path):
    """Converted by PEFT, PiSSA and OLoRA load onto the original base; unconverted they are refused by name."""
    wrapped = peft.get_peft_model(llama(), peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], **options))
    config = wrapped.peft_config["default"]
    config.init_lora_weights = True
    wrapped.save_pretrained(tmp_path / "initial")
    config.init_lora_weights = options["init_lora_weights"]
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_" in name:
                p += 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))
    trained = logits(wrapped)
    wrapped.save_pretrained(tmp_path / "as it is")
    wrapped.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    ours = logits(load_adapter(gpt(), tmp_path / "converted"))
    assert far(ours, trained) <= 2e-5 and far(logits(gpt()), ours) > 1e-2
    assert options["init_lora_weights"] in refusal(gpt(), tmp_path / "as it is")


# ---- Fields ----------------------------------------------------------------------------------------------------------


def snapshot(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def refusal(model, folder):
    """What load_adapter's ValueError says, without the folder; the model must be what it was."""
    before = snapshot(model)
    with pytest.raises(ValueError) as caught:
        load_adapter(model, folder)
    now = dict(model.named_parameters())
    assert now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in now)
    assert all(p.requires_grad for p in now.values())
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    return str(caught.value).replace(str(folder), "")


@functools.cache
def good():
    """Config and tensors of an adapter as this PEFT writes them, in q_proj and up_proj, with its own r and alpha."""
    with tempfile.TemporaryDirectory() as folder:
        fill(peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"))
             ).save_pretrained(folder)
        return (json.loads(Path(folder, "adapter_config.json").read_text()),
                load_file(Path(folder, "adapter_model.safetensors")))


SMALL = dict(peft_type="LORA", r=8, lora_alpha=8, target_modules=["q_proj", "up_proj"])


def write(folder, config=None, tensors=None, **fields):
    """An adapter folder: PEFT's own, but for what is given; fields are set in the config."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**(config or good()[0]), **fields}))
    save_file(good()[1] if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder


@functools.cache
def good_logits():
    with tempfile.TemporaryDirectory() as folder:
        return logits(peft.PeftModel.from_pretrained(llama(), write(Path(folder))))


def assert_loads(folder):
    assert far(logits(load_adapter(gpt(), folder)), good_logits()) <= 2e-5


DEFAULTS = json.loads(json.dumps({key: value for key, value in peft.LoraConfig().to_dict().items()
                                  if key not in ("runtime_config", "target_modules")}))
SET = dict(
    use_dora=True, modules_to_save=["lm_head"], bias="all", lora_bias=True, layer_replication=[[0, 1], [0, 2]],
    trainable_token_indices=[1, 2], target_parameters=["mlp.experts.gate_up_proj"], alora_invocation_tokens=[3],
    use_qalora=True, megatron_config={"tensor_model_parallel_size": 2}, fan_in_fan_out=True,
    velora_config={"num_groups": 8, "scale": 1.0, "init_type": "random"}, monteclora_config={"num_samples": 8},
    kasa_config={"beta": 1e-4, "gamma": 1e-3}, arrow_config={"top_k": 3}, use_bdlora={"nblocks": 2},
    enable_lora=[True, False, True], brand_new=3, brand_new_text="x", brand_new_number=0.5)
HARMLESS = {"task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
            "megatron_core", "qalora_group_size", "loftq_config", "eva_config", "corda_config", "runtime_config",
            "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "use_rslora", "rank_pattern",
            "alpha_pattern", "layers_to_transform", "layers_pattern", "init_lora_weights", "peft_type"}
OTHERS = sorted({field.name for field in dataclasses.fields(peft.LoraConfig)} - HARMLESS - SET.keys())


def test_every_field_at_its_default_passes(tmp_path):
    """What this PEFT writes loads as a whole, and each of its fields alone at the default that it has there."""
    assert good()[0].keys() >= DEFAULTS.keys()
    assert_loads(write(tmp_path))
    for key, value in DEFAULTS.items():
        assert_loads(write(tmp_path, SMALL, **{key: value}))


@pytest.mark.parametrize("empty", [None, False, "", [], {}], ids=repr)
def test_a_field_that_is_null_false_or_empty_passes(empty, tmp_path):
    """A field that asks for nothing is no reason to refuse, known or not."""
    for field in [*(SET.keys() - {"bias"}), *OTHERS]:
        assert_loads(write(tmp_path, **{field: empty}))


@pytest.mark.parametrize("field, value", [*SET.items(), ("bias", "lora_only"), *((field, True) for field in OTHERS)])
def test_a_field_that_asks_for_more_is_refused_by_name(field, value, tmp_path):
    """DoRA and its like, and any field that is not known to be harmless, are a ValueError that names the field."""
    assert field in refusal(gpt(), write(tmp_path, **{field: value}))
    assert field in refusal(gpt(), write(tmp_path, SMALL, **{field: value}))


@pytest.mark.parametrize("kind", ["LOHA", "ADALORA", "IA3", "PROMPT_TUNING", "XLORA", "lora", 3])
def test_another_peft_type_is_refused(kind, tmp_path):
    """An adapter of another method is a ValueError that names peft_type, even where its tensors look like LoRA's."""
    assert "peft_type" in refusal(gpt(), write(tmp_path, peft_type=kind))


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga"])
def test_an_init_that_changed_the_base_is_refused_by_name(init, tmp_path):
    """An initialisation that took something out of the base weights is a ValueError that names it."""
    assert init in refusal(gpt(), write(tmp_path, init_lora_weights=init))


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_an_init_that_left_the_base_alone_passes(init, tmp_path):
    """How A and B began says nothing of what they are now."""
    assert_loads(write(tmp_path, init_lora_weights=init))


@pytest.mark.parametrize("use", ["velora_config", "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices",
                                 "layer_replication", "target_parameters", "alora_invocation_tokens"])
def test_what_peft_saves_of_another_variant_is_refused_by_name(use, tmp_path):
    """A variant as PEFT itself saves it is a ValueError that names the field."""
    value = {"velora_config": peft.tuners.lora.config.VeloraConfig(num_groups=4),
             "target_parameters": ["model.layers.0.self_attn.k_proj.weight"]}.get(use, SET.get(use))
    peft.get_peft_model(llama(), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **{use: value})
                        ).save_pretrained(tmp_path)
    assert use in refusal(gpt(), tmp_path)


# ---- Files -----------------------------------------------------------------------------------------------------------

A, B = KEY.format("A"), KEY.format("B")
STRANGER = A.replace("q_proj", "k_proj")
SPOILS = {
    "A missing": (A, lambda t: t.pop(A)),
    "B missing": (B, lambda t: t.pop(B)),
    "layer missing": (A, lambda t: (t.pop(A), t.pop(B))),
    "layer more": (STRANGER, lambda t: t.update({STRANGER: t[A] + 0, STRANGER.replace("_A", "_B"): torch.ones(8, 8)})),
    "no such layer": ("layers.7", lambda t: t.update({A.replace("layers.0", "layers.7"): t[A] + 0})),
    "stranger": ("something", lambda t: t.update(something=torch.zeros(1))),
    "A transposed": (A, lambda t: t.update({A: t[A].T.contiguous()})),
    "B transposed": (B, lambda t: t.update({B: t[B].T.contiguous()})),
    "rank too high": (A, lambda t: t.update({A: torch.ones(9, 16), B: torch.ones(16, 9)})),
    "A too narrow": (A, lambda t: t.update({A: torch.ones(8, 15)})),
    "B too high": (B, lambda t: t.update({B: torch.ones(17, 8)})),
    "nothing": ("lora_A", lambda t: t.clear()),
    "A flat": (A, lambda t: t.update({A: t[A].flatten()})),
    "integers": (A, lambda t: t.update({A: t[A].to(torch.int32)})),
    "lm_head": ("lm_head.weight", lambda t: t.update({PREFIX + "lm_head.weight": torch.ones(31, 16)})),
    "lm_head's base": ("lm_head", lambda t: t.update({PREFIX + "lm_head.base_layer.weight": torch.ones(31, 16)})),
    "embedding": ("embed_tokens", lambda t: t.update({PREFIX + "model.embed_tokens.weight": torch.ones(31, 16)})),
    "adapted embedding": ("lora_embedding_A", lambda t: t.update({
        PREFIX + "model.embed_tokens.lora_embedding_A": torch.ones(8, 31)})),
    "magnitude": ("lora_magnitude_vector", lambda t: t.update({
        A.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(16)})),
    "bias": ("lora_B.bias", lambda t: t.update({B.replace("weight", "bias"): torch.ones(16)})),
    "adapter name": ("lora_A.default", lambda t: t.update({A.replace("weight", "default.weight"): t[A] + 0})),
    "NaN": (A, lambda t: t[A].fill_(math.nan)),
    "infinite": (B, lambda t: t[B][3, 2:3].fill_(math.inf)),
    "minus infinite": (B, lambda t: t[B][3, 2:3].fill_(-math.inf)),
    "infinite in float32": (B, lambda t: t.update({B: t[B].double() * 1e200})),
    "named twice": (A, lambda t: t.update({"_orig_mod." + A: t[A] * 2})),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_file_that_does_not_fit_is_refused_by_the_tensor(spoil, tmp_path):
    """Every tensor has its place and every targeted layer its tensors, else a ValueError that names the tensor."""
    named, change = SPOILS[spoil]
    tensors = {name: tensor.clone() for name, tensor in good()[1].items()}
    change(tensors)
    assert named in refusal(gpt(), write(tmp_path, tensors=tensors))


@pytest.mark.parametrize("named, fields", [
    ("k_proj.lora_A", dict(target_modules=["q_proj", "up_proj", "k_proj"])),
    ("layers.1.mlp.down_proj.lora_A", dict(target_modules=["q_proj", "up_proj", "layers.1.mlp.down_proj"])),
    ("lm_head.lora_A", dict(target_modules=["q_proj", "up_proj", "lm_head"])),
    ("embed_tokens", dict(target_modules=["q_proj", "up_proj", "embed_tokens"])),
    ("norm", dict(target_modules=["q_proj", "up_proj", "norm"])),
    ("gate_proj.lora_A", dict(target_modules=r".*\.(q_proj|up_proj|gate_proj)")),
    ("k_proj.lora_A", dict(target_modules="all-linear")),
    ("up_proj.lora_A", dict(target_modules=["q_proj"])),
    ("up_proj.lora_A", dict(target_modules=r".*q_proj")),
    ("layers.1.", dict(layers_to_transform=[0])),
    ("up_proj.lora_A", dict(exclude_modules=["up_proj"])),
    ("proj.lora_", dict(target_modules=["nothing"])),
    ("proj.lora_", dict(target_modules=[])),
    ("layers.0.mlp.up_proj.lora_A", dict(rank_pattern={"layers.0.*": 7})),
], ids=str)
def test_a_config_that_names_other_layers_than_the_file_is_refused_by_the_tensor(named, fields, tmp_path):
    """One target more, or one fewer, than the file has tensors for is a ValueError that names the tensor."""
    assert named in refusal(gpt(), write(tmp_path, **fields))


@pytest.mark.parametrize("name, size", [("model.norm", 16), ("model.layers.1.input_layernorm", 16),
                                        ("model.embed_tokens", 31)])
@pytest.mark.parametrize("targets", ["listed", "null"])
def test_tensors_for_what_is_no_linear_layer_are_refused(targets, name, size, tmp_path):
    """LoRA tensors of a norm or an embedding, targeted and of the right shape, are a ValueError that names it."""
    tensors = {**good()[1], f"{PREFIX}{name}.lora_A.weight": torch.ones(8, 16),
               f"{PREFIX}{name}.lora_B.weight": torch.ones(size, 8)}
    targets = ["q_proj", "up_proj", name] if targets == "listed" else None
    assert name in refusal(gpt(), write(tmp_path, tensors=tensors, target_modules=targets))


def test_an_lm_head_that_peft_saves_with_its_base_is_refused_by_the_tensor(tmp_path):
    """Where PEFT wrote the output head's own weight beside its adapter, the ValueError names it; without, it loads."""
    wrapped = fill(peft.get_peft_model(llama(), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"])))
    wrapped.save_pretrained(tmp_path / "with")
    wrapped.save_pretrained(tmp_path / "without", save_embedding_layers=False)
    assert "lm_head.base_layer.weight" in refusal(gpt(), tmp_path / "with")
    assert_same(load_adapter(gpt(), tmp_path / "without"), wrapped)


@pytest.mark.parametrize("rename", [
    lambda name: f"_orig_mod.{name}", lambda name: f"module.{name}", lambda name: f"module._orig_mod.{name}",
    lambda name: f"_orig_mod.module.{name}", lambda name: name.replace(PREFIX, f"{PREFIX}_orig_mod."),
    lambda name: name.replace("self_attn.", "_orig_mod.self_attn."),
    lambda name: name.replace("_proj", "_proj._orig_mod"),
], ids=["compiled", "parallel", "parallel, compiled", "compiled, parallel", "base compiled", "block compiled",
        "layer compiled"])
def test_the_names_of_wrappers_in_a_file_are_read(rename, tmp_path):
    """Tensors saved from a model that torch.compile or DDP had wrapped load as if it had not."""
    assert_loads(write(tmp_path, tensors={rename(name): tensor for name, tensor in good()[1].items()}))


def compile_inside(model, path):
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, torch.compile(model.get_submodule(path)))
    return model


@pytest.mark.parametrize("wrap", [
    torch.compile, torch.nn.DataParallel, lambda model: torch.compile(torch.nn.DataParallel(model)),
    lambda model: torch.nn.DataParallel(torch.compile(model)), lambda model: (model.compile(), model)[1],
    lambda model: compile_inside(model, "model"), lambda model: compile_inside(model, "model.layers.0"),
    lambda model: compile_inside(model, "model.layers.1.self_attn"),
    lambda model: compile_inside(model, "model.layers.0.self_attn.q_proj"),
], ids=["compiled", "parallel", "compiled parallel", "parallel compiled", "in place", "inner", "block", "attention",
        "layer"])
def test_a_wrapped_model_saves_plain_names(wrap, tmp_path):
    """save_adapter writes the same config and tensors whatever torch.compile or DataParallel wraps, and inside too."""
    plain = load_adapter(gpt(), write(tmp_path / "source", rank_pattern={}, alpha_pattern={"q_proj": 3}))
    save_adapter(plain, tmp_path / "plain")
    save_adapter(wrap(plain), tmp_path / "wrapped")
    assert json.loads((tmp_path / "wrapped/adapter_config.json").read_text()) == json.loads(
        (tmp_path / "plain/adapter_config.json").read_text())
    tensors = load_file(tmp_path / "wrapped/adapter_model.safetensors")
    assert tensors.keys() == good()[1].keys()
    assert all(torch.equal(tensors[name], good()[1][name]) for name in tensors)


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel], ids=["compiled", "parallel"])
def test_a_wrapped_model_takes_an_adapter(wrap, tmp_path):
    """load_adapter into a wrapped model adapts the model inside."""
    model = gpt()
    wrapped = wrap(model)
    assert load_adapter(wrapped, write(tmp_path)) is wrapped
    assert far(logits(model.cpu()), good_logits()) <= 2e-5  # DataParallel moves it to a GPU where there is one


@pytest.mark.parametrize("path", ["model", "model.layers.0", "model.layers.1.self_attn",
                                  "model.layers.0.self_attn.q_proj"])
def test_a_model_compiled_inside_takes_the_whole_adapter_or_none(path, tmp_path):
    """Where a part of the model is compiled, load_adapter fills every layer of the file, or is a ValueError."""
    model, folder = compile_inside(gpt(), path), write(tmp_path)
    try:
        load_adapter(model, folder)
    except ValueError:
        assert refusal(model, folder)
    else:
        assert len(lora_layers(model)) == len(good()[1]) / 2


def test_lora_on_a_tied_head_is_refused(tmp_path):
    """An adapter of lm_head does not fit a model whose lm_head is the embedding, and the ValueError names it."""
    save_adapter(inject_lora(gpt(), 4, targets=["q_proj", "lm_head"]), tmp_path)
    tied = shake(GPT(GPTConfig(**SIZES, num_hidden_layers=2, tie_word_embeddings=True)))
    assert "lm_head" in refusal(tied, tmp_path)


def test_a_second_adapter_is_refused(tmp_path):
    """load_adapter twice is a ValueError, and the first adapter stays as it is."""
    model = load_adapter(gpt(), write(tmp_path))
    before, wanted = snapshot(model), logits(model)
    grads = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="already"):
        load_adapter(model, write(tmp_path / "other", rank_pattern={}, lora_alpha=99))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == grads
    assert {layer.alpha for layer in lora_layers(model).values()} == {8} and torch.equal(logits(model), wanted)


# ---- Hostile values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [
    dict(rank_pattern=["q_proj"]), dict(rank_pattern="q_proj"), dict(rank_pattern={"q_proj": None}),
    dict(rank_pattern={"q_proj": [8]}), dict(rank_pattern={"q_proj": 8.0}), dict(rank_pattern={"(": 8}),
    dict(alpha_pattern={"q_proj": "x"}), dict(alpha_pattern={"q_proj": True}), dict(alpha_pattern={"q_proj": 10**400}),
    dict(alpha_pattern=7), dict(alpha_pattern={"*": 8}), dict(target_modules="("), dict(target_modules="q_proj["),
    dict(target_modules=".{9999999999999999999}"), dict(target_modules="(" * 10_000 + ")" * 10_000),
    dict(target_modules=3), dict(target_modules=True), dict(target_modules={"q_proj": 1}), dict(target_modules=[3]),
    dict(target_modules=[["q_proj"]]), dict(exclude_modules="("), dict(exclude_modules=3),
    dict(layers_to_transform="a"), dict(layers_to_transform={"0": 1}), dict(layers_to_transform=1.5),
    dict(layers_to_transform=[0, 1], layers_pattern="("), dict(layers_to_transform=[0, 1], layers_pattern=3),
    dict(use_rslora="yes"), dict(use_rslora=[1]), dict(use_rslora=2), dict(r=10**12), dict(r=10**400), dict(r=-8),
    dict(r=True), dict(r=[8]), dict(r=8.5), dict(r=0), dict(r=5), dict(r="4"), dict(r=None), dict(lora_alpha="8"),
    dict(rank_pattern={"q_proj": 2}), dict(lora_dropout=1.5), dict(lora_alpha=math.nan), dict(lora_alpha=math.inf),
    dict(lora_alpha=10**400), dict(lora_alpha=True), dict(lora_alpha=[8]), dict(lora_alpha=None),
    dict(lora_dropout="x"), dict(lora_dropout=math.nan), dict(lora_dropout=[0.1]), dict(lora_dropout=-1)],
    ids=lambda fields: str(fields)[:50])
def test_a_hostile_value_is_refused_at_once(fields, tmp_path):
    """A value that no PEFT could mean is a ValueError within a second of work, and the model stays as it was."""
    model, folder = gpt(), write(tmp_path, **fields)
    started = time.process_time()
    assert refusal(model, folder)
    assert time.process_time() - started < 1


# ---- What is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank, alpha, written", [
    (8, None, 256 * math.sqrt(8)), (16, None, 1024), (2, 12.5, 12.5), (2, 12.0, 12), (3, 7, 7),
    (3, 1e15 + 0.5, 1e15 + 0.5), (5, 0.1, 0.1)])
def test_alpha_is_written_as_it_is(rank, alpha, written, tmp_path):
    """alpha goes to the file with every bit, as a whole number where it is one, and never as rsLoRA."""
    save_adapter(inject_lora(gpt(), rank, alpha, targets=["q_proj"]), tmp_path)
    raw = json.loads((tmp_path / "adapter_config.json").read_text())
    assert raw["lora_alpha"] == written and type(raw["lora_alpha"]) is type(written)
    assert raw["r"] == rank and raw.keys() == {  # what is at its default is left out
        "peft_type", "task_type", "base_model_name_or_path", "inference_mode", "r", "lora_alpha", "target_modules"}
    again = lora_layers(load_adapter(gpt(), tmp_path))
    assert {layer.scaling for layer in again.values()} == {written / rank}


def test_rslora_is_written_as_plain_lora(tmp_path):
    """An rsLoRA adapter of differing ranks and alphas leaves as plain LoRA with an alpha for each layer, unrounded."""
    tensors = {name: tensor[:4] if "q_proj.lora_A" in name else tensor[:, :4] if "q_proj.lora_B" in name else tensor
               for name, tensor in good()[1].items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write(tmp_path / "in", tensors=tensors, use_rslora=True, lora_alpha=256, rank_pattern={"q_proj": 4},
          alpha_pattern={"layers.1.self_attn.q_proj": 3})
    model = load_adapter(gpt(), tmp_path / "in")
    save_adapter(model, tmp_path / "out")
    raw = json.loads((tmp_path / "out/adapter_config.json").read_text())
    wanted = {f"model.layers.{i}.{name}": size for i in (0, 1) for name, size in [
        ("self_attn.q_proj", (4, [512, 6][i])), ("mlp.up_proj", (8, 256 * math.sqrt(8)))]}
    assert "use_rslora" not in raw
    assert raw["rank_pattern"] == {name: rank for name, (rank, _) in wanted.items()}
    assert raw["alpha_pattern"] == {name: alpha for name, (_, alpha) in wanted.items()}
    assert {name: type(alpha) for name, alpha in raw["alpha_pattern"].items()} == {
        name: type(alpha) for name, (_, alpha) in wanted.items()}
    assert_same(model, peft.PeftModel.from_pretrained(llama(), tmp_path / "in"))
    assert_same(model, peft.PeftModel.from_pretrained(llama(), tmp_path / "out"))

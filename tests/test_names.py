"""Models by name, an adapter's own base, and going on from an adapter: python -m pytest tests/test_names.py"""

import hashlib
import json
import shutil
import sys

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors
from huggingface_hub.file_download import repo_folder_name

import eval_pass1
import train
from hf import load_adapter, load_model, resolve, save_adapter
from lora_alpha import inject_lora, lora_layers

SHA = "0123456789" * 4
FAST = ["--batch-size", 4, "--steps", 2, "--eval-problems", 0]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """hub(name, folder, *left_out): puts a folder into an empty cache, laid out as the hub does. hub.calls:
    the calls that would need the network, each of which fails for want of one."""
    cache, download = tmp_path / "cache", huggingface_hub.snapshot_download

    def put(name, folder, *left_out):
        place = cache / repo_folder_name(repo_id=name, repo_type="model")
        (place / "refs").mkdir(parents=True)
        (place / "refs/main").write_text(SHA)
        (place / "blobs").mkdir()
        (place / "snapshots" / SHA).mkdir(parents=True)
        for path in (path for path in folder.iterdir() if path.is_file() and path.name not in left_out):
            blob = place / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            shutil.copy(path, blob)
            (place / "snapshots" / SHA / path.name).symlink_to(blob)
        return place / "snapshots" / SHA

    def called(name, local_files_only=False, **options):
        if not local_files_only:
            put.calls.append((name, options))
            raise put.error
        return download(name, local_files_only=True, cache_dir=cache, **options)

    put.calls, put.error = [], errors.LocalEntryNotFoundError("no network")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", called)
    return put


@pytest.fixture
def adapter(toy, tmp_path):
    """adapter(base, rank, alpha, name): a folder with an adapter of the toy base that names a base."""
    def adapter(base=None, rank=2, alpha=4.0, name="adapter", **options):
        torch.manual_seed(0)
        model = inject_lora(load_model(toy.base), rank, alpha, **options)
        with torch.no_grad():
            for layer in lora_layers(model).values():
                layer.lora_B.normal_(0, 0.1)
        save_adapter(model, tmp_path / name, base=base and str(base))
        return tmp_path / name
    return adapter


def refused(done, *words):
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and all(w in done.stderr for w in words), done.stderr


# ---- Names -----------------------------------------------------------------------------------------------------------


def test_a_cached_model_is_found_without_the_network(hub, toy):
    """By its name, by its revision, and before a download is tried; a folder of that name is itself."""
    folder = hub("org/toy", toy.base)
    for name in ("org/toy", "org/toy@main", f"org/toy@{SHA}"):
        assert resolve(name, "--base") == folder
    assert hub.calls == [] and resolve(toy.base, "--base") == toy.base
    load_model(folder)


def test_a_folder_wins_and_nothing_is_fetched(hub, toy, tmp_path, monkeypatch):
    hub("org/toy", toy.base)
    shutil.copytree(toy.base, tmp_path / "org/toy")
    monkeypatch.chdir(tmp_path)
    assert str(resolve("org/toy", "--base")) == "org/toy" and hub.calls == []


@pytest.mark.parametrize("left_out", [["model.safetensors"], ["base.tiktoken"]], ids=str)
def test_an_incomplete_cache_is_downloaded(left_out, hub, toy):
    """What is fetched is configs, tokenizer and safetensors of the repository's top, and no pickle or code."""
    hub("org/toy", toy.base, *left_out)
    with pytest.raises(ValueError, match="cannot be reached"):
        resolve("org/toy", "--base")
    (name, options), = hub.calls
    assert name == "org/toy" and options["revision"] is None
    names = ["model-00001-of-00002.safetensors", "config.json", "tokenizer.model", "a.tiktoken", "chat_template.jinja",
             "pytorch_model.bin", "modeling.py", "consolidated.safetensors", "original/params.json", "model.pkl"]
    patterns = {key: options[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(huggingface_hub.utils.filter_repo_objects(names, **patterns)) == names[:5]


def test_shards_must_all_be_there(hub, toy, tmp_path):
    shutil.copytree(toy.base, tmp_path / "sharded")
    (tmp_path / "sharded/model.safetensors").rename(tmp_path / "sharded/model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "sharded/model.safetensors.index.json").write_text(json.dumps(index))
    hub("org/toy", tmp_path / "sharded")
    with pytest.raises(ValueError):
        resolve("org/toy", "--base")
    assert len(hub.calls) == 1


def response(status=401):
    module = sys.modules[errors.HfHubHTTPError.__mro__[1].__module__.partition(".")[0]]
    return module.Response(status, request=module.Request("GET", "https://huggingface.co"))


@pytest.mark.parametrize("error, word", [
    (lambda: errors.GatedRepoError("x\ny", response=response()), "hf auth login"),
    (lambda: errors.RepositoryNotFoundError("x", response=response()), "the hub has no such model"),
    (lambda: errors.RevisionNotFoundError("x", response=response()), "no such revision"),
    (lambda: errors.HfHubHTTPError("busy\nnow", response=response(503)), "cannot be downloaded (busy now)"),
    (lambda: errors.LocalEntryNotFoundError("x"), "cannot be reached"), (lambda: OSError(28, "No space"), "No space"),
    (lambda: ImportError("huggingface_hub"), "pip install")])
@pytest.mark.parametrize("script, flag", [(train, "base"), (train, "init"), (eval_pass1, "base"),
                                          (eval_pass1, "adapter")])
def test_what_the_hub_says_is_one_line(script, flag, error, word, hub, toy, command, tmp_path):
    hub.error = error()
    done = command(script, f"--{flag}", "org/absent", cwd=tmp_path, base=toy.base)
    refused(done, f"--{flag} org/absent: there is no such folder here, and ", word)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_offline_is_named(hub, monkeypatch):
    """The library's own function, by its own switch: no call is made."""
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE forbids"):
        resolve("org/absent", "--base")


def test_without_the_library_a_name_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="pip install"):
        resolve("org/absent", "--base")


@pytest.mark.parametrize("name", ["absent", "./a/b", "/a/b", "a/b/c", "out/typo", "a b/c", "-a/b", "org/../x"])
def test_a_path_is_no_name(name, hub, tmp_path, monkeypatch):
    """Nor is what begins with a folder that is here."""
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no such file or folder"):
        resolve(name, "--base")
    assert hub.calls == []


# ---- An adapter's own base -------------------------------------------------------------------------------------------


def test_a_run_by_name_keeps_the_name(hub, toy, command, tmp_path):
    """run.json, adapter_config.json and training.json; the adapter alone is evaluated and merged on its base."""
    folder = hub("org/toy", toy.base)
    done = command(train, "--base", "org/toy@main", *FAST, "--out", "out/a", cwd=tmp_path, data=toy.data)
    assert done.returncode == 0 and "base    org/toy@main, " in done.stdout, done.stderr
    assert "--base" not in done.stdout
    read = [json.loads((tmp_path / "out/a" / f"{name}.json").read_text())
            for name in ("run", "adapter_config", "training")]
    digest = hashlib.sha256((toy.base / "model.safetensors").read_bytes()).hexdigest()
    assert read[0]["base"] == "org/toy@main" and read[1]["base_model_name_or_path"] == "org/toy"
    assert read[2] == dict(base="org/toy@main", base_sha256=digest, prompt="Problem: {problem}\nSolution:", system=None)
    done = command(eval_pass1, "--limit", 2, "--max-new-tokens", 2, cwd=tmp_path)
    assert done.returncode == 0 and "warning" not in done.stdout, done.stderr
    assert done.stdout.startswith(f"base org/toy@main, as in training; --base gives another\ndata {toy.data}, as in")
    done = command(train, "merge", "--adapter", "out/a", "--out", "m", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "m/base.tiktoken").is_file(), done.stderr
    assert load_model(tmp_path / "m") and load_model(folder)


def test_another_base_is_named_and_other_weights_are_warned_of(toy, adapter, command, tmp_path):
    """Equal weights elsewhere are no warning; the same path with other weights is one."""
    shutil.copytree(toy.base, tmp_path / "copy")
    place = adapter(toy.base)
    flags = ["--adapter", place, "--limit", 2, "--max-new-tokens", 1, "--base"]
    done = command(eval_pass1, *flags, tmp_path / "copy", cwd=tmp_path)
    assert f"{place} was trained on {toy.base}, here it is on {tmp_path / 'copy'}\n" in done.stdout
    digest = eval_pass1.base_sha256(toy.base)
    (place / "training.json").write_text(json.dumps(dict(base=str(toy.base), base_sha256=digest)))
    done = command(eval_pass1, *flags, tmp_path / "copy", cwd=tmp_path)
    assert "with the same weights\n" in done.stdout and "warning" not in done.stdout
    assert "was trained" not in command(eval_pass1, *flags, toy.base, cwd=tmp_path).stdout
    (place / "training.json").write_text(json.dumps(dict(base=str(toy.base), base_sha256="0" * 64)))
    for base in (toy.base, tmp_path / "copy"):
        done = command(eval_pass1, *flags, base, cwd=tmp_path)
        assert f"warning: {place} was trained on {toy.base}, with other weights than" in done.stdout
    done = command(train, "merge", "--adapter", place, "--base", toy.base, "--out", "o", cwd=tmp_path)
    assert done.returncode == 0 and "warning" in done.stdout


def test_adapters_of_different_bases_want_a_base(toy, adapter, command, tmp_path):
    places = [adapter(base, name=name) for base, name in ((toy.base, "a"), (tmp_path / "other", "b"))]
    flags = [word for place in places for word in ("--adapter", place)]
    refused(command(eval_pass1, *flags, cwd=tmp_path), "different bases", str(toy.base), "give one with --base")


def test_a_base_that_is_gone(toy, adapter, command, tmp_path, capsys):
    """data/base where its weights are the adapter's, or where nothing is known; else one line."""
    place = adapter("/nowhere/base")
    digest = eval_pass1.base_sha256(train.HERE / "data/base")
    for known, word in ((digest, "with the same weights"), (None, "here it is on")):
        (place / "training.json").write_text(json.dumps(dict(base="/nowhere/base", base_sha256=known)))
        assert str(eval_pass1.pick_base(None, {"a": place})[1]).endswith("data/base")
        assert word in capsys.readouterr().out
    (place / "training.json").write_text(json.dumps(dict(base="/nowhere/base", base_sha256="0" * 64)))
    refused(command(eval_pass1, "--adapter", place, cwd=tmp_path), "--base is not given", "/nowhere/base")


# ---- --init ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora-alpha", "lora", "rslora", "lora+"])
def test_init_goes_on_from_an_adapter(method, toy, adapter, command, tmp_path):
    """Its base, rank, alpha and targets; a rate of almost 0 leaves it as it was."""
    place = adapter(toy.base, 3, 7.5, targets=["q_proj", "up_proj"], dropout=0.25)
    done = command(train, "--init", place, "--method", method, *FAST, "--lr", 1e-12, "--out", "o", cwd=tmp_path,
                   data=toy.data)
    assert done.returncode == 0 and f"rank 3, alpha 7.5 from {place}" in done.stdout, done.stderr
    old, new = (json.loads((folder / "adapter_config.json").read_text()) for folder in (place, tmp_path / "o"))
    assert old == new and json.loads((tmp_path / "o/run.json").read_text())["init"] == str(place)
    a, b = (lora_layers(load_adapter(load_model(toy.base), folder)) for folder in (place, tmp_path / "o"))
    assert all(torch.allclose(a[name].lora_B, b[name].lora_B, atol=1e-6) for name in a | b)


def test_init_keeps_each_layers_own_rank(toy, adapter, command, tmp_path):
    place = adapter(toy.base, 2, 4.0, targets=["q_proj"])
    model = load_adapter(load_model(toy.base), place)
    first = next(iter(lora_layers(model).values()))
    first.rank, first.alpha = 1, 8.0
    first.lora_A, first.lora_B = (torch.nn.Parameter(t.data) for t in (first.lora_A[:1], first.lora_B[:, :1]))
    save_adapter(model, place, base=str(toy.base))
    assert command(train, "--init", place, *FAST, "--out", "o", cwd=tmp_path, data=toy.data).returncode == 0
    layers = lora_layers(load_adapter(load_model(toy.base), tmp_path / "o"))
    assert [(layer.rank, layer.alpha) for layer in layers.values()] == [(1, 8.0), (2, 4.0)]


@pytest.mark.parametrize("flags, words", [
    (["--rank", 8], ["rank 8", "has 2"]), (["--alpha", 5], ["alpha 5", "has 4"]), (["--c", 9], ["alpha 12.7", "has 4"]),
    (["--dropout", 0.5], ["dropout 0.5", "has 0"]), (["--method", "pissa"], ["--method pissa"]),
    (["--method", "full"], ["--method full"]), (["--targets", "q_proj"], ["--targets q_proj", "down_proj gate_proj"])])
def test_init_refuses_a_flag_that_says_otherwise(flags, words, toy, adapter, command, tmp_path):
    place = adapter(toy.base)
    refused(command(train, "--init", place, *flags, *FAST, "--out", "o", cwd=tmp_path, data=toy.data), *words)
    assert not (tmp_path / "o").exists()


def test_init_takes_flags_that_say_the_same(toy, adapter, command, tmp_path):
    done = command(train, "--init", adapter(toy.base), "--rank", 2, "--alpha", 4, "--dropout", 0, "--targets",
                   "all-linear", *FAST, "--out", "o", cwd=tmp_path, data=toy.data)
    assert done.returncode == 0, done.stderr

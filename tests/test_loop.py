"""The loop: what the loss counts, how updates are made up, what is logged, and what stops a run."""

import csv
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from lora_alpha import GPT, GPTConfig, collate, epochs, evaluate, inject_lora, learning_rate, lora_layers, train

TOKENS = st.tuples(st.integers(0, 12), st.booleans())  # a token, and whether it is learnt
EXAMPLES = st.lists(st.lists(TOKENS, min_size=2, max_size=13).map(
    lambda tokens: ([token for token, _ in tokens], [token if learnt else -100 for token, learnt in tokens])),
    min_size=1, max_size=5)


def example(prompt, answer):
    return prompt + answer, [-100] * len(prompt) + answer


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**dict(vocab_size=13, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                    num_attention_heads=2, max_position_embeddings=32), **options}))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.normal_(std=0.3)
    return model


def adapted(seed=0, rank=2, dropout=0.0):
    model = tiny(seed)
    torch.manual_seed(seed)
    return inject_lora(model, rank, c=16.0, dropout=dropout)


def some_examples(n=7, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def ids(low):
        length = int(torch.randint(low, 6, (1,), generator=generator))
        return torch.randint(13, (length,), generator=generator).tolist()

    return [example(ids(1), ids(1)) for _ in range(n)]


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


class Counts(nn.Module):
    """A bigram model in the given dtype whose loss is torch's own, to test the loop apart from the GPT."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(13, 13, dtype=dtype, generator=generator))

    def forward(self, idx, targets=None):
        logits = self.table[idx]
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


@given(EXAMPLES)
def test_the_loss_counts_exactly_the_labels(examples):
    """Targets are the labelled tokens, wherever they stand, each after its predecessor, and -100 everywhere else."""
    idx, targets = collate(examples)
    assert idx.shape == targets.shape == (len(examples), max(len(ids) for ids, _ in examples) - 1)
    for row, (ids, labels) in enumerate(examples):
        for t in range(idx.shape[1]):
            if t < len(ids) - 1:
                assert idx[row, t] == ids[t]
            wanted = ids[t + 1] if t + 1 < len(ids) and labels[t + 1] != -100 else -100
            assert targets[row, t] == wanted


@given(EXAMPLES)
@settings(max_examples=30)
def test_a_padded_batch_has_the_loss_of_its_rows(examples):
    """The loss of a batch is the mean of -log p over labelled tokens, computed example by example without padding."""
    assume(any(label != -100 for _, labels in examples for label in labels[1:]))
    model = tiny().double()
    total, count = 0.0, 0
    with torch.no_grad():
        loss = model(*collate(examples))[1].item()
        for ids, labels in examples:
            p = model(torch.tensor([ids]))[0][0].softmax(-1)
            for n, label in enumerate(labels[1:]):
                if label != -100:
                    total, count = total - math.log(p[n, label]), count + 1
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_a_first_token_is_never_a_target():
    """It has nothing to its left; all the others of a text are targets, and an example of one token has none."""
    idx, targets = collate([([4, 0, 6], [4, 0, 6]), ([5], [5])])
    assert idx.tolist() == [[4, 0], [0, 0]] and targets.tolist() == [[0, 6], [-100, -100]]


def split(examples, sizes):
    parts, start = [], 0
    for size in sizes:
        parts.append(collate(examples[start : start + size]))
        start += size
    return parts


@pytest.mark.parametrize("sizes", [(1, 2, 3), (4, 1, 1), (1, 1, 1, 1, 1, 1)])
def test_unequal_micro_batches_make_one_batch(sizes):
    """Three updates in micro-batches of unequal size and padding move float64 weights as three whole batches do."""
    data = [some_examples(6, seed) for seed in range(3)]
    lr, eps = 1e-2, 1e-3
    one, many = Counts(), Counts()
    a = train(one, [collate(examples) for examples in data], 3, lr, eps=eps)
    b = train(many, [part for examples in data for part in split(examples, sizes)], 3, lr, eps=eps,
              grad_accum=len(sizes))
    # A gradient is a mean of ~20 terms of size <= 1, so the two sums differ by <= 40·2^-53 < 1e-14. Adam's step is
    # lr·m/(√v + eps) with slope <= lr/eps = 10 in the gradient; the loss has curvature <= 1, so that an error grows by
    # at most 1 + 10 a step: 10·1e-14·(1 + 11 + 121) < 2e-11. A wrong weighting shows at lr, 1e-2.
    assert (one.table - many.table).abs().max() < 2e-11
    assert [row["loss"] for row in a] == pytest.approx([row["loss"] for row in b], rel=1e-6)
    assert (one.table - Counts().table).abs().max() > 1e-3


def test_the_gpt_learns_the_same_from_micro_batches():
    """The same with the GPT in float64, whose loss rounds the logits to float32."""
    data = [some_examples(6, seed) for seed in range(3)]
    one, many = tiny().double(), tiny().double()
    start = weights(one)
    train(one, [collate(examples) for examples in data], 3, 1e-3, eps=1e-2)
    train(many, [p for examples in data for p in split(examples, (1, 2, 3))], 3, 1e-3, eps=1e-2, grad_accum=3)
    # float32 rounding of probabilities, 20·2^-24 ~ 1e-6 of a gradient of norm <= 10, times lr/eps = 0.1, three times.
    for name, value in weights(one).items():
        assert (value - many.get_parameter(name)).abs().max() < 3e-6
    assert max((value - start[name]).abs().max() for name, value in weights(one).items()) > 3e-4


def test_a_micro_batch_without_targets_counts_for_nothing():
    """A micro-batch whose targets are all -100 beside a real one changes neither loss nor weights."""
    idx, targets = collate(some_examples(3))
    blank = idx, torch.full_like(targets, -100)
    one, many = Counts(), Counts()
    a = train(one, [(idx, targets)], 1, 1e-2)
    b = train(many, [blank, (idx, targets)], 1, 1e-2, grad_accum=2)
    assert torch.equal(one.table, many.table) and a[0]["loss"] == b[0]["loss"]


@given(st.integers(1, 23), st.integers(1, 6), st.integers(1, 4), st.integers(0, 9))
def test_an_epoch_has_no_repeats_and_every_update_is_full(n, batch_size, grad_accum, seed):
    """Every update has batch_size·grad_accum examples (or all there are), and each n in a row are each example once."""
    grad_accum = min(grad_accum, n)  # fewer examples than micro-batches: the next test
    batches = epochs([([i, i], [-100, i]) for i in range(n)], batch_size, grad_accum, seed)
    update, stream = min(n, batch_size * grad_accum), []
    for _ in range(3 * n // update + 2):
        rows = [row for _ in range(grad_accum) for row in next(batches)[0][:, 0].tolist()]
        assert len(rows) == update
        stream += rows  # examples of one length keep their order within the update
    for start in range(0, len(stream) - n + 1, n):
        assert sorted(stream[start : start + n]) == list(range(n))


@given(st.integers(1, 6), st.integers(2, 8))
@settings(max_examples=30)
def test_too_few_examples_still_count_once_each(n, grad_accum):
    """With fewer examples than micro-batches an update's loss is still the mean over all examples, each once."""
    examples = [example([i], [(5 * i + 1) % 13]) for i in range(n)]
    model = Counts()
    with torch.no_grad():
        wanted = -sum(model.table[first].log_softmax(0)[second].item() for (first, second), _ in examples) / n
    row, = train(model, epochs(examples, n, grad_accum), 1, 1e-3, grad_accum=grad_accum)
    assert row["loss"] == pytest.approx(wanted, rel=1e-6)


def test_epochs_repeats_with_its_seed():
    """The same seed gives the same batches, another seed and another epoch other orders."""
    examples = [example([i], [i]) for i in range(13)]

    def order(seed, k=2):
        batches = epochs(examples, 13, 1, seed)
        return [next(batches)[0][:, 0].tolist() for _ in range(k)]

    assert order(0) == order(0) and order(0) != order(1)
    assert order(0)[0] != order(0)[1]


def test_looking_changes_nothing_in_what_is_learnt(tmp_path):
    """Validation, log, drift and metrics leave the adapters bitwise as they are without, dropout included."""
    learnt, calls = [], []
    for looks in (False, True):
        model = adapted(dropout=0.2)
        torch.manual_seed(1)
        extra = dict(val_batches=[collate(some_examples(4, 9))], eval_every=2, drift=True, log=calls.append,
                     metrics=tmp_path / "m.csv") if looks else {}
        rows = train(model, epochs(some_examples(), 3, 2), 5, 1e-2, grad_accum=2, **extra)
        learnt.append((weights(model), [row["loss"] for row in rows]))
    assert same(learnt[0][0], learnt[1][0]) and learnt[0][1] == learnt[1][1]
    assert calls == rows and len(rows) == 5
    assert [row["val_loss"] is not None for row in rows] == [False, True, False, True, True]


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_is_a_mean_over_targets_and_leaves_the_mode(training):
    """evaluate weighs every target alike over unequal batches, uses no dropout, and leaves mode and weights alone."""
    model = adapted(dropout=0.5).train(training)
    batches = [collate(some_examples(n, n)) for n in (1, 4, 2)]
    batches.append((torch.ones(1, 3, dtype=torch.long), torch.full((1, 3), -100)))
    before = weights(model)
    value = evaluate(model, batches)
    assert all(module.training is training for module in model.modules())
    assert same(before, weights(model)) and value == evaluate(model, batches)
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for idx, targets in batches:
            p = model(idx)[0].double().log_softmax(-1)
            for b, t in (targets != -100).nonzero().tolist():
                total, count = total - p[b, t, targets[b, t]].item(), count + 1
    assert value == pytest.approx(total / count, rel=1e-5)


def test_val_loss_is_that_of_the_weights_after_the_update():
    """The last row's val_loss is evaluate of the trained model."""
    model, val = adapted(), [collate(some_examples(4, 9))]
    rows = train(model, epochs(some_examples(), 3), 3, 1e-2, val_batches=val)
    assert rows[-1]["val_loss"] == evaluate(model, val)
    assert model.training


class Poisoned(nn.Module):
    """Passes the model on and spoils its loss or its gradient at one call."""

    def __init__(self, inner, call, kind):
        super().__init__()
        self.inner, self.call, self.kind, self.calls = inner, call, kind, 0

    def forward(self, idx, targets=None):
        logits, loss = self.inner(idx, targets)
        self.calls += 1
        if self.calls == self.call:
            if self.kind == "gradient":  # adds 0 with an infinite slope
                loss = loss + (next(p for p in self.inner.parameters() if p.requires_grad) * 0).sum().sqrt()
            else:
                loss = loss * self.kind
        return logits, loss


@pytest.mark.parametrize("kind", [math.nan, math.inf, "gradient"])
@pytest.mark.parametrize("call", [1, 4, 6])
def test_a_loss_that_is_not_finite_stops_before_the_weights(kind, call, tmp_path):
    """A NaN or infinite loss or gradient in any micro-batch raises, with the weights of the last good step."""
    data = [collate(some_examples(3, seed)) for seed in range(6)]
    good = adapted()
    train_steps = (call - 1) // 2
    model = Poisoned(adapted(), call, kind)
    with pytest.raises(FloatingPointError, match=f"step {train_steps + 1}"):
        train(model, data, 3, 1e-3, grad_accum=2, warmup=3, metrics=tmp_path / "m.csv")
    for p in model.parameters():
        assert torch.isfinite(p).all()
    with pytest.raises(FloatingPointError):  # the same run, spoilt from the first call of the same step on
        train(Poisoned(good, 2 * train_steps + 1, math.nan), data, 3, 1e-3, grad_accum=2, warmup=3)
    assert same(weights(good), weights(model.inner))
    with open(tmp_path / "m.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == train_steps


def test_clipping_is_off_by_default_and_logged_when_on():
    """grad_clip None clips nothing, a huge one is the same run, a small one is marked 1 in the clipped column."""
    runs = {}
    for clip in (None, 1e9, 1e-6):
        model = adapted()
        rows = train(model, epochs(some_examples(), 3), 4, 1e-2, grad_clip=clip, eps=1e-3)
        runs[clip] = weights(model), [row["clipped"] for row in rows], rows[0]["grad_norm"]
    assert runs[None][1] == runs[1e9][1] == [0] * 4 and runs[1e-6][1] == [1] * 4
    assert same(runs[None][0], runs[1e9][0]) and not same(runs[None][0], runs[1e-6][0])
    assert runs[None][2] == runs[1e-6][2] > 1e-3  # grad_norm is that before clipping


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_one_step_is_adam_on_the_clipped_gradient(clip):
    """The first update is -lr·g/(|g| + eps) with g scaled to norm grad_clip, from a gradient worked out by hand."""
    model = Counts()
    idx, targets = collate(some_examples(5))
    start = model.table.detach().clone()
    g, n = torch.zeros(13, 13, dtype=torch.float64), int((targets != -100).sum())
    for token, target in zip(idx.flatten().tolist(), targets.flatten().tolist()):
        if target != -100:
            g[token] += start[token].softmax(0) / n
            g[token, target] -= 1 / n
    row, = train(model, [(idx, targets)], 1, 1e-2, grad_clip=clip, eps=1e-4, warmup=1)
    assert row["grad_norm"] == pytest.approx(g.norm().item(), rel=1e-6)
    if clip:
        g *= clip / g.norm()
    wanted = -1e-2 * g / (g.abs() + 1e-4)
    # torch divides by norm + 1e-6 when it clips
    assert torch.allclose(model.table.detach() - start, wanted, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("drift", [False, True])
@pytest.mark.parametrize("val", [False, True])
def test_the_metrics_file_has_a_row_a_step(drift, val, tmp_path):
    """The CSV has the promised columns, one row a step, and every number to 6 significant digits or better."""
    path = tmp_path / "metrics.csv"
    rows = train(adapted(), epochs(some_examples(), 2, 2), 6, 1.2345678e-3, grad_accum=2, drift=drift, metrics=path,
                 val_batches=[collate(some_examples(2, 5))] if val else None, eval_every=4)
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        table = list(reader)
    columns = ["step", "loss", "val_loss", "lr", "grad_norm", "clipped", "tokens_per_s", "seconds"]
    assert reader.fieldnames == columns + (["signal", "drift", "drift_ratio"] if drift else [])
    assert [int(row["step"]) for row in table] == [1, 2, 3, 4, 5, 6]
    for written, row in zip(table, rows, strict=True):
        assert set(written) == set(row)
        for name, value in row.items():
            if value is None:
                assert name == "val_loss" and written[name] == ""
            else:
                assert float(written[name]) == pytest.approx(value, rel=5e-7)  # half a unit of the 7th digit
        assert row["tokens_per_s"] > 0 and row["grad_norm"] > 0
        if drift:
            assert (row["drift"] > 0) == (row["step"] > 1)  # B = 0 gives A no gradient in the first step
            assert row["signal"] > 0 and row["drift_ratio"] == pytest.approx(row["drift"] / row["signal"])
    seconds = [row["seconds"] for row in rows]
    assert 0 < seconds[0] and seconds == sorted(set(seconds))  # since the start, ever later
    assert [row["val_loss"] != "" for row in table] == [val and step in (4, 6) for step in range(1, 7)]


def test_metrics_are_there_while_the_run_goes_on(tmp_path):
    """Each row is in the file by the time log hears of it."""
    path, seen = tmp_path / "m.csv", []
    train(adapted(), epochs(some_examples(), 2), 3, 1e-3, metrics=path,
          log=lambda row: seen.append(len(path.read_text().splitlines())))
    assert seen == [2, 3, 4]


@given(st.integers(1, 60), st.data())
def test_the_schedule_is_transformers_cosine_with_warmup(steps, data):
    """Update t's rate is transformers' cosine schedule with warm-up at t, of a run that ends one update later."""
    warmup = data.draw(st.integers(0, steps))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=3e-4)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, steps + 1)
    for step in range(1, steps + 1):
        optimizer.step()
        schedule.step()
        assert learning_rate(step, steps, 3e-4, warmup) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)


def test_the_schedule_at_its_landmarks():
    """Half the rate half-way up, the whole at the end of the warm-up, half of it half-way down, never 0."""
    values = [learning_rate(step, 29, 8.0, 10) for step in range(1, 30)]
    assert values[4] == pytest.approx(4.0) and values[9] == pytest.approx(8.0) and values[19] == pytest.approx(4.0)
    assert max(values) == pytest.approx(8.0) and 0 < values[-1] < 0.1
    assert values[:10] == sorted(values[:10]) and values[9:] == sorted(values[9:], reverse=True)


@pytest.mark.parametrize("steps, warmup", [(1, 1), (9, 1), (20, 2), (40, 4)])
def test_warmup_is_a_tenth_by_default(steps, warmup):
    """Without being told, the loop warms up over a tenth of its steps, one at least, and logs the rate it used."""
    rows = train(Counts(), epochs(some_examples(), 4), steps, 0.5)
    assert [row["lr"] for row in rows].index(max(row["lr"] for row in rows)) == warmup - 1
    assert rows[warmup - 1]["lr"] == pytest.approx(0.5)


@pytest.mark.parametrize("grad_accum", [1, 3])
def test_an_update_without_any_target_is_refused(grad_accum):
    """An update of -100 alone is a ValueError, never a NaN, and leaves the weights as they were."""
    idx, targets = collate(some_examples(3))
    blank = idx, torch.full_like(targets, -100)
    model = adapted()
    before = weights(model)
    with pytest.raises(ValueError):
        train(model, [blank] * grad_accum, 1, 1e-2, grad_accum=grad_accum)
    assert same(before, weights(model))


def test_a_model_that_learns_nothing_is_refused():
    """Without a parameter that requires a gradient there is nothing to train: a ValueError."""
    with pytest.raises(ValueError):
        train(tiny().requires_grad_(False), epochs(some_examples(), 2), 1, 1e-3)


def test_only_the_adapters_move_and_the_loss_falls():
    """Training moves every A and B and no base weight by a bit, and memorises a handful of examples."""
    model = adapted(rank=4)
    before = weights(model)
    rows = train(model, epochs(some_examples(4), 4), 60, 1e-2)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {f"{name}.lora_{half}" for name in lora_layers(model) for half in "AB"}
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


def test_weight_decay_spares_vectors():
    """With weight decay, matrices without a gradient's pull shrink and norms do not."""
    model = tiny()
    model.requires_grad_(True)
    before = weights(model)
    train(model, epochs(some_examples(), 3), 1, 1e-3, weight_decay=100.0, eps=1e9)  # eps: the gradient moves nothing
    for name, p in model.named_parameters():
        assert torch.allclose(p, before[name] * (0.9 if p.dim() == 2 else 1.0), rtol=1e-5, atol=1e-7)

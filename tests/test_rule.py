"""The rule alpha = c·√r and the multiplier s = alpha / r: python -m pytest tests/test_rule.py"""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lora_alpha import alpha_for_rank, lora_scaling

ranks = st.integers(1, 1 << 20)
coefficients = st.floats(1e-3, 1e5)
CLOSE = 4 * 2.0**-53  # a square root, a product and a quotient, each rounded once to 1 part in 2^53, and one to spare


@given(rank=ranks, c=coefficients)
@example(rank=1, c=256.0)
def test_alpha_is_c_times_the_square_root_of_the_rank(rank, c):
    """alpha is positive and its square is c²·r."""
    alpha = alpha_for_rank(rank, c)
    assert alpha > 0 and math.isclose(alpha * alpha, c * c * rank, rel_tol=2 * CLOSE)


@given(rank=ranks, c=coefficients)
@example(rank=4, c=256.0)
def test_four_times_the_rank_doubles_alpha(rank, c):
    """Four times the rank gives twice the alpha, and so half the multiplier."""
    assert math.isclose(alpha_for_rank(4 * rank, c), 2 * alpha_for_rank(rank, c), rel_tol=CLOSE)
    s, s4 = lora_scaling(rank, alpha_for_rank(rank, c)), lora_scaling(4 * rank, alpha_for_rank(4 * rank, c))
    assert math.isclose(s4, s / 2, rel_tol=CLOSE)


@given(rank=ranks, c=coefficients)
def test_alpha_grows_with_the_rank(rank, c):
    """A larger rank has a strictly larger alpha."""
    assert alpha_for_rank(rank, c) < alpha_for_rank(rank + 1, c)


@given(rank=ranks, more=st.floats(2, 64), c=coefficients)
@example(rank=1, more=2.0, c=256.0)
def test_alpha_is_sublinear_in_the_rank(rank, more, c):
    """Multiplying the rank by more than one multiplies alpha by less than that."""
    larger = math.ceil(rank * more)
    assert alpha_for_rank(larger, c) * rank < alpha_for_rank(rank, c) * larger


@given(rank=ranks, c=coefficients)
@example(rank=16, c=256.0)
def test_scaling_is_c_over_root_r(rank, c):
    """Under the rule s = alpha / r is c/√r."""
    assert math.isclose(lora_scaling(rank, alpha_for_rank(rank, c)), c / rank**0.5, rel_tol=CLOSE)


@pytest.mark.parametrize(("rank", "alpha", "s"), [(1, 256, 256), (4, 512, 128), (16, 1024, 64), (64, 2048, 32),
                                                  (256, 4096, 16)])
def test_the_published_coefficient_gives_these_values(rank, alpha, s):
    """With c = 256 by default, square ranks give these whole numbers, bit for bit: rank 16 has 1024 and not 4096."""
    assert alpha_for_rank(rank) == alpha
    assert lora_scaling(rank, alpha_for_rank(rank)) == s


@given(rank=ranks, alpha=st.floats(-1e6, 1e6))
@example(rank=16, alpha=32.0)
def test_scaling_times_the_rank_is_alpha(rank, alpha):
    """s·r is alpha for every alpha, so the habit alpha = 2r has s = 2 at every rank."""
    assert math.isclose(lora_scaling(rank, alpha) * rank, alpha, rel_tol=CLOSE, abs_tol=1e-300)
    assert lora_scaling(rank, 2 * rank) == 2


@given(rank=ranks, alpha_rs=coefficients)
def test_the_rule_is_rslora_with_alpha_c(rank, alpha_rs):
    """rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) scales by alpha_rs/√r: the rule with c = alpha_rs does the same."""
    rslora = alpha_rs / math.sqrt(rank)
    assert math.isclose(lora_scaling(rank, alpha_for_rank(rank, c=alpha_rs)), rslora, rel_tol=CLOSE)


@given(rank=ranks, c=coefficients)
def test_the_rule_is_plain_lora_with_alpha_c_root_r(rank, c):
    """LoRA (Hu et al. 2021, arXiv:2106.09685) with its alpha set to c·√r has the rule's multiplier."""
    assert math.isclose(lora_scaling(rank, alpha_for_rank(rank, c)), (c * math.sqrt(rank)) / rank, rel_tol=CLOSE)


@given(rank=ranks, c=coefficients, j=st.integers(-10, 10))
def test_alpha_is_proportional_to_c(rank, c, j):
    """c times a power of two multiplies alpha by it, bit for bit."""
    assert alpha_for_rank(rank, c * 2.0**j) == alpha_for_rank(rank, c) * 2.0**j


@pytest.mark.parametrize("rank", [0, -1, math.nan, 1.5])
def test_a_rank_must_be_a_whole_number_above_zero(rank):
    """Rank 0, -1, nan or 1.5 is an error that says so."""
    with pytest.raises(ValueError, match="rank"):
        alpha_for_rank(rank)
    with pytest.raises(ValueError, match="rank"):
        lora_scaling(rank, 32.0)


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf])
def test_alpha_must_be_finite(alpha):
    """An alpha of nan or infinity is an error that says so."""
    with pytest.raises(ValueError, match="alpha"):
        lora_scaling(16, alpha)


@pytest.mark.parametrize("c", [math.nan, math.inf, 0.0, -1.0])
def test_c_must_be_finite_and_positive(c):
    """A c of nan, infinity, 0 or below is an error that says so."""
    with pytest.raises(ValueError, match="c = "):
        alpha_for_rank(16, c)

"""Derivatives of a jump: JumpReLU (arXiv 2407.14435), equations 11 and 12."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saecodec.training.straight_through import jump, step_up

WIDTH = 0.3
numbers = st.floats(0.0078125, 10, width=32)


@given(st.lists(st.tuples(st.floats(-1, 3, width=32), numbers, st.floats(-5, 5, width=32)), min_size=1))
def test_gradients_are_those_of_the_paper(cells: list[tuple[float, float, float]]) -> None:
    relative, threshold, slope = torch.tensor(cells).unbind(1)
    h = (relative * threshold).clone().requires_grad_()
    threshold = threshold.clone().requires_grad_()
    epsilon = WIDTH * threshold.detach()
    fires = h.detach() > threshold.detach()
    u = (h.detach() - threshold.detach()) / epsilon
    kernel = ((u > -0.5) & (u < 0.5)).float()
    sure = (u.abs() - 0.5).abs() > 1e-4  # at the very edge, roundings decide

    value = jump(h, threshold, WIDTH)
    torch.testing.assert_close(value, h.detach() * fires, rtol=0, atol=0)
    of_h, of_threshold = torch.autograd.grad(value, [h, threshold], slope)
    torch.testing.assert_close(of_h, slope * fires, rtol=0, atol=0)
    torch.testing.assert_close(
        of_threshold[sure], (-threshold.detach() / epsilon * kernel * slope)[sure], rtol=1e-4, atol=1e-6
    )

    value = step_up(h, threshold, WIDTH)
    torch.testing.assert_close(value, fires.float(), rtol=0, atol=0)
    of_h_too, of_threshold = torch.autograd.grad(value, [h, threshold], slope, allow_unused=True)
    assert of_h_too is None
    torch.testing.assert_close(of_threshold[sure], (-kernel / epsilon * slope)[sure], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factor", [0.0, 0.84, 1.16, 4.0])
def test_activations_far_from_a_threshold_do_not_move_it(factor: float) -> None:
    threshold = torch.tensor([0.5, 2.0], requires_grad=True)
    h = (threshold * factor).detach()
    (jump(h, threshold, WIDTH) + step_up(h, threshold, WIDTH)).sum().backward()  # type: ignore[no-untyped-call]
    assert threshold.grad is not None
    assert (threshold.grad == 0).all()


def test_the_mean_gradient_is_that_of_the_mean_over_many_activations() -> None:
    h = torch.rand(2_000_000)  # density 1: the expected share above t is 1 - t, the mean of what passes (1 - t^2) / 2
    threshold = torch.tensor(0.4, requires_grad=True)
    at = threshold.expand(len(h))
    (of_share,) = torch.autograd.grad(step_up(h, at, WIDTH).mean(), threshold)
    (of_mean,) = torch.autograd.grad(jump(h, at, WIDTH).mean(), threshold)
    assert float(of_share) == pytest.approx(-1, rel=0.02)
    assert float(of_mean) == pytest.approx(-0.4, rel=0.02)

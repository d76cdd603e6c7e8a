"""Similarity of subspaces and amplification, on matrices where one knows the answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from analysis.subspaces import amplification, similarities, similarity

WIDTH = 12
AXES = torch.eye(WIDTH, dtype=torch.float64)


def rows(*axes):
    """A matrix whose first direction is the first of these axes, its second the second, and so on."""
    sizes = torch.arange(len(axes), 0, -1, dtype=torch.float64)
    return sizes[:, None] * AXES[list(axes)]


def rotation(size, seed=0):
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[
        0
    ]


@pytest.mark.parametrize(
    ("first", "second", "i", "j", "shared"),
    [
        ((0, 1), (0, 1), 2, 2, 1.0),
        ((0, 1), (1, 0), 2, 2, 1.0),  # the same span, in another order
        ((0, 1), (1, 0), 1, 1, 0.0),
        ((0, 1), (1, 0), 1, 2, 1.0),  # the first lies in the span of both
        ((0, 1), (2, 3), 2, 2, 0.0),
        ((0, 1, 2, 3), (0, 4, 2, 5), 4, 4, 0.5),
        ((0, 1, 2, 3), (3, 4), 4, 2, 0.5),  # one of two: by the smaller number
    ],
)
def test_axes_share_what_one_counts(first, second, i, j, shared):
    assert similarity(rows(*first), rows(*second), i, j) == pytest.approx(shared)
    assert similarity(rows(*second), rows(*first), j, i) == pytest.approx(shared)  # symmetric


def test_directions_at_an_angle_share_the_square_of_its_cosine():
    angle = 0.7
    turned = math.cos(angle) * AXES[:1] + math.sin(angle) * AXES[1:2]
    assert similarity(AXES[:1], 5 * turned, 1, 1) == pytest.approx(math.cos(angle) ** 2)


def test_only_the_right_singular_vectors_count_and_both_sides_may_turn_alike():
    A, other = rows(0, 1, 2), rows(0, 5, 1)
    expected = similarity(A, other, 2, 2)
    assert similarity(rotation(3) @ A, other, 2, 2) == pytest.approx(expected)  # what A's output is turned by
    Q = rotation(WIDTH)
    assert similarity(A @ Q, other @ Q, 2, 2) == pytest.approx(expected)
    assert similarity(A @ Q, other, 2, 2) != pytest.approx(expected)  # the control: only one of them is turned


@pytest.mark.parametrize(("i", "j"), [(1, 1), (4, 4), (2, 8), (8, 8)])
def test_random_matrices_share_the_larger_number_over_the_width(i, j):
    width, generator = 64, torch.Generator().manual_seed(0)
    pairs = [torch.randn(2, 8, width, generator=generator) for _ in range(300)]
    mean = np.mean([similarity(*pair, i, j) for pair in pairs])
    assert mean == pytest.approx(max(i, j) / width, rel=0.15)


def test_the_grid_has_every_similarity_and_each_is_from_0_to_1():
    A, other = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(1))
    grid = similarities(A, other, [1, 2, 4], [1, 3, 6])
    assert grid == [[similarity(A, other, i, j) for j in (1, 3, 6)] for i in (1, 2, 4)]
    assert all(0 <= value <= 1 for line in grid for value in line)
    assert similarities(A, A, [1, 6], [1, 6]) == [[pytest.approx(1.0)] * 2] * 2
    assert max(map(max, similarities(A, A, range(1, 7), range(1, 7)))) <= 1  # and not by rounding above it


@pytest.mark.parametrize("width", [WIDTH, 1024])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, "gradient", "numpy"])
def test_adapters_come_as_they_are_kept(kind, width):
    A = torch.randn(4, width, generator=torch.Generator().manual_seed(2))
    given = {"gradient": lambda: torch.nn.Parameter(A), "numpy": A.numpy}.get(kind, lambda: A.to(kind))()
    assert similarity(given, A, 4, 4) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [WIDTH, 1024])
def test_what_rounding_adds_to_a_matrix_is_no_direction(kind, width):
    B, A = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(4))
    delta = (B.T @ A).to(kind)
    assert similarity(delta, A, 3, 3) == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(ValueError, match="A1 of rank 4 or more, found rank 3"):
        similarity(delta, A, 4, 3)


def diagonal(*values):
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def test_an_update_of_small_directions_is_seen_to_amplify_them():
    """W is large along the first axis; the update is six times W along the third."""
    found = amplification(diagonal(10.0, 3.0, 0.5, 0.1), diagonal(0.0, 0.0, 3.0, 0.0), 1)
    assert found.along_update == pytest.approx(0.5)
    assert found.along_weights == pytest.approx(10.0)
    assert found.along_random == pytest.approx(math.sqrt(10**2 + 3**2 + 0.5**2 + 0.1**2) / 4)
    assert found.factor == pytest.approx(6.0)
    along_update, along_weights, along_random, factor = found
    assert along_random > along_update and factor > 1 and along_weights > along_update


def test_an_update_along_the_first_directions_of_w_repeats_them():
    W = diagonal(10.0, 3.0, 0.5, 0.1)
    found = amplification(W, 0.2 * diagonal(10.0, 3.0, 0.0, 0.0), 2)
    assert found.along_update == pytest.approx(found.along_weights) == pytest.approx(math.hypot(10, 3))
    assert found.factor == pytest.approx(0.2)


def test_rotating_w_and_its_update_together_changes_nothing():
    W, delta = diagonal(9.0, 4.0, 2.0, 1.0), diagonal(0.0, 1.0, 3.0, 0.0)
    left, right = rotation(4, 1), rotation(4, 2)
    expected = amplification(W, delta, 2)
    assert amplification(left @ W @ right, left @ delta @ right, 2) == pytest.approx(expected)
    assert amplification(left @ W @ right, delta, 2).factor != pytest.approx(expected.factor, rel=0.1)  # the control


def test_the_norm_along_random_directions_is_the_mean_over_them_and_agrees_with_the_paper():
    """Table 7 prints 61.95 for W, 0.02 along one random matrix at r=4 and 0.33 at r=64; d is 12,288 in GPT-3."""
    W = torch.randn(20, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = []
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        U, _, V = torch.linalg.svd(torch.randn(20, 30, generator=generator, dtype=torch.float64), full_matrices=False)
        drawn.append((U.T[:4] @ W @ V[:4].T).square().sum().item())
    assert amplification(W, W, 4).along_random == pytest.approx(math.sqrt(np.mean(drawn)), rel=0.03)
    assert [r * 61.95 / 12_288 for r in (4, 64)] == pytest.approx([0.02, 0.33], abs=0.01)


def test_w_that_has_nothing_in_the_directions_of_its_update_is_amplified_without_bound():
    assert amplification(torch.zeros(3, 3), torch.eye(3), 2).factor == math.inf


A, NAN = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(3)), torch.full((4, WIDTH), torch.nan)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: similarity(A, A, 5, 1), r"from 1 to 4 directions of A1, a matrix of \(4, 12\); found 5: ask for a lo"),
        (lambda: similarity(A, A, 1, 64), r"from 1 to 4 directions of A2, .*; found 64"),
        (lambda: similarity(A, A, 0, 1), "from 1 to 4 directions of A1, .*; found 0"),
        (lambda: similarity(A, A, 1, 1.5), r"directions of A2, .*; found 1\.5"),
        (lambda: similarity(A, A[:, :8], 2, 2), "A1 and A2 of one width, found 12 and 8 columns"),
        (lambda: similarity(A[0], A, 1, 1), r"A1 as a matrix of two dimensions, found the shape \(12,\)"),
        (lambda: similarity(A, A[None], 1, 1), r"A2 as a matrix of two dimensions, found the shape \(1, 4, 12\)"),
        (lambda: similarity(A, NAN, 1, 1), "finite numbers in A2, found NaN or infinity: its training diverged"),
        (lambda: similarity(A, A[:1].expand(4, -1), 1, 2), "A2 of rank 2 or more, found rank 1: ask for a lower rank"),
        (lambda: amplification(A, A, 5), "from 1 to 4 directions of W, .*; found 5"),
        (lambda: amplification(A, A.T, 2), r"W and its update of one shape, found \(4, 12\) and \(12, 4\)"),
        (lambda: amplification(A, A[0], 1), "the update as a matrix of two dimensions"),
        (lambda: amplification(NAN, A, 1), "finite numbers in W, found NaN"),
        (lambda: amplification(A, NAN / 0, 1), "finite numbers in the update, found NaN"),
        (lambda: amplification(A, A[:, :1] @ A[:1], 2), "the update of rank 2 or more, found rank 1"),
        (lambda: amplification(A, torch.zeros(4, WIDTH), 1), "the update of rank 1 or more, found rank 0"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(measure, message):
    with pytest.raises(ValueError, match=message):
        measure()


@pytest.mark.parametrize(
    ("i", "j"), [([-1, 2], [2]), ([0, 2], [2]), ([1.5, 2], [2]), ([2], [5, 1]), ([], [1])], ids=str
)
def test_each_number_of_directions_in_a_grid_is_checked(i, j):
    with pytest.raises(ValueError, match=r"expected (from 1 to 4 directions of A|a number of directions)"):
        similarities(A, A, i, j)

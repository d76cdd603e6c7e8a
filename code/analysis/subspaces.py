"""What an update is made of: section 7 of Hu et al. 2021, arXiv:2106.09685.

    similarity(A1, A2, i, j)        how much of the first i directions of A1 lies in the first j of A2: figures 3 and 4
    amplification(W, delta, r)      how much of W lies in the directions of its update: Table 7

A direction of A (r, d_in) is a right singular vector, of d_in numbers; the first belongs to the largest singular value.
`subspace_measurement.py` asks this of trained adapters. All is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor


class Amplification(NamedTuple):
    """A row of Table 7: the norm of U^T W V with U and V of the update, of W and of random matrices; and the factor."""

    along_update: float
    along_weights: float
    along_random: float
    factor: float


def _matrix(name: str, matrix: Tensor, *directions: int) -> Tensor:
    """The matrix on the CPU; ValueError if it is none of finite numbers, or has not each of these many directions."""
    matrix = torch.as_tensor(matrix).detach().cpu()
    if matrix.dim() != 2:
        raise ValueError(f"expected {name} as a matrix of two dimensions, found the shape {tuple(matrix.shape)}")
    if not matrix.isfinite().all():
        raise ValueError(f"expected finite numbers in {name}, found NaN or infinity: its training diverged")
    most = min(matrix.shape)
    if odd := [number for number in directions if not isinstance(number, Integral) or not 1 <= number <= most]:
        raise ValueError(
            f"expected from 1 to {most} directions of {name}, a matrix of {tuple(matrix.shape)}; found {odd[0]!r}: ask "
            "for a lower rank"
        )
    return matrix if matrix.is_floating_point() else matrix.double()


def _first_directions(name: str, matrix: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The first left and right singular vectors, in rows of float64.

    ValueError if the matrix is of a lower rank: where singular values are zero, any vectors would do.
    """
    matrix = _matrix(name, matrix, number)
    U, values, V = torch.linalg.svd(matrix.double(), full_matrices=False)
    # the rounding of all entries moves no value by more; nor does that of the decomposition itself
    rounding = max(torch.finfo(matrix.dtype).eps, max(matrix.shape) * torch.finfo(torch.float64).eps)
    rounding *= torch.linalg.norm(values)
    if (rank := int((values > rounding).sum())) < number:
        raise ValueError(f"expected {name} of rank {number} or more, found rank {rank}: ask for a lower rank")
    return U.T[:number], V[:number]


def similarities(A1: Tensor, A2: Tensor, i: Sequence[int], j: Sequence[int]) -> list[list[float]]:
    """`similarity` for every number of directions in `i` (down) and in `j` (across), one or more of each."""
    if not (i and j):
        raise ValueError(f"expected a number of directions of each matrix, found {i!r} and {j!r}")
    A1, A2 = _matrix("A1", A1, *i), _matrix("A2", A2, *j)
    V1, V2 = _first_directions("A1", A1, max(i))[1], _first_directions("A2", A2, max(j))[1]
    if V1.shape[1] != V2.shape[1]:
        raise ValueError(
            f"expected A1 and A2 of one width, found {V1.shape[1]} and {V2.shape[1]} columns: compare adapters of one "
            "matrix"
        )
    shared = (V1 @ V2.T).square().cumsum(0).cumsum(1)  # [i - 1, j - 1]: of the first i and the first j
    return [[min(1.0, shared[a - 1, b - 1].item() / min(a, b)) for b in j] for a in i]


def similarity(A1: Tensor, A2: Tensor, i: int, j: int) -> float:
    """||V1_i V2_j^T||_F^2 / min(i, j), of the first right singular vectors of A1 (r1, d) and A2 (r2, d).

    1: one span lies in the other; 0: they are orthogonal. Spans of random matrices share max(i, j) / d on average.
    Equation 4, section 7.2. Raises ValueError for matrices of different widths, for NaN, and for more directions than
    a matrix has.
    """
    return similarities(A1, A2, [i], [j])[0][0]


def amplification(W: Tensor, delta: Tensor, r: int) -> Amplification:
    """||U^T W V||_F with the first r singular vectors U, V of delta, of W and of random matrices; and the factor.

    W and delta are (d_out, d_in). The factor is ||delta||_F over the first norm (section 7.3). The third norm is the
    root mean square over all directions, r ||W||_F / sqrt(d_out d_in); the paper draws one random matrix.
    Raises ValueError for matrices of different shapes, for NaN, and for a rank that one of them does not have.
    """
    weights, update = _matrix("W", W, r).double(), _matrix("the update", delta, r).double()
    if weights.shape != update.shape:
        raise ValueError(
            f"expected W and its update of one shape, found {tuple(weights.shape)} and {tuple(update.shape)}: the "
            "update is B A, times alpha / r"
        )

    U, V = _first_directions("the update", delta, r)
    along_update = torch.linalg.norm(U @ weights @ V.T).item()
    along_weights = torch.linalg.norm(torch.linalg.svdvals(weights)[:r]).item()
    along_random = r * torch.linalg.norm(weights).item() / math.sqrt(weights.numel())
    factor = torch.linalg.norm(update).item() / along_update if along_update else math.inf
    return Amplification(along_update, along_weights, along_random, factor)

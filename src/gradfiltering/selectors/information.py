"""Information that a row's gradient adds to the rows selected so far."""

from typing import Protocol

import numpy as np

REFRESH_STEPS = 64  # after which all candidates are brought up to date, in one matrix product
BLOCK_ROWS = 8192  # rows converted to float64 at once
BLOCK_FACTORS = 1024  # rows of W multiplied at once


class Information(Protocol):
    """Marginal gains Δ(x|S) of candidate rows, as S grows."""

    def restrict_to(self, row_indices: np.ndarray) -> "Information":
        """Return the same information about some candidates; it sees what is added to the whole."""
        ...

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """[B] candidates -> [B] float64 exact gains."""
        ...

    def refreshed_gains(self) -> np.ndarray | None:
        """Return [N] exact gains of all candidates where they are due, else None."""
        ...

    def add_row(self, row_index: int) -> None:
        """Take a row into S."""
        ...


class FullInformation:
    r"""\(Δ(x|S) = \log(1 + α\, g_x^\top A_S^{-1} g_x)\), \(A_S = I + α \sum_S g g^\top\).

    Sherman–Morrison subtracts w wᵀ from the inverse, with
    \(w = A_S^{-1} g_s \sqrt{α / (1 + α g_s^\top A_S^{-1} g_s)}\). So \(A_S^{-1} = I - W^\top W\),
    where W has a row for each selected row, and a candidate's quadratic form is
    \(‖g_x‖² - ‖W g_x‖²\). Products with the newest rows of W are made for the candidates that are
    evaluated, and for all rows in blocks. No K × K matrix is held. All but the gradients is float64.

    Args:
        gradients: [N, K] float32.
        alpha: α.
        max_rows: most rows that will be added.
    """

    def __init__(self, gradients: np.ndarray, alpha: float, max_rows: int):
        self.all_gradients = gradients
        self.alpha = alpha
        self.factors = _GrowingRows(np.zeros((max_rows, gradients.shape[1])))  # W
        self._set_candidates(gradients)

    def _set_candidates(self, gradients: np.ndarray) -> None:
        self.gradients = gradients
        # [N] gᵀ A⁻¹ g, as of the first `factors_seen` rows of W
        self.quadratic_forms = np.einsum("nk,nk->n", gradients, gradients, dtype=np.float64)
        self.factors_seen = 0
        self._catch_up()

    def restrict_to(self, row_indices: np.ndarray) -> "FullInformation":
        """Return the same information about some candidates."""
        restricted = object.__new__(FullInformation)
        restricted.all_gradients, restricted.alpha = self.all_gradients, self.alpha
        restricted.factors = self.factors
        takes_all = len(row_indices) == len(self.all_gradients)
        restricted._set_candidates(self.all_gradients if takes_all else self.all_gradients[row_indices])
        return restricted

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """[B] -> [B]."""
        new_factors = self.factors.rows[self.factors_seen : self.factors.count]
        forms = self.quadratic_forms[candidates]
        if len(new_factors):
            products = self.gradients[candidates].astype(np.float64) @ new_factors.T
            forms = forms - np.square(products).sum(1)
        return self._gains_of(np.maximum(forms, 0))

    def refreshed_gains(self) -> np.ndarray | None:
        """Return all gains, once in a while."""
        if self.factors.count - self.factors_seen < REFRESH_STEPS:
            return None
        self._catch_up()
        return self._gains_of(self.quadratic_forms)

    def _gains_of(self, quadratic_forms: np.ndarray) -> np.ndarray:
        gains: np.ndarray = np.log1p(self.alpha * quadratic_forms)
        return gains

    def _catch_up(self) -> None:
        new_factors = self.factors.rows[self.factors_seen : self.factors.count]
        for start in range(0, len(self.gradients) if len(new_factors) else 0, BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            block = self.gradients[rows].astype(np.float64)
            for first in range(0, len(new_factors), BLOCK_FACTORS):
                products = block @ new_factors[first : first + BLOCK_FACTORS].T
                self.quadratic_forms[rows] -= np.square(products).sum(1)
        np.maximum(self.quadratic_forms, 0, out=self.quadratic_forms)
        self.factors_seen = self.factors.count

    def add_row(self, row_index: int) -> None:
        """Append the row's w."""
        gradient = self.all_gradients[row_index].astype(np.float64)
        past_factors = self.factors.rows[: self.factors.count]
        solution = gradient - past_factors.T @ (past_factors @ gradient)  # A⁻¹ g
        quadratic_form = max(float(gradient @ solution), 0.0)
        self.factors.append(solution * np.sqrt(self.alpha / (1 + self.alpha * quadratic_form)))


class _GrowingRows:
    """Rows that grow in place, shared by all who read the same information."""

    def __init__(self, rows: np.ndarray):
        self.rows = rows
        self.count = 0

    def append(self, new_row: np.ndarray) -> None:
        self.rows[self.count] = new_row
        self.count += 1


class DiagonalInformation:
    r"""\(Δ = \log(1 + α \sum_j g_j² / d_j)\), \(d_j = 1 + α \sum_S g_j²\).

    The information matrix by its diagonal.

    Args:
        gradients: [N, K] float32.
        alpha: α.
        max_rows: most rows that will be added.
    """

    def __init__(self, gradients: np.ndarray, alpha: float, max_rows: int):
        self.all_gradients = self.gradients = gradients
        self.alpha = alpha
        # The diagonal, and how many rows are in it.
        self.diagonal = _GrowingRows(np.ones((1, gradients.shape[1])))
        self.rows_seen = 0

    def restrict_to(self, row_indices: np.ndarray) -> "DiagonalInformation":
        """Return the same information about some candidates."""
        restricted = object.__new__(DiagonalInformation)
        restricted.all_gradients, restricted.alpha = self.all_gradients, self.alpha
        restricted.diagonal, restricted.rows_seen = self.diagonal, self.diagonal.count
        takes_all = len(row_indices) == len(self.all_gradients)
        restricted.gradients = self.all_gradients if takes_all else self.all_gradients[row_indices]
        return restricted

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """[B] -> [B]."""
        inverse_diagonal = 1 / self.diagonal.rows[0]
        forms = np.empty(len(candidates))
        for start in range(0, len(candidates), BLOCK_ROWS):
            block = self.gradients[candidates[start : start + BLOCK_ROWS]].astype(np.float64)
            forms[start : start + BLOCK_ROWS] = np.square(block) @ inverse_diagonal
        return np.log1p(self.alpha * forms)

    def refreshed_gains(self) -> np.ndarray | None:
        """Return all gains, once in a while."""
        if self.diagonal.count - self.rows_seen < REFRESH_STEPS:
            return None
        self.rows_seen = self.diagonal.count
        return self.gains(np.arange(len(self.gradients)))

    def add_row(self, row_index: int) -> None:
        """Add the row's squares to the diagonal."""
        squares = np.square(self.all_gradients[row_index].astype(np.float64))
        self.diagonal.rows[0] += self.alpha * squares
        self.diagonal.count += 1

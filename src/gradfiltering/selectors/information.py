"""How much a row's gradient adds to the information of those chosen so far."""

from typing import Protocol

import numpy as np

REFRESH = 64  # steps after which all candidates are brought up to date, in one matrix product
BLOCK = 8192  # rows converted to float64 at once


class Information(Protocol):
    """Marginal gains Δ(x|S) of candidate rows, as S grows."""

    def restricted(self, rows: np.ndarray) -> "Information":
        """The same information, seen by some of the rows; `add` to the whole is seen by it too."""
        ...

    def gains(self, places: np.ndarray) -> np.ndarray:
        """[B] candidates -> [B] float64 exact gains."""
        ...

    def refreshed(self) -> np.ndarray | None:
        """[N] exact gains of all candidates where it is time to make them, else None."""
        ...

    def add(self, row: int) -> None:
        """Takes a row into S."""
        ...


class FullInformation:
    r"""\(Δ(x|S) = \log(1 + α\, g_x^\top A_S^{-1} g_x)\), \(A_S = I + α \sum_S g g^\top\), by rank-one updates.

    Sherman–Morrison subtracts w wᵀ from the inverse with \(w = A_S^{-1} g_s \sqrt{α / (1 + α g_s^\top A_S^{-1} g_s)}\),
    so \(A_S^{-1} = I - W^\top W\) with one row of W for each choice, and a candidate's quadratic form is
    \(‖g_x‖² - ‖W g_x‖²\). Products with the newest rows of W are made for the candidates that are looked at, with all
    rows in blocks. No K × K matrix is held. Everything but the gradients themselves is float64.

    Args:
        gradients: [N, K] float32.
        alpha: α.
        budget: choices to come at most.
    """

    def __init__(self, gradients: np.ndarray, alpha: float, budget: int):
        self.all = gradients
        self.alpha = alpha
        self.history = _History(np.zeros((budget, gradients.shape[1])))
        self._see(gradients)

    def _see(self, gradients: np.ndarray) -> None:
        self.gradients = gradients
        self.form = np.einsum("nk,nk->n", gradients, gradients, dtype=np.float64)  # [N] gᵀ A⁻¹ g, as of `since`
        self.since = 0
        self._catch_up()

    def restricted(self, rows: np.ndarray) -> "FullInformation":
        """The same, for some of the rows."""
        some = object.__new__(FullInformation)
        some.all, some.alpha, some.history = self.all, self.alpha, self.history
        some._see(self.all if len(rows) == len(self.all) else self.all[rows])
        return some

    def gains(self, places: np.ndarray) -> np.ndarray:
        """[B] -> [B]."""
        recent = self.history.rows[self.since : self.history.count]
        form = self.form[places]
        if len(recent):
            form = form - np.square(self.gradients[places].astype(np.float64) @ recent.T).sum(1)
        return np.log1p(self.alpha * np.maximum(form, 0))

    def refreshed(self) -> np.ndarray | None:
        """All gains, once in a while."""
        if self.history.count - self.since < REFRESH:
            return None
        self._catch_up()
        return np.log1p(self.alpha * self.form)

    def _catch_up(self) -> None:
        recent = self.history.rows[self.since : self.history.count]
        for at in range(0, len(self.gradients) if len(recent) else 0, BLOCK):
            block = self.gradients[at : at + BLOCK].astype(np.float64)
            for part in range(0, len(recent), BLOCK // 8):
                self.form[at : at + BLOCK] -= np.square(block @ recent[part : part + BLOCK // 8].T).sum(1)
        np.maximum(self.form, 0, out=self.form)
        self.since = self.history.count

    def add(self, row: int) -> None:
        """Appends the row's w."""
        gradient = self.all[row].astype(np.float64)
        past = self.history.rows[: self.history.count]
        solved = gradient - past.T @ (past @ gradient)  # A⁻¹ g
        self.history.append(solved * np.sqrt(self.alpha / (1 + self.alpha * max(float(gradient @ solved), 0.0))))


class _History:
    """Rows of W, grown in place and shared by all who look at the same information."""

    def __init__(self, rows: np.ndarray):
        self.rows = rows
        self.count = 0

    def append(self, row: np.ndarray) -> None:
        self.rows[self.count] = row
        self.count += 1


class DiagonalInformation:
    r"""\(Δ = \log(1 + α \sum_j g_j² / d_j)\), \(d_j = 1 + α \sum_S g_j²\): the information matrix by its diagonal.

    Args:
        gradients: [N, K] float32.
        alpha: α.
        budget: choices to come at most.
    """

    def __init__(self, gradients: np.ndarray, alpha: float, budget: int):
        self.all = self.gradients = gradients
        self.alpha = alpha
        self.history = _History(np.ones((1, gradients.shape[1])))  # the diagonal, and how many rows are in it
        self.since = 0

    def restricted(self, rows: np.ndarray) -> "DiagonalInformation":
        """The same, for some of the rows."""
        some = object.__new__(DiagonalInformation)
        some.all, some.alpha, some.history, some.since = self.all, self.alpha, self.history, self.history.count
        some.gradients = self.all if len(rows) == len(self.all) else self.all[rows]
        return some

    def gains(self, places: np.ndarray) -> np.ndarray:
        """[B] -> [B]."""
        inverse = 1 / self.history.rows[0]
        found = np.empty(len(places))
        for at in range(0, len(places), BLOCK):
            found[at : at + BLOCK] = np.square(self.gradients[places[at : at + BLOCK]].astype(np.float64)) @ inverse
        return np.log1p(self.alpha * found)

    def refreshed(self) -> np.ndarray | None:
        """All gains, once in a while."""
        if self.history.count - self.since < REFRESH:
            return None
        self.since = self.history.count
        return self.gains(np.arange(len(self.gradients)))

    def add(self, row: int) -> None:
        """Adds the row's squares to the diagonal."""
        self.history.rows[0] += self.alpha * np.square(self.all[row].astype(np.float64))
        self.history.count += 1

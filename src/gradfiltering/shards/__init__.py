"""Rows in numbers that memory does not hold: scored, ranked, selected and diagnosed from files, in bounded memory."""

"""Batches padded one row at a time, from the lists that `datasets` makes of the rows."""

import torch

from gradfiltering.data.batches import IGNORED


def pad_row_by_row(token_rows, span_rows, padded_length, pad_id):
    """[rows, padded_length] tokens and labels."""
    input_ids = torch.full((len(token_rows), padded_length), pad_id)
    labels = torch.full_like(input_ids, IGNORED)
    for row_index, (token_ids, spans) in enumerate(zip(token_rows, span_rows, strict=True)):
        input_ids[row_index, : len(token_ids)] = torch.tensor(token_ids)
        for first_position, end_position in zip(spans[::2], spans[1::2], strict=True):
            labels[row_index, first_position:end_position] = torch.tensor(token_ids[first_position:end_position])
    return input_ids, labels

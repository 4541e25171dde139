"""Text files of sparse rows, as LIBSVM, LIBLINEAR and libFM have them: a row a line."""

from __future__ import annotations

from ..errors import InputError, RequestError
from ..tensors import Array, Signature
from ..wire import sparse_json

ROW = "row "


def read_lines(data: bytes, alias: str, signature: Signature, where: str) -> dict[str, Array]:
    """The parts of the sparse input `alias`, rows in the order of the lines.

    Labels are passed over, and lines that are empty or a comment alone; a label alone is a row without
    entries. Raises InputError naming the line, PayloadTooLarge; ids are left to `check_inputs`.
    """
    try:
        numbered = [(i, line.decode()) for i, line in enumerate(data.splitlines(), 1)]
    except UnicodeDecodeError as error:
        raise InputError("the lines are not UTF-8", where=where, found=error) from error
    kept = [(i, line) for i, line in numbered if line.partition("#")[0].strip()]
    if not kept:
        raise InputError("the file holds no rows", where=where, expected="a line such as 3:1 17:0.5")
    try:
        return sparse_json.of_rows([line for _, line in kept], alias, signature)
    except RequestError as error:
        if not error.where.startswith(ROW):
            raise
        number = kept[int(error.where.removeprefix(ROW))][0]
        raise InputError(
            error.what, where=f"{where}: line {number}", expected=error.expected, found=error.found
        ) from error

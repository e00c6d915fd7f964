"""Traces from elsewhere: dF/F read from files of other programs, and rates of spikes written."""

from __future__ import annotations

import csv
import io
import math
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray
from scipy.io.matlab import MatReadError

from napari_calcium.errors import UNREADABLE, InputError

__all__ = [
    "KNOWN_NAMES",
    "WRITTEN",
    "Axes",
    "TraceFile",
    "check_destination",
    "read_traces",
    "try_destination",
    "write_rates",
    "write_spike_times",
]

Axes = Literal["cell,time", "time,cell"]

KNOWN_NAMES = ("dF_traces", "dff", "dF", "dF_F", "F_dff", "traces")
"""Variables of .mat files that hold dF/F, by their usual names, the likeliest first.

Suite2p's ``F`` is none of them: it is fluorescence in counts.
"""

TIME_COLUMN = re.compile(
    r"(times?([ _-]?stamps?)?|frames?|t)[ _]*"
    r"[(\[]?(s|ms|sec|seconds|min|index|number|frames?)?[)\]]?",
    re.IGNORECASE,
)
"""The name of a column that is no cell."""

CELL_COLUMN = re.compile(r"(cell|neuron|roi)s?([ _]?(id|name))?|id|name", re.IGNORECASE)
"""The heading of a column of names of cells."""

OWN_HEADING = re.compile(r" dff \(fraction\)$")
"""What the export adds to the names of cells."""

NUMERIC = ("double", "single", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
"""Classes of MATLAB whose values are numbers."""

DAMAGED = (*UNREADABLE, MatReadError, MemoryError, csv.Error, tokenize.TokenError)
"""What reading a file of another kind, or a damaged one, can raise."""

WRITTEN = (".npy", ".csv", ".mat", ".npz")
"""Kinds of files that rates can be written to, by their suffix."""


@dataclass(frozen=True)
class TraceFile:
    """Traces from a file, and how it was understood.

    Parameters
    ----------
    traces : ndarray (cell, time)
        As they are in the file, of any real type; NaN where a value is missing. Those of a .npy
        file are read when they are looked at.
    names : tuple of str
        What the cells are called, "0", "1" and so on where the file does not say it.
    understood : str
        What was taken for what, in a sentence.
    """

    traces: NDArray[Any]
    names: tuple[str, ...]
    understood: str

    def __post_init__(self) -> None:
        if self.traces.ndim != 2 or len(self.traces) != len(self.names):
            raise ValueError(f"{len(self.names)} names but traces {self.traces.shape}")


@dataclass(frozen=True)
class _Table:
    """Numbers as they lie in a file, and what it says of them."""

    values: NDArray[Any]
    row_names: tuple[str, ...] = ()
    column_names: tuple[str, ...] = ()
    axes: Axes | None = None
    about: str = ""


def read_traces(
    path: str | Path, *, variable: str | None = None, axes: Axes | None = None
) -> TraceFile:
    r"""Read dF/F traces.

    Parameters
    ----------
    path : path
        A ``.npy`` file, (cell, time) or (time,), no pickles. A table ``.csv`` or ``.tsv`` with or
        without a header, whose first column is left out where it is called time, timestamp, frame,
        frames or t, and names the cells where it is called cell, neuron, roi, id or name; an empty
        field is NaN. Or a ``.mat`` file of any version.
    variable : str, optional
        Which variable of a .mat file; the only matrix, or the one of a usual name (`KNOWN_NAMES`),
        if not given.
    axes : {"cell,time", "time,cell"}, optional
        What rows and columns are. If not given: of .npy files (cell, time); of others what names
        and a column of times say, and else time is the longer one.

    Returns
    -------
    TraceFile

    Raises
    ------
    InputError
        If there is no such file, it is of another kind or damaged, holds no numbers or no matrix,
        or does not tell which axis time is.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "dff.csv")
    ...     _ = path.write_text("time (s),left,right\n0,0.1,0.2\n0.5,0.3,\n")
    ...     found = read_traces(path)
    >>> found.names, found.traces.tolist()
    (('left', 'right'), [[0.10000000149011612, 0.30000001192092896], [0.20000000298023224, nan]])
    >>> found.understood
    'dff.csv: 2 cells in columns, 2 frames in rows; the column time (s) is left out'
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path} is no file; give traces as .npy, .csv, .tsv or .mat")
    if axes not in (None, "cell,time", "time,cell"):
        raise InputError(f"axes is {axes!r}; it is 'cell,time' or 'time,cell'")
    readers: dict[str, Callable[[], _Table]] = {
        ".npy": lambda: _read_npy(path),
        ".csv": lambda: _read_table(path),
        ".tsv": lambda: _read_table(path),
        ".mat": lambda: _read_mat(path, variable),
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} is of an unknown kind; give traces as .npy, .csv, .tsv or .mat")
    try:
        table = reader()
    except InputError:
        raise
    except DAMAGED as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"{path} cannot be read ({why}); give a whole file of numbers, not pickled"
        ) from error
    return _turned(path, table, axes)


def check_destination(path: str | Path) -> Path:
    """Return the path of a file for rates, or say that its kind is unknown.

    Examples
    --------
    >>> check_destination("rates.tif")
    Traceback (most recent call last):
    ...
    napari_calcium.errors.InputError: rates.tif is of an unknown kind; give a path that ends in \
.npy, .csv, .mat or .npz
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in WRITTEN:
        raise InputError(
            f"{path} is of an unknown kind; give a path that ends in .npy, .csv, .mat or .npz"
        )
    return path


def try_destination(path: str | Path) -> None:
    """Refuse a path to which no file can be written; its folder is made, and no file changed.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory(suffix=".npy") as folder:
    ...     try_destination(Path(folder, "rates.npy"))
    ...     try_destination(folder)
    Traceback (most recent call last):
    ...
    napari_calcium.errors.InputError: ... cannot be written (Is a directory); give another path
    """
    path = Path(path).expanduser()
    with _part_of(path):
        if path.exists():
            path.open("ab").close()


def write_rates(
    path: str | Path,
    rates: NDArray[np.floating],
    names: Sequence[str],
    frame_rate: float,
    others: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Write rates of spikes in the form that the suffix says.

    Parameters
    ----------
    path : path
        .npy: the rates (cell, time). .csv: a row for each frame, led by its time in s; NaN is an
        empty field. .mat and .npz: ``rate`` (cell, time), ``names`` (cell,), ``frame_rate`` (Hz)
        and `others`. The folder is made; an existing file is replaced.
    rates : ndarray (cell, time)
        Hz.
    names : sequence of str
        What the cells are called.
    frame_rate : float
        Hz.
    others : mapping, optional
        More arrays by their names.

    Raises
    ------
    InputError
        If the suffix is none of these, or the file cannot be written.
    """
    path = check_destination(path)
    stored = {"rate": rates, "frame_rate": np.float64(frame_rate), **(others or {})}
    writers: dict[str, Callable[[BinaryIO], None]] = {
        ".npy": lambda file: np.save(file, rates),
        ".csv": lambda file: _write_table(file, *_frames(rates, names, frame_rate)),
        ".mat": lambda file: scipy.io.savemat(
            file,  # type: ignore[arg-type]
            {**stored, "names": np.array(names, object)},
        ),
        ".npz": lambda file: np.savez(file, **stored, names=np.array(names, str)),  # type: ignore[arg-type]
    }
    _replace(path, writers[path.suffix.lower()])


def write_spike_times(
    path: str | Path, names: Sequence[str], times: Sequence[NDArray[np.float64]]
) -> None:
    """Write single spikes as a table of two columns, ``cell`` and ``time_s``.

    Parameters
    ----------
    path : path
        The file to write; its folder is made. An existing file is replaced.
    names : sequence of str
        What the cells are called.
    times : sequence of ndarray (spike,)
        Times of each cell's spikes, s from the first frame.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    path = Path(path).expanduser()
    rows = (
        [name, f"{time:.6f}"]
        for name, each in zip(names, times, strict=True)
        for time in each.tolist()
    )
    _replace(path, lambda file: _write_table(file, ["cell", "time_s"], rows))


def _turned(path: Path, table: _Table, axes: Axes | None) -> TraceFile:
    """Return the traces as (cell, time)."""
    values = table.values
    if values.ndim == 1:
        values, axes = values[None], "cell,time"
    if values.ndim != 2 or not values.size:
        raise InputError(
            f"{path.name} holds an array of shape {values.shape}; give traces (cell, time)"
        )
    if values.dtype.kind not in "iuf":
        raise InputError(f"{path.name} holds values of type {values.dtype}; give real numbers")
    axes = axes or table.axes or _by_shape(path, values.shape)
    cells, frames = ("rows", "columns") if axes == "cell,time" else ("columns", "rows")
    names = table.row_names if axes == "cell,time" else table.column_names
    traces = values if axes == "cell,time" else values.T
    names = names or tuple(map(str, range(len(traces))))
    understood = (
        f"{path.name}: {len(traces)} {'cell' if len(traces) == 1 else 'cells'} in {cells}, "
        f"{traces.shape[1]} frames in {frames}{table.about}"
    )
    return TraceFile(traces, tuple(OWN_HEADING.sub("", name) for name in names), understood)


def _by_shape(path: Path, shape: tuple[int, ...]) -> Axes:
    """Return what rows and columns are where nothing says it."""
    rows, columns = shape
    if rows == columns or (rows > columns and path.suffix.lower() == ".npy"):
        raise InputError(
            f"{path.name} has {rows} rows and {columns} columns; say by axes whether they are "
            "cell,time or time,cell"
        )
    return "cell,time" if rows < columns else "time,cell"


def _read_npy(path: Path) -> _Table:
    return _Table(np.lib.format.open_memmap(path, mode="r"))  # no archive, whatever its name


def _read_table(path: Path) -> _Table:
    """Read a table of text; what is no number in the first row or column is a name."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        start = file.read(4096)
        file.seek(0)
        lines = enumerate(csv.reader(file, delimiter=_delimiter(path, start)), 1)
        rows = ((number, row) for number, row in lines if any(field.strip() for field in row))
        number, first = next(rows, (1, ["none"]))  # an empty file is a header without rows
        header = _header(first)
        named = len(header) > 1 and CELL_COLUMN.fullmatch(header[0]) is not None
        indexed = named or (len(header) > 1 and not header[0])
        names: list[str] = []
        values = [] if header else [_numbers(path, number, first, names, False)]
        values += [_numbers(path, number, row, names, indexed) for number, row in rows]
    if not values or not len(values[0]):
        raise InputError(f"{path.name} holds no numbers; give a table of traces")
    n_columns = len(values[0]) + bool(names)
    ragged = any(len(row) != len(values[0]) for row in values) or len(names) not in (0, len(values))
    if ragged or len(header) not in (0, n_columns):
        raise InputError(f"{path.name} has rows of different lengths; give a whole table")
    table, columns = np.stack(values), tuple(header[bool(names) :])
    about = f"; the column {header[0]} is their names" if named else ""
    if names and (named or not indexed):
        return _Table(table, tuple(names), columns, "cell,time", about)
    about = "; the first column is an index" if indexed else ""
    if columns and TIME_COLUMN.fullmatch(columns[0]):
        about += f"; the column {columns[0]} is left out"
        return _Table(table[:, 1:], tuple(names), columns[1:], "time,cell", about)
    return _Table(table, tuple(names), columns, None, about)


def _header(first: list[str]) -> list[str]:
    """Return the names in the first row, none where it is numbers of traces.

    Examples
    --------
    >>> _header(["# a", "b "]), _header(["0.1", "0.2"]), _header(["0", "1"]), _header(["", "0"])
    (['a', 'b'], [], ['0', '1'], ['', '0'])
    """
    fields = [field.strip().lstrip("# ") for field in first]
    counted = [str(i) for i in range(len(fields))]
    numbered = len(fields) > 1 and fields in (counted, ["", *counted[:-1]])
    heading = TIME_COLUMN.fullmatch(fields[0]) or CELL_COLUMN.fullmatch(fields[0])
    named = any(map(_is_name, fields[1:] or fields))  # one before numbers is that of a cell
    return fields if numbered or heading or named else []


def _delimiter(path: Path, start: str) -> str:
    """Return what parts the fields: a tab, or a comma, or a semicolon where there is no comma."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    return ";" if ";" in start and "," not in start else ","


def _numbers(
    path: Path, number: int, row: list[str], names: list[str], indexed: bool
) -> NDArray[np.float32]:
    """Return a row's numbers, NaN for an empty field; a name before them is added to the names."""
    if row and (indexed or _is_name(row[0])):
        names.append(row[0].strip())
        row = row[1:]
    try:
        return np.array([field.strip() or "nan" for field in row], np.float32)
    except ValueError:
        wrong = next(field for field in row if _is_name(field))
        raise InputError(f"{path.name} has {wrong!r} in line {number}; give numbers") from None


def _is_name(field: str) -> bool:
    """Tell whether a field is neither a number nor empty.

    Examples
    --------
    >>> [_is_name(field) for field in ("cell 1", "", " 1e-3", "NaN", "-inf")]
    [True, False, False, False, False]
    """
    try:
        float(field.strip() or "nan")
    except ValueError:
        return True
    return False


def _read_mat(path: Path, variable: str | None) -> _Table:
    """Read a variable of a .mat file, of version 7.3 by HDF5."""
    if h5py.is_hdf5(path):
        return _read_hdf5(path, variable)
    shapes = {name: shape for name, shape, kind in scipy.io.whosmat(path) if kind in NUMERIC}
    name = _chosen(path, shapes, variable)
    values = scipy.io.loadmat(path, variable_names=[name])[name]
    return _Table(values, about=f"; variable {name}")


def _read_hdf5(path: Path, variable: str | None) -> _Table:
    """Read a variable of a .mat file of version 7.3, whose axes are the other way round."""
    with h5py.File(path, "r") as file:
        found = {
            name: item.shape[::-1]
            for name, item in file.items()
            if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf" and _is_numeric(item)
        }
        name = _chosen(path, found, variable)
        values = file[name][()].T
    return _Table(values, about=f"; variable {name}")


def _is_numeric(item: Any) -> bool:
    """Tell whether MATLAB holds a dataset for numbers, and not for text."""
    kind = item.attrs.get("MATLAB_class", b"double")
    return (kind.decode() if isinstance(kind, bytes) else str(kind)) in NUMERIC


def _chosen(path: Path, shapes: Mapping[str, tuple[int, ...]], variable: str | None) -> str:
    """Return the variable that holds the traces."""
    there = ", ".join(shapes) or "none"
    if variable is not None:
        if variable not in shapes:
            raise InputError(
                f"{path.name} has no variable {variable} of numbers; those it has: {there}"
            )
        return variable
    many = [name for name, shape in shapes.items() if len(shape) == 2 and min(shape) > 1]
    one = [name for name, shape in shapes.items() if len(shape) == 2 and max(shape) > 1]
    for matrices in (many, one):
        if len(matrices) == 1:
            return matrices[0]
        lower = {name.lower(): name for name in matrices}
        for name in KNOWN_NAMES:
            if name in matrices or name.lower() in lower:
                return name if name in matrices else lower[name.lower()]
        if matrices:
            break
    raise InputError(
        f"{path.name} does not tell which variable holds the traces; name one of: {there}"
    )


def _frames(
    rates: NDArray[np.floating], names: Sequence[str], frame_rate: float
) -> tuple[list[str], Iterable[list[str]]]:
    """Return the header and the rows of a table with a row for each frame."""
    header = ["time (s)", *(f"{name} rate (Hz)" for name in names)]
    rows = (
        [f"{frame / frame_rate:.6f}", *("" if math.isnan(x) else f"{x:.6g}" for x in row.tolist())]
        for frame, row in enumerate(rates.T)
    )
    return header, rows


def _write_table(file: BinaryIO, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.TextIOWrapper(file, "utf-8", newline="")
    table = csv.writer(text)
    table.writerow(header)
    table.writerows(rows)
    text.detach()


def _replace(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file whole or not at all."""
    with _part_of(path) as part:
        with part.open("wb") as file:
            write(file)
        part.replace(path)


@contextmanager
def _part_of(path: Path) -> Iterator[Path]:
    """Give an empty file beside a path, gone afterwards; say why it cannot be written."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        yield part
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); give another path"
        ) from None
    finally:
        with suppress(OSError):
            part.unlink()

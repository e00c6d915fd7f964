from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from napari_calcium.errors import InputError
from napari_calcium.io.trace_files import (
    check_destination,
    read_traces,
    try_destination,
    write_rates,
    write_spike_times,
)

NAMES = ("a", "b c", "ü")


@pytest.fixture
def dff() -> np.ndarray:
    """Three cells, 7 frames; one value is not known."""
    values = np.random.default_rng(0).normal(0, 1, (3, 7)).astype(np.float32).round(4)
    values[1, 2] = np.nan
    return values


def text_of(table: np.ndarray, sign: str = ",") -> str:
    rows = [sign.join("" if np.isnan(x) else f"{x:.4f}" for x in row) for row in table.tolist()]
    return "\n".join(rows) + "\n"


def write_text(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


# ------------------------------------------------------------------------------- .npy


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16])
def test_npy(tmp_path: Path, dff: np.ndarray, kind: type) -> None:
    stored = np.nan_to_num(dff * 100).astype(kind)
    np.save(tmp_path / "dff.npy", stored)
    found = read_traces(tmp_path / "dff.npy")
    np.testing.assert_array_equal(found.traces, stored)
    assert found.names == ("0", "1", "2")
    assert found.understood == "dff.npy: 3 cells in rows, 7 frames in columns"
    np.save(tmp_path / "one.npy", stored[0])
    assert read_traces(tmp_path / "one.npy").understood.startswith("one.npy: 1 cell in rows, 7 fr")
    turned = read_traces(tmp_path / "dff.npy", axes="time,cell")
    np.testing.assert_array_equal(turned.traces, stored.T)


def test_npy_that_looks_turned_is_refused(tmp_path: Path, dff: np.ndarray) -> None:
    np.save(tmp_path / "dff.npy", dff.T)
    with pytest.raises(InputError, match=r"7 rows and 3 columns; say by axes"):
        read_traces(tmp_path / "dff.npy")
    found = read_traces(tmp_path / "dff.npy", axes="time,cell")
    np.testing.assert_array_equal(found.traces, dff)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "dff.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        read_traces(tmp_path / "dff.npy")


# ------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(("suffix", "sign"), [(".csv", ","), (".tsv", "\t"), (".csv", ";")])
@pytest.mark.parametrize("time", ["time (s)", "Frame", "frames", "t", "time_s", None])
def test_table_with_cells_in_columns(
    tmp_path: Path, dff: np.ndarray, suffix: str, sign: str, time: str | None
) -> None:
    table, header = dff.T, list(NAMES)
    if time:
        table, header = np.column_stack((np.arange(7) / 30, table)), [time, *header]
    path = write_text(tmp_path / f"dff{suffix}", sign.join(header) + "\n" + text_of(table, sign))
    found = read_traces(path)
    np.testing.assert_array_equal(found.traces, dff)
    assert found.names == NAMES
    assert ("is left out" in found.understood) == (time is not None)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("header", [True, False])
def test_table_with_cells_in_rows(
    tmp_path: Path, dff: np.ndarray, named: bool, header: bool
) -> None:
    lines = text_of(dff).splitlines()
    if named:
        lines = [f"{name},{line}" for name, line in zip(NAMES, lines, strict=True)]
    if header:
        lines.insert(0, ",".join(["cell"] * named + [f"frame {i}" for i in range(7)]))
    found = read_traces(write_text(tmp_path / "dff.csv", "\n".join(lines)), axes="cell,time")
    np.testing.assert_array_equal(found.traces, dff)
    assert found.names == (NAMES if named else ("0", "1", "2"))
    if named:  # names say what rows are, also where the table is tall
        few = read_traces(write_text(tmp_path / "few.csv", "a,1,2\nb,3,4\nc,5,6\n"))
        assert few.traces.tolist() == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize("heading", ["roi", "Cell", "cell_id", "neuron id", "ID"])
@pytest.mark.parametrize("columns", ["{}", "f{}"])
def test_cells_named_by_numbers(
    tmp_path: Path, dff: np.ndarray, heading: str, columns: str
) -> None:
    """The numbers of cells are no frame."""
    lines = [",".join([heading, *(columns.format(i) for i in range(7))])]
    lines += [f"{i},{line}" for i, line in zip((1, 2, 12), text_of(dff).splitlines(), strict=True)]
    path = write_text(tmp_path / "dff.csv", "\n".join(lines))
    found = read_traces(path)
    np.testing.assert_array_equal(found.traces, dff)
    assert found.names == ("1", "2", "12")
    assert found.understood == (
        f"dff.csv: 3 cells in rows, 7 frames in columns; the column {heading} is their names"
    )
    turned = read_traces(path, axes="time,cell")
    np.testing.assert_array_equal(turned.traces, dff.T)
    assert turned.names == tuple(columns.format(i) for i in range(7))


def test_one_column_headed_cell_is_a_trace(tmp_path: Path) -> None:
    found = read_traces(write_text(tmp_path / "one.csv", "cell\n0.5\n1\n2\n"))
    assert found.traces.tolist() == [[0.5, 1, 2]]
    assert found.names == ("cell",)


@pytest.mark.parametrize("time", ["timestamp", "Timestamps", "time_stamp (s)", "time"])
def test_times_are_no_cell(tmp_path: Path, dff: np.ndarray, time: str) -> None:
    """Not behind the index that pandas puts in front, either."""
    times = [f"{i / 30:.4f},{line}" for i, line in enumerate(text_of(dff.T).splitlines())]
    header = ",".join([time, *NAMES])
    indexed = [f"{i},{line}" for i, line in enumerate(times)]
    for lines in ([header, *times], [f",{header}", *indexed]):
        found = read_traces(write_text(tmp_path / "dff.csv", "\n".join(lines)))
        np.testing.assert_array_equal(found.traces, dff)
        assert found.names == NAMES
        assert f"the column {time} is left out" in found.understood


def test_table_without_any_name_by_shape(tmp_path: Path, dff: np.ndarray) -> None:
    for table in (dff, dff.T):
        found = read_traces(write_text(tmp_path / "dff.csv", text_of(table)))
        np.testing.assert_array_equal(found.traces, dff)
        assert ("cells in rows" in found.understood) == (table is dff)
    with pytest.raises(InputError, match="say by axes"):
        read_traces(write_text(tmp_path / "square.csv", text_of(dff[:, :3])))


def test_tables_of_pandas_and_numpy(tmp_path: Path, dff: np.ndarray) -> None:
    """An index in front, counted columns, and a header behind a number sign."""
    rows = [f"{i},{line}" for i, line in enumerate(text_of(dff.T).splitlines())]
    for header, names in ((",0,1,2", ("0", "1", "2")), (",a,b c,ü", NAMES)):
        found = read_traces(write_text(tmp_path / "dff.csv", "\n".join([header, *rows])))
        np.testing.assert_array_equal(found.traces, dff)
        assert found.names == names
        assert "index" in found.understood
    found = read_traces(write_text(tmp_path / "dff.csv", "0,1,2\n" + text_of(dff.T)))
    np.testing.assert_array_equal(found.traces, dff)
    np.savetxt(tmp_path / "np.csv", dff.T, delimiter=",", header="a,b c,ü", encoding="utf-8")
    found = read_traces(tmp_path / "np.csv")
    np.testing.assert_array_equal(found.traces, dff)
    assert found.names == NAMES


def test_a_trace_that_begins_with_0_is_whole(tmp_path: Path) -> None:
    found = read_traces(write_text(tmp_path / "one.csv", "0\n0.5\n1\n"))
    assert found.traces.tolist() == [[0, 0.5, 1]]


def test_own_export_is_read(tmp_path: Path) -> None:
    text = "time (s),cell_4 dff (fraction),cell_7 dff (fraction)\n0.0,1,\n0.1,2,3\n"
    found = read_traces(write_text(tmp_path / "traces.csv", "\ufeff" + text))
    assert found.names == ("cell_4", "cell_7")
    np.testing.assert_array_equal(found.traces, [[1, 2], [np.nan, 3]])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no numbers"),
        ("a,b\n", "holds no numbers"),
        ("1,2,3\n4,5\n", "different lengths"),
        ("a,b,c\n1,2\n3,4\n", "different lengths"),
        ("time,a\n0,1\n1,x\n", "'x' in line 3"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_traces(write_text(tmp_path / "dff.csv", text))


# ------------------------------------------------------------------------------- .mat


def save_v73(path: Path, **arrays: np.ndarray) -> None:
    """Write what MATLAB does with -v7.3: axes the other way round, classes as attributes."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in arrays.items():
            item = file.create_dataset(name, data=np.asarray(values).T)
            item.attrs["MATLAB_class"] = np.bytes_("double")
        text = file.create_dataset("note", data=np.zeros((1, 4), np.uint16))
        text.attrs["MATLAB_class"] = np.bytes_("char")
        file.create_group("#refs#")


def save_v5(path: Path, **arrays: np.ndarray) -> None:
    scipy.io.savemat(path, {**arrays, "note": "text", "about": {"rate": 30.0}})


@pytest.mark.parametrize("save", [save_v5, save_v73])
def test_mat(tmp_path: Path, dff: np.ndarray, save) -> None:
    path, square = tmp_path / "dff.mat", np.zeros((2, 9))
    save(path, dff=dff, fs=np.array([[30.0]]), t=np.arange(7.0)[None])
    found = read_traces(path)
    np.testing.assert_array_equal(found.traces, dff)
    assert found.understood.endswith("; variable dff")
    save(path, other=dff.T)  # the only matrix; time is longer
    np.testing.assert_array_equal(read_traces(path).traces, dff)
    save(path, spikes=square, DFF=dff)
    np.testing.assert_array_equal(read_traces(path).traces, dff)
    save(path, traces=square, dF_traces=dff)
    np.testing.assert_array_equal(read_traces(path).traces, dff)
    np.testing.assert_array_equal(read_traces(path, variable="traces").traces, square)
    save(path, x=dff[:1])
    np.testing.assert_array_equal(read_traces(path).traces, dff[:1])
    with pytest.raises(InputError, match=r"no variable dff of numbers; those it has: x"):
        read_traces(path, variable="dff")
    save(path, x=square, y=dff)
    with pytest.raises(InputError, match=r"does not tell .* name one of: x, y"):
        read_traces(path)
    save(path)
    with pytest.raises(InputError, match="does not tell"):
        read_traces(path)


@pytest.mark.parametrize("save", [save_v5, save_v73])
def test_fluorescence_of_suite2p_is_not_taken_for_dff(
    tmp_path: Path, dff: np.ndarray, save
) -> None:
    save(tmp_path / "Fall.mat", F=dff, Fneu=dff, spks=dff)
    with pytest.raises(InputError, match=r"name one of: F, Fneu, spks$"):
        read_traces(tmp_path / "Fall.mat")
    np.testing.assert_array_equal(read_traces(tmp_path / "Fall.mat", variable="F").traces, dff)


# ------------------------------------------------------------------------------- misuse


def test_damaged_files_are_one_sentence(tmp_path: Path, dff: np.ndarray) -> None:
    """Each of these raises another kind of error."""
    (tmp_path / "empty.mat").write_bytes(b"")
    scipy.io.savemat(tmp_path / "whole.mat", {"dff": dff}, do_compression=True)
    whole = (tmp_path / "whole.mat").read_bytes()
    (tmp_path / "zlib.mat").write_bytes(whole[:140] + bytes(9) + whole[149:])
    scipy.io.savemat(tmp_path / "whole.mat", {"dff": dff}, format="4")
    (tmp_path / "short.mat").write_bytes((tmp_path / "whole.mat").read_bytes()[:-9])
    np.savez(tmp_path / "archive.npz", dff=dff)
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    np.save(tmp_path / "header.npy", dff)
    header = (tmp_path / "header.npy").read_bytes().replace(b"'}", b"'(").replace(b"), }", b"(, }")
    (tmp_path / "header.npy").write_bytes(header)
    write_text(tmp_path / "wide.csv", "a,b\n1," + "2" * 131_073 + "\n")
    for name in ("empty.mat", "zlib.mat", "short.mat", "archive.npy", "header.npy", "wide.csv"):
        with pytest.raises(InputError, match=r"cannot be read .* give a whole file") as error:
            read_traces(tmp_path / name)
        assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    for name, content, said in (
        ("a.npy", b"nothing", "cannot be read"),
        ("a.mat", b"nothing" * 99, "cannot be read"),
        ("a.csv", b"\xff\xfe\x00\x01", "cannot be read"),
        ("a.xls", b"", "unknown kind"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=said):
            read_traces(tmp_path / name)
    with pytest.raises(InputError, match="is no file"):
        read_traces(tmp_path / "none.npy")
    for values in (np.zeros((2, 3, 4)), np.zeros((0, 5)), np.zeros((2, 9), complex)):
        np.save(tmp_path / "b.npy", values)
        with pytest.raises(InputError, match=r"b\.npy holds"):
            read_traces(tmp_path / "b.npy")
    with pytest.raises(InputError, match="axes is 'yx'"):
        read_traces(tmp_path / "b.npy", axes="yx")


# ------------------------------------------------------------------------------- writing


def test_what_is_written_is_read(tmp_path: Path, dff: np.ndarray) -> None:
    others = {"noise_level": np.arange(3.0), "marks": np.zeros(3, np.uint8)}
    for suffix in (".npy", ".csv", ".mat", ".npz"):
        path = tmp_path / "new folder" / f"rates{suffix}"
        for _ in range(2):  # the second replaces the first
            write_rates(path, dff, NAMES, 30.0, others)
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        if suffix != ".npz":
            axes = "time,cell" if suffix == ".csv" else "cell,time"
            variable = "rate" if suffix == ".mat" else None
            found = read_traces(path, axes=axes, variable=variable)
            np.testing.assert_allclose(found.traces, dff, rtol=1e-5)
        path.unlink() if suffix in (".npy", ".csv") else None
        if suffix == ".mat":
            stored = scipy.io.loadmat(path, squeeze_me=True)
            assert tuple(stored["names"]) == NAMES
            assert stored["frame_rate"] == 30
            path.unlink()
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                np.testing.assert_array_equal(stored["rate"], dff)
                assert tuple(stored["names"]) == NAMES
                np.testing.assert_array_equal(stored["noise_level"], others["noise_level"])


def test_the_table_of_rates(tmp_path: Path, dff: np.ndarray) -> None:
    write_rates(tmp_path / "rates.csv", dff, NAMES, 10.0)
    with (tmp_path / "rates.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["time (s)", *(f"{name} rate (Hz)" for name in NAMES)]
    assert [row[0] for row in rows[1:3]] == ["0.000000", "0.100000"]
    assert rows[3][2] == ""
    assert len(rows) == 8


def test_spike_times_are_a_table(tmp_path: Path) -> None:
    write_spike_times(
        tmp_path / "times.csv", NAMES, [np.array([0.5, 1.0]), np.zeros(0), np.ones(1)]
    )
    assert (tmp_path / "times.csv").read_text("utf-8").splitlines() == [
        "cell,time_s",
        "a,0.500000",
        "a,1.000000",
        "ü,1.000000",
    ]


@pytest.mark.parametrize("suffix", [".NPY", ".Csv", ".MAT", ".NPZ"])
def test_the_suffix_may_be_written_large(tmp_path: Path, dff: np.ndarray, suffix: str) -> None:
    small, large = tmp_path / f"small{suffix.lower()}", tmp_path / f"LARGE{suffix}"
    for path in (small, large):
        write_rates(path, dff, NAMES, 30.0)
    assert {file.name for file in tmp_path.iterdir()} == {small.name, large.name}
    if suffix == ".NPZ":
        with np.load(large) as stored:
            np.testing.assert_array_equal(stored["rate"], dff)
        return
    axes = "time,cell" if suffix == ".Csv" else "cell,time"
    variable = "rate" if suffix == ".MAT" else None
    first, second = (read_traces(path, axes=axes, variable=variable) for path in (small, large))
    np.testing.assert_array_equal(first.traces, second.traces)


def test_trying_a_destination_changes_no_file(tmp_path: Path) -> None:
    there = write_text(tmp_path / "there.npy", "old")
    for path in (there, tmp_path / "new folder" / "rates.npy"):
        try_destination(path)
    assert there.read_text("utf-8") == "old"
    assert {path.name for path in tmp_path.rglob("*")} == {"there.npy", "new folder"}
    for path in (tmp_path, there / "rates.npy", there / "deep" / "rates.npy"):
        with pytest.raises(InputError, match=r"cannot be written \(.+\); give another path$"):
            try_destination(path)


def test_a_failed_writing_leaves_nothing(tmp_path: Path) -> None:
    """Nor does it harm what was there."""
    path = write_text(tmp_path / "times.csv", "old")
    with pytest.raises(ValueError, match="shorter"):  # after the first cell was written
        write_spike_times(path, NAMES, [np.ones(3)])
    assert [file.name for file in tmp_path.iterdir()] == ["times.csv"]
    assert path.read_text("utf-8") == "old"


def test_a_place_that_cannot_be_written(tmp_path: Path, dff: np.ndarray) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(InputError, match="cannot be written"):
        write_rates(tmp_path / "file" / "rates.npy", dff, NAMES, 30.0)
    with pytest.raises(InputError, match="unknown kind"):
        write_rates(tmp_path / "rates.tif", dff, NAMES, 30.0)
    with pytest.raises(InputError, match="unknown kind"):
        check_destination("rates")

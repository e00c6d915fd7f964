from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from napari_calcium.errors import InputError
from napari_calcium.io.choices import accepted_cells, choose, read_choices
from napari_calcium.io.session import Session


def log(session: Session) -> list[dict[str, object]]:
    metadata = json.loads((session.path / "curation" / "zarr.json").read_text())
    found: list[dict[str, object]] = metadata["attributes"]["log"]
    return found


def test_nobody_has_chosen_yet(handmade: Session) -> None:
    assert read_choices(handmade) == {}
    np.testing.assert_array_equal(accepted_cells(handmade), handmade.quality().accepted)
    assert not (handmade.path / "curation").exists()


def test_a_choice_goes_over_the_machine_and_leaves_it_as_it_is(handmade: Session) -> None:
    machine = handmade.quality().accepted.copy()
    for cell_id, accepted in zip((4, 7, 9), ~machine, strict=True):
        choose(handmade, [cell_id], bool(accepted))
    np.testing.assert_array_equal(accepted_cells(handmade), ~machine)
    np.testing.assert_array_equal(handmade.quality().accepted, machine)


def test_the_last_choice_counts_and_the_log_keeps_all(handmade: Session) -> None:
    choose(handmade, [4, 7], True)
    choose(handmade, [7], False)
    assert read_choices(handmade) == {4: True, 7: False}
    choose(handmade, [4], None)
    assert read_choices(handmade) == {7: False}
    assert [entry["action"] for entry in log(handmade)] == ["accept", "reject", "as scored"]
    assert [entry["cell_id"] for entry in log(handmade)] == [[4, 7], [7], [4]]


def test_of_no_cell_nothing_is_written(handmade: Session) -> None:
    choose(handmade, [], True)
    assert not (handmade.path / "curation").exists()


def test_a_cell_that_does_not_exist(handmade: Session) -> None:
    with pytest.raises(InputError, match=r"cell_id is 5 but .* has no such cell; check it"):
        choose(handmade, [4, 5], True)
    assert read_choices(handmade) == {}


def test_choices_are_of_the_cells_they_were_made_of(handmade: Session) -> None:
    """Cells found anew have the same numbers and are others; back with them come the choices."""
    choose(handmade, [4], False)
    group = zarr.open_group(handmade.path, path="source_extraction", mode="r+")
    digest = str(group.attrs["digest"])
    group.attrs["digest"] = "another"
    assert read_choices(handmade) == {}
    choose(handmade, [9], True)
    assert read_choices(handmade) == {9: True}
    group.attrs["digest"] = digest
    assert read_choices(handmade) == {4: False}
    assert len(log(handmade)) == 2


def test_a_choice_of_cells_that_are_gone_is_refused(handmade: Session) -> None:
    record = handmade.record("source_extraction")
    assert record is not None
    choose(handmade, [4], False, of=record.digest)
    with pytest.raises(InputError, match="were found anew since; choose again"):
        choose(handmade, [7], False, of="another")
    assert read_choices(handmade) == {4: False}


def test_zarr_reads_the_group(handmade: Session) -> None:
    choose(handmade, [4], False)
    names = {name for name, _ in zarr.open_group(handmade.path, mode="r").members()}
    assert "curation" in names


def test_a_kill_while_writing_leaves_the_old_log(
    handmade: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(handmade, [4], False)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        choose(handmade, [7], False)
    assert read_choices(handmade) == {4: False}


def test_two_windows_that_choose_at_once_lose_nothing(handmade: Session) -> None:
    def choose_often(cell_id: int) -> None:
        for _ in range(25):
            choose(handmade, [cell_id], True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(choose_often, (4, 9)))
    assert sorted(entry["cell_id"][0] for entry in log(handmade)) == [4] * 25 + [9] * 25


def test_a_decision_of_other_cells_is_refused(handmade: Session) -> None:
    """The cells were found anew since they were scored."""
    zarr.open_group(handmade.path, path="source_extraction", mode="r+").attrs["digest"] = "another"
    with pytest.raises(InputError, match="is of an earlier source_extraction; run it again"):
        accepted_cells(handmade)


def test_a_damaged_log_is_a_sentence(handmade: Session) -> None:
    choose(handmade, [4], True)
    (handmade.path / "curation" / "zarr.json").write_text("{")
    with pytest.raises(
        InputError, match=r"zarr\.json is damaged; restore it, or remove the folder"
    ):
        read_choices(handmade)


def test_where_nothing_can_be_written(handmade: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
        choose(handmade, [4], True)

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from napari_calcium.errors import InputError
from napari_calcium.parameters import Parameters, nearest, parameter


@dataclass(frozen=True)
class Blur(Parameters):
    """Blur.

    Parameters
    ----------
    radius : float
        Radius, px.
    passes : int
        How
        often.
    method : {"gauss", "box"}
        Shape.
    keep : bool
        Whether to keep.
    level : {1, 2}
        Level.
    label : str
        Name.
    ratio : float
        Without a unit.
    """

    radius: float = parameter(2.0, unit="px", above=0, maximum=10)
    passes: int = parameter(3, unit="passes", minimum=1)
    method: Literal["gauss", "box"] = "gauss"
    keep: bool = True
    level: Literal[1, 2] = 1
    label: str = "a"
    ratio: float = parameter(0.5)

    def check(self) -> None:
        if self.radius > 5 * self.passes:
            raise InputError("radius and passes do not fit")


@dataclass(frozen=True)
class Needed(Parameters):
    """Needed.

    Parameters
    ----------
    rate : float
        Frames per second, Hz.
    count : int
        A number.
    """

    rate: float = parameter(unit="Hz", above=0)
    count: int = parameter()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"radius": 3}, 3.0),
        ({"radius": "3.5"}, 3.5),
        ({"radius": np.float32(1.5)}, 1.5),
        ({"passes": 4.0}, 4),
        ({"passes": "4"}, 4),
        ({"passes": np.int64(4)}, 4),
        ({"method": "box"}, "box"),
        ({"level": 2}, 2),
        ({"level": "2"}, 2),
        ({"keep": False}, False),
        ({"keep": "false"}, False),
        ({"keep": "True"}, True),
        ({"label": 5}, "5"),
    ],
)
def test_a_value_takes_the_type_of_its_field(given: dict[str, Any], expected: Any) -> None:
    (name,) = given
    value = getattr(Blur.from_mapping(given), name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"radius": 0}, "radius is 0 px; it must be above 0 px"),
        ({"radius": 10.5}, "radius is 10.5 px; it must be at most 10 px"),
        ({"passes": 0}, "passes is 0 passes; it must be at least 1 passes"),
        ({"radius": math.nan}, "radius is nan px; it must be a finite number in px"),
        ({"radius": math.inf}, "radius is inf px; it must be a finite number in px"),
        ({"ratio": -math.inf}, "ratio is -inf; it must be a finite number"),
        ({"radius": "wide"}, "radius is 'wide'; it must be a number in px"),
        ({"radius": None}, "radius is None; it must be a number in px"),
        ({"radius": True}, "radius is True; it must be a number in px"),
        ({"ratio": []}, "ratio is []; it must be a number"),
        ({"passes": 2.5}, "passes is 2.5; it must be a whole number in passes"),
        ({"passes": "2.5"}, "passes is '2.5'; it must be a whole number in passes"),
        ({"passes": True}, "passes is True; it must be a whole number in passes"),
        ({"passes": math.nan}, "passes is nan; it must be a whole number in passes"),
        ({"passes": math.inf}, "passes is inf; it must be a whole number in passes"),
        ({"method": "disc"}, "method is 'disc'; it must be one of 'gauss', 'box'"),
        ({"level": 3}, "level is 3; it must be one of 1, 2"),
        ({"level": True}, "level is True; it must be one of 1, 2"),
        ({"keep": 1}, "keep is 1; it must be true or false"),
        ({"keep": "yes"}, "keep is 'yes'; it must be true or false"),
        ({"radius": 8, "passes": 1}, "radius and passes do not fit"),
        ({"raduis": 3}, "unknown parameter 'raduis'; did you mean 'radius'?"),
        (
            {"zzz": 3},
            "unknown parameter 'zzz'; known are radius, passes, method, keep, level, label, ratio",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        Blur.from_mapping(given)
    assert str(error.value) == message


def test_what_is_missing_is_said_with_its_unit() -> None:
    with pytest.raises(InputError, match=r"^rate is not given; it is needed, in Hz$"):
        Needed.from_mapping({"count": 1})
    with pytest.raises(InputError, match=r"^count is not given; it is needed$"):
        Needed.from_mapping({"rate": 1})


def test_to_a_mapping_and_back() -> None:
    blur = Blur(radius=4.0, passes=2, method="box", keep=False)
    values = json.loads(json.dumps(blur.to_mapping()))
    assert Blur.from_mapping(values) == blur
    assert Blur.from_mapping({}) == Blur()


def test_it_is_frozen_and_can_be_replaced() -> None:
    blur = Blur()
    with pytest.raises(dataclasses.FrozenInstanceError):
        blur.radius = 3.0  # type: ignore[misc]
    with pytest.raises(InputError, match="radius is -1 px"):
        dataclasses.replace(blur, radius=-1.0)


def test_each_field_is_described() -> None:
    radius, passes, method, keep, *_ = Blur.describe()
    assert (radius.name, radius.type, radius.default, radius.unit) == ("radius", float, 2.0, "px")
    assert (radius.minimum, radius.maximum, radius.above) == (None, 10, 0)
    assert passes.description == "How often."
    assert method.choices == ("gauss", "box")
    assert keep.choices == ()
    assert [part.required for part in Needed.describe()] == [True, True]
    assert not radius.required


def test_a_field_without_documentation_is_a_bug() -> None:
    @dataclass(frozen=True)
    class Undocumented(Parameters):
        """Nothing."""

        radius: float = 1.0

    with pytest.raises(TypeError, match="Undocumented does not document radius"):
        Undocumented()


def test_nothing_is_asked_of_the_movie_unless_a_stage_does() -> None:
    Blur().check_movie((10, 37, 53))


def test_the_nearest_word() -> None:
    assert nearest("max_shfit", ["max_shift", "method"]) == "did you mean 'max_shift'?"
    assert nearest("q", {"max_shift": 1, "method": 2}) == "known are max_shift, method"

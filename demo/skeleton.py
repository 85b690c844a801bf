"""A flat articulated body. Points are complex numbers in standing heights: x forward, y up, the ground at 0."""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass
from typing import NamedTuple

UPPER_ARM, FOREARM = 0.165, 0.155
THIGH, SHIN = 0.235, 0.235
TORSO, NECK = 0.27, 0.115
ANKLE = 0.045
STANDING_PELVIS = THIGH + SHIN + ANKLE

Pair = tuple[complex, complex]
"""The far and the near one of a profile; the left and the right one of the picture from the front."""


class Prop(NamedTuple):
    """A straight piece of equipment; `tone` names a colour of the actor's look."""

    start: complex
    end: complex
    radius: float
    tone: str


@dataclass(frozen=True)
class Trunk:
    """Where the body itself is; `breadth` is 1 seen from the front, 0 from the side."""

    pelvis: complex
    neck: complex
    head: complex
    shoulders: Pair
    hips: Pair
    breadth: float


@dataclass(frozen=True)
class Pose:
    """A body in one moment, with the equipment it uses. Arms are (elbow, hand), legs (knee, ankle, toe)."""

    trunk: Trunk
    arms: tuple[tuple[complex, complex], tuple[complex, complex]]
    legs: tuple[tuple[complex, complex, complex], tuple[complex, complex, complex]]
    behind: tuple[Prop, ...] = ()
    between: tuple[Prop, ...] = ()
    front: tuple[Prop, ...] = ()


def direction(degrees: float) -> complex:
    """Return the unit vector at an angle: 0 is forward, 90 up, 180 back, -90 down."""
    return cmath.rect(1, math.radians(degrees))


def trunk_at(pelvis: complex, lean: float, breadth: float, nod: float = 0.0) -> Trunk:
    """Place the trunk: the spine points at `lean` degrees, the head `nod` degrees further forward."""
    up = direction(lean)
    across = -1j * up
    neck = pelvis + TORSO * up
    half_shoulders, half_hips = across * (0.012 + 0.083 * breadth), across * (0.008 + 0.042 * breadth)
    return Trunk(
        pelvis=pelvis,
        neck=neck,
        head=neck + NECK * direction(lean - nod),
        shoulders=(neck - half_shoulders, neck + half_shoulders),
        hips=(pelvis - half_hips, pelvis + half_hips),
        breadth=breadth,
    )


def swing_arm(shoulder: complex, upper: float, fore: float) -> tuple[complex, complex]:
    """Return elbow and hand of an arm whose two bones point at these angles in degrees."""
    elbow = shoulder + UPPER_ARM * direction(upper)
    return elbow, elbow + FOREARM * direction(fore)


def swing_leg(hip: complex, thigh: float, shin: float, foot: float) -> tuple[complex, complex, complex]:
    """Return knee, ankle and toe of a leg whose bones point at these angles in degrees."""
    knee = hip + THIGH * direction(thigh)
    ankle = knee + SHIN * direction(shin)
    return knee, ankle, ankle + toe_offset(foot)


def reach_arm(shoulder: complex, hand: complex, bend: float) -> tuple[complex, complex]:
    """Return elbow and hand of an arm that reaches for a point; `bend` 1 puts the elbow left of that way, -1 right."""
    return _two_bones(shoulder, hand, UPPER_ARM, FOREARM, bend)


def reach_leg(hip: complex, ankle: complex, bend: float, foot: float) -> tuple[complex, complex, complex]:
    """Return knee, ankle and toe of a leg that reaches for a point, as `reach_arm` does."""
    knee, end = _two_bones(hip, ankle, THIGH, SHIN, bend)
    return knee, end, end + toe_offset(foot)


def toe_offset(foot: float) -> complex:
    """Return the way from ankle to toe of a foot at this angle in degrees; 0 is flat on the ground."""
    return (0.075 - 0.02j) * direction(foot)


def _two_bones(start: complex, target: complex, upper: float, lower: float, bend: float) -> tuple[complex, complex]:
    """Solve the triangle of two bones by the law of cosines; a target out of reach is reached for, straight."""
    span = target - start
    distance = min(max(abs(span), abs(upper - lower) + 1e-3), (upper + lower) * 0.999)
    ahead = span / abs(span) if span else -1j
    along = (upper**2 - lower**2 + distance**2) / (2 * distance)
    across = math.sqrt(max(upper**2 - along**2, 0.0)) * bend
    return start + ahead * complex(along, across), start + ahead * distance

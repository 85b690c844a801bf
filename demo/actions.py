"""The actions: each gives the pose at a moment, counted in repetitions. Most names are HMDB-51's classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from demo.skeleton import (
    ANKLE,
    STANDING_PELVIS,
    TORSO,
    Pose,
    Prop,
    direction,
    reach_arm,
    reach_leg,
    swing_arm,
    swing_leg,
    trunk_at,
)

FRONT, PROFILE = 1.0, 0.0
LEFT_FOOT, RIGHT_FOOT = -130.0, -50.0
"""Feet of a body seen from the front, toes down and outwards."""


@dataclass(frozen=True)
class Manner:
    """How one actor performs: `vigor` scales the motion (about 1), `habit` (0..1) settles the rest."""

    vigor: float
    habit: float


@dataclass(frozen=True)
class Action:
    """An action, its usual pace, and how large its actor is drawn so that all actors cover about the same area."""

    pose: Callable[[float, Manner], Pose]
    repetitions_per_second: float
    size: float
    travel_per_second: complex = 0j
    """Way of the actor, forward and up, in standing heights."""


def oscillate(turns: float, low: float, high: float) -> float:
    """Go from `low` to `high` and back once a turn, gently at both ends."""
    return low + (high - low) * (0.5 - 0.5 * math.cos(math.tau * turns))


def sit(turns: float, manner: Manner) -> Pose:
    """Sit down on a stool, again and again: each time, the film is cut back to where the actor stands."""
    down = turns % 1.0
    pelvis = complex(-0.06 - 0.12 * down, STANDING_PELVIS - 0.33 * down)
    trunk = trunk_at(pelvis, 90 - 96 * manner.vigor * down * (1 - down), PROFILE)
    raised = -60 + 40 * manner.habit
    arms = (swing_arm(trunk.shoulders[0], raised - 8, raised + 4), swing_arm(trunk.shoulders[1], raised, raised + 12))
    ankle = complex(0.04, ANKLE)
    legs = (reach_leg(trunk.hips[0], ankle + 0.03, 1, 0), reach_leg(trunk.hips[1], ankle, 1, 0))
    return Pose(trunk, arms, legs, behind=STOOL)


def climb(turns: float, manner: Manner) -> Pose:
    """Climb a rope hand over hand, seen from the side."""
    sway = 2 * math.sin(math.tau * turns)
    trunk = trunk_at(complex(-0.07, 0.42), 84 + sway, PROFILE)
    reach = 0.1 * manner.vigor * math.sin(math.tau * turns)
    arms = (
        reach_arm(trunk.shoulders[0], complex(0.06, 0.82 + reach), bend=-1),
        reach_arm(trunk.shoulders[1], complex(0.06, 0.82 - reach), bend=-1),
    )
    knees = 0.13 + 0.05 * manner.habit
    legs = (
        reach_leg(trunk.hips[0], complex(0.05, knees - 0.7 * reach), 1, -20),
        reach_leg(trunk.hips[1], complex(0.05, knees + 0.7 * reach), 1, -20),
    )
    return Pose(trunk, arms, legs, behind=(Prop(0.07 - 0.05j, 0.07 + 1.1j, 0.014, "dark"),))


def walk(turns: float, manner: Manner) -> Pose:
    """Walk in profile: what passers-by do."""
    trunk = trunk_at(complex(0, STANDING_PELVIS - 0.02), 88, PROFILE)
    stride = 24 * manner.vigor * math.sin(math.tau * turns)
    legs = (
        swing_leg(trunk.hips[0], -90 + stride, -96 + stride, stride),
        swing_leg(trunk.hips[1], -90 - stride, -96 - stride, -stride),
    )
    arms = (
        swing_arm(trunk.shoulders[0], -92 - stride, -80 - stride),
        swing_arm(trunk.shoulders[1], -92 + stride, -80 + stride),
    )
    return Pose(trunk, arms, legs)


def wave(turns: float, manner: Manner) -> Pose:
    """Wave two flags to and fro overhead."""
    lean = 30 * manner.vigor * math.sin(math.tau * turns)
    trunk = trunk_at(complex(0, STANDING_PELVIS), 90 - 0.15 * lean, FRONT)
    arms = (
        swing_arm(trunk.shoulders[0], 112 - 0.8 * lean, 100 - lean),
        swing_arm(trunk.shoulders[1], 68 - 0.8 * lean, 80 - lean),
    )
    sticks = [(hand, hand + 0.3 * direction(upright - lean)) for (_, hand), upright in zip(arms, (102, 78), strict=True)]
    cloths = tuple(
        Prop(hand + 0.6 * (tip - hand), tip + (0.12 + 0.02 * manner.habit) * side, 0.05, "frame")
        for (hand, tip), side in zip(sticks, (-1, 1), strict=True)
    )
    poles = tuple(Prop(hand, tip, 0.01, "dark") for hand, tip in sticks)
    return Pose(trunk, arms, _standing_legs(trunk.hips, 0.085), behind=(*poles, *cloths))


def pushup(turns: float, manner: Manner) -> Pose:
    """Press the straight body up from the ground."""
    shoulder_height = oscillate(turns, 0.33, 0.33 - 0.19 * min(manner.vigor, 1.0))
    toe = -0.5 + 0j
    ankle = toe + (-0.01 + 0.075j)
    length = 0.47 + TORSO
    lean = math.degrees(math.asin((shoulder_height - ankle.imag) / length))
    pelvis = ankle + 0.47 * direction(lean)
    trunk = trunk_at(pelvis, lean, PROFILE, nod=-24)
    hand = complex(ankle.real + length + 0.0, 0.03)
    arms = (
        reach_arm(trunk.shoulders[0], hand + 0.045, bend=-1),
        reach_arm(trunk.shoulders[1], hand, bend=-1),
    )
    legs = (reach_leg(trunk.hips[0], ankle + 0.02, 1, -75), reach_leg(trunk.hips[1], ankle, 1, -75))
    return Pose(trunk, arms, legs, behind=_mat(-0.66, 0.5))


def handstand(turns: float, manner: Manner) -> Pose:
    """Balance on the hands, legs opening and closing."""
    sway = 5 * math.sin(math.tau * turns)
    neck = complex(0.006 * sway, 0.335)
    lean = -90 + sway
    trunk = trunk_at(neck - TORSO * direction(lean), lean, 0.9)
    arms = (
        reach_arm(trunk.shoulders[0], 0.12 + 0.03j, bend=0.4),
        reach_arm(trunk.shoulders[1], -0.12 + 0.03j, bend=-0.4),
    )
    opening = oscillate(turns, 14, 52 * manner.vigor)
    knee_bend = 50 * max(0.0, manner.habit - 0.6)
    legs = (
        swing_leg(trunk.hips[0], 90 + sway - opening, 90 + sway - opening + knee_bend, 60),
        swing_leg(trunk.hips[1], 90 + sway + opening, 90 + sway + opening - knee_bend, 150),
    )
    return Pose(trunk, arms, legs)


def _standing_legs(
    hips: tuple[complex, complex], stance: float
) -> tuple[tuple[complex, complex, complex], tuple[complex, complex, complex]]:
    return (
        reach_leg(hips[0], complex(-stance, ANKLE), -0.3, LEFT_FOOT),
        reach_leg(hips[1], complex(stance, ANKLE), 0.3, RIGHT_FOOT),
    )


def _mat(start: float, end: float) -> tuple[Prop, ...]:
    return (Prop(complex(start, -0.012), complex(end, -0.012), 0.02, "mat"),)


STOOL = (Prop(-0.2 + 0.1j, -0.2 + 0j, 0.05, "frame"), Prop(-0.28 + 0.11j, -0.12 + 0.11j, 0.025, "frame"))


def reverse(action: Action) -> Action:
    """Return the action as a film played backwards shows it: single frames cannot tell the two apart."""

    def pose(turns: float, manner: Manner) -> Pose:
        return action.pose(-turns, manner)

    return replace(action, pose=pose, travel_per_second=-action.travel_per_second)


SIT = Action(sit, 1.0, 1.0)
CLIMB = Action(climb, 1.0, 1.0, travel_per_second=0.45j)

ACTIONS = {
    "climb": CLIMB,
    "climb_down": reverse(CLIMB),
    "handstand": Action(handstand, 1.2, 0.9),
    "pushup": Action(pushup, 0.7, 1.06),
    "sit": SIT,
    "stand": reverse(SIT),
    "wave": Action(wave, 1.2, 0.9),
}
"""The collection's classes."""

PAIRS = (("climb", "climb_down"), ("sit", "stand"))
"""Classes that only motion tells apart."""

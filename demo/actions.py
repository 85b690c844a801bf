"""The actions: each gives the pose at a moment, counted in repetitions. The names are HMDB-51's classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
    travel_per_second: float = 0.0
    """Way of the actor over the ground, in standing heights."""


def oscillate(turns: float, low: float, high: float) -> float:
    """Go from `low` to `high` and back once a turn, gently at both ends."""
    return low + (high - low) * (0.5 - 0.5 * math.cos(math.tau * turns))


def keyframes(turns: float, frames: Sequence[tuple[float, float]]) -> float:
    """Go through (moment, value) pairs, moments from 0 to 1 of a turn, gently at each."""
    moment = turns % 1.0
    for (before, start), (after, end) in pairwise(frames):
        if moment <= after:
            share = (moment - before) / (after - before)
            return start + (end - start) * share * share * (3 - 2 * share)
    return frames[-1][1]


def stand(turns: float, manner: Manner) -> Pose:
    """Stand about, shifting weight: what bystanders do."""
    sway = oscillate(turns, -0.02, 0.02)
    trunk = trunk_at(complex(sway, STANDING_PELVIS), 90 - 60 * sway, FRONT)
    arms = (
        swing_arm(trunk.shoulders[0], -102, -94 + 30 * manner.habit),
        swing_arm(trunk.shoulders[1], -78, -86 - 30 * manner.habit),
    )
    return Pose(trunk, arms, _standing_legs(trunk.hips, 0.075))


def wave(turns: float, manner: Manner) -> Pose:
    """Wave with one raised arm, the other hanging or on the hip."""
    sway = 0.012 * math.sin(math.tau * turns / 2)
    trunk = trunk_at(complex(sway, STANDING_PELVIS), 90 + 250 * sway, FRONT, nod=4 * math.sin(math.tau * turns))
    swing = 34 * manner.vigor * math.sin(math.tau * turns)
    waving = swing_arm(trunk.shoulders[1], 22 + 14 * manner.habit + 0.3 * swing, 78 + swing)
    if manner.habit > 0.6:
        idle = reach_arm(trunk.shoulders[0], trunk.hips[0] + (-0.05 + 0.03j), bend=-1)
    else:
        idle = swing_arm(trunk.shoulders[0], -108, -97)
    return Pose(trunk, (idle, waving), _standing_legs(trunk.hips, 0.085))


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


def situp(turns: float, manner: Manner) -> Pose:
    """Roll up from lying to sitting, hands behind the head, feet on the ground."""
    lean = keyframes(turns, ((0, 172), (0.1, 172), (0.5, 172 - 76 * min(manner.vigor, 1.05)), (0.58, 96), (1, 172)))
    trunk = trunk_at(-0.05 + 0.08j, lean, PROFILE, nod=18)
    behind_head = trunk.head + 0.06 * direction(lean + 75)
    arms = (
        reach_arm(trunk.shoulders[0], behind_head, bend=-1),
        reach_arm(trunk.shoulders[1], behind_head, bend=-1),
    )
    ankle = complex(0.24 + 0.06 * manner.habit, ANKLE)
    legs = (reach_leg(trunk.hips[0], ankle + 0.03, 1, 0), reach_leg(trunk.hips[1], ankle, 1, 0))
    return Pose(trunk, arms, legs, behind=_mat(-0.56, 0.42))


def pullup(turns: float, manner: Manner) -> Pose:
    """Hang from a bar and pull the chin over it."""
    bar = 1.3
    drop = oscillate(turns, 0.30, 0.30 - 0.25 * min(manner.vigor, 1.0))
    sway = 0.02 * math.sin(math.tau * turns)
    trunk = trunk_at(complex(sway, bar - drop - TORSO), 90 + 120 * sway, FRONT)
    grip = 0.15 + 0.05 * manner.habit
    arms = (
        reach_arm(trunk.shoulders[0], complex(-grip, bar), bend=1),
        reach_arm(trunk.shoulders[1], complex(grip, bar), bend=-1),
    )
    kick = 16 * manner.habit + 8 * math.sin(math.tau * turns)
    legs = (
        swing_leg(trunk.hips[0], -98, -90 + 0.4 * kick, LEFT_FOOT + 25),
        swing_leg(trunk.hips[1], -82, -90 - 0.4 * kick, RIGHT_FOOT - 25),
    )
    frame = (
        Prop(-0.36 + 0j, complex(-0.36, bar), 0.016, "steel"),
        Prop(0.36 + 0j, complex(0.36, bar), 0.016, "steel"),
        Prop(complex(-0.38, bar), complex(0.38, bar), 0.018, "steel"),
    )
    return Pose(trunk, arms, legs, behind=frame)


def golf(turns: float, manner: Manner) -> Pose:
    """Swing a club: address the ball, wind up, strike, follow through."""
    top, finish = -228 * min(manner.vigor, 1.05), 52 * manner.vigor
    frames = ((0, -90), (0.12, -90), (0.42, top), (0.48, top), (0.62, -70), (0.72, finish), (0.88, finish), (1, -90))
    hands_angle = keyframes(turns, frames)
    wound = (hands_angle + 90) / 140
    trunk = trunk_at(complex(0.03 * wound, STANDING_PELVIS - 0.045), 92 - 5 * wound, 0.8, nod=6 - 10 * wound)
    hands = (trunk.neck - 0.03j) + 0.275 * direction(hands_angle)
    arms = (
        reach_arm(trunk.shoulders[0], hands, bend=1 if wound < -0.4 else -0.6),
        reach_arm(trunk.shoulders[1], hands, bend=-1 if wound > 0.4 else 0.6),
    )
    head_of_club = hands + 0.43 * direction(hands_angle + 88 * wound)
    lift = 40 * max(0.0, wound)
    legs = (
        reach_leg(trunk.hips[0], complex(-0.14 + 0.02 * wound, ANKLE + 0.02 * max(0.0, wound)), -0.5, LEFT_FOOT + lift),
        reach_leg(trunk.hips[1], complex(0.14, ANKLE), 0.5, RIGHT_FOOT),
    )
    club = (
        Prop(hands, head_of_club, 0.014, "steel"),
        Prop(head_of_club, head_of_club + 0.05 * direction(hands_angle + 88 * wound + 70), 0.027, "dark"),
    )
    return Pose(trunk, arms, legs, behind=_golf_ball(turns % 1.0), front=club)


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
    opening = oscillate(turns, 14, 26 + 26 * manner.habit * manner.vigor)
    knee_bend = 50 * max(0.0, manner.habit - 0.6)
    legs = (
        swing_leg(trunk.hips[0], 90 + sway - opening, 90 + sway - opening + knee_bend, 60),
        swing_leg(trunk.hips[1], 90 + sway + opening, 90 + sway + opening - knee_bend, 150),
    )
    return Pose(trunk, arms, legs)


def ride_bike(turns: float, manner: Manner) -> Pose:
    """Ride a bicycle; one repetition is one turn of the pedals."""
    saddle, handlebar, bracket = -0.15 + 0.5j, 0.2 + (0.5 + 0.07 * manner.habit) * 1j, -0.03 + 0.18j
    bob = 0.006j * math.sin(2 * math.tau * turns)
    trunk = trunk_at(saddle + 0.065j + bob, 52 + 18 * manner.habit, PROFILE, nod=-12)
    crank = 0.085 * direction(-360 * turns)
    pedals = (bracket - crank, bracket + crank)
    arms = (
        reach_arm(trunk.shoulders[0], handlebar + 0.01, bend=-1),
        reach_arm(trunk.shoulders[1], handlebar, bend=-1),
    )
    legs = (
        reach_leg(trunk.hips[0], pedals[0] + (-0.02 + 0.045j), 1, -6),
        reach_leg(trunk.hips[1], pedals[1] + (-0.02 + 0.045j), 1, -6),
    )
    behind, between = _bicycle(turns, saddle, handlebar, bracket, pedals)
    return Pose(trunk, arms, legs, behind=behind, between=between)


def _standing_legs(
    hips: tuple[complex, complex], stance: float
) -> tuple[tuple[complex, complex, complex], tuple[complex, complex, complex]]:
    return (
        reach_leg(hips[0], complex(-stance, ANKLE), -0.3, LEFT_FOOT),
        reach_leg(hips[1], complex(stance, ANKLE), 0.3, RIGHT_FOOT),
    )


def _mat(start: float, end: float) -> tuple[Prop, ...]:
    return (Prop(complex(start, -0.012), complex(end, -0.012), 0.02, "mat"),)


def _golf_ball(moment: float) -> tuple[Prop, ...]:
    flown = max(0.0, moment - 0.6) * 9
    if flown > 1.2:
        return ()
    ball = complex(0.02 + flown, 0.03 + 0.5 * flown)
    return (Prop(ball, ball, 0.02, "white"),)


def _bicycle(
    turns: float, saddle: complex, handlebar: complex, bracket: complex, pedals: tuple[complex, complex]
) -> tuple[tuple[Prop, ...], tuple[Prop, ...]]:
    """Return the parts behind both legs and those between them."""
    rear, fore = -0.31 + 0.19j, 0.31 + 0.19j
    head_tube = 0.19 + 0.42j
    wheels = _wheel(rear, turns) + _wheel(fore, turns)
    tubes = ((rear, bracket), (rear, saddle), (bracket, saddle), (bracket, head_tube), (saddle - 0.06j, head_tube))
    frame = tuple(Prop(start, end, 0.013, "frame") for start, end in (*tubes, (fore, head_tube), (head_tube, handlebar)))
    seat = Prop(saddle - 0.05, saddle + 0.04, 0.02, "dark")
    crank = (Prop(bracket, bracket, 0.035, "dark"), Prop(pedals[0], pedals[1], 0.01, "steel"))
    return wheels, (*frame, seat, *crank)


def _wheel(hub: complex, turns: float) -> tuple[Prop, ...]:
    radius, num_sides = 0.175, 18
    rim = [hub + radius * direction(360 * side / num_sides) for side in range(num_sides + 1)]
    tyre = tuple(Prop(start, end, 0.015, "dark") for start, end in pairwise(rim))
    spokes = [radius * direction(60 * spoke - 500 * turns) for spoke in range(3)]
    return (*(Prop(hub - spoke, hub + spoke, 0.004, "steel") for spoke in spokes), *tyre)


ACTIONS = {
    "golf": Action(golf, 0.45, 0.98),
    "handstand": Action(handstand, 0.6, 0.88),
    "pullup": Action(pullup, 0.5, 0.9),
    "pushup": Action(pushup, 0.7, 1.06),
    "ride_bike": Action(ride_bike, 1.2, 1.03, travel_per_second=0.22),
    "situp": Action(situp, 0.5, 1.15),
    "wave": Action(wave, 1.5, 0.9),
}
"""The collection's classes."""

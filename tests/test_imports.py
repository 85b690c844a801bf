"""The house stands: who may import whom, over every import in the source, lazy and typing ones included."""

from __future__ import annotations

from graphlib import TopologicalSorter

import pytest

from docs.draw_imports import PICTURE, ROOMS, draw, import_graph, room_graph

MAY_IMPORT = {
    "pipeline_lib": {"pipeline_lib"},
    "tasks": {"tasks", "pipeline_lib"},
    "flows": {"flows", "tasks", "pipeline_lib"},
    "demo": {"demo", "pipeline_lib"},
}


@pytest.fixture(scope="module")
def modules():
    return import_graph()


@pytest.fixture
def write(tmp_path):
    def write(**sources: str) -> None:
        for name, source in sources.items():
            path = tmp_path / "pipeline_lib" / (name.replace("__", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)

    return write


def test_packages_import_only_what_lies_below_them(modules):
    wrong = [
        f"{module} imports {name}"
        for module, imported in modules.items()
        for name in imported
        if name.partition(".")[0] not in MAY_IMPORT[module.partition(".")[0]]
    ]
    assert not wrong


def test_every_room_has_its_place(modules):
    assert not room_graph(modules).keys() - set(ROOMS)


def test_rooms_import_only_rooms_below_them(modules):
    place = {room: number for number, room in enumerate(ROOMS)}
    wrong = [
        f"{room} imports {other}"
        for room, imported in room_graph(modules).items()
        for other in sorted(imported)
        if place.get(other, len(ROOMS)) >= place.get(room, len(ROOMS))
    ]
    assert not wrong


def test_no_two_rooms_import_each_other(modules):
    rooms = room_graph(modules)
    assert not [(room, other) for room in rooms for other in rooms[room] if room < other and room in rooms[other]]


def test_no_modules_import_each_other_in_a_circle(modules):
    TopologicalSorter(modules).prepare()


def test_the_picture_is_the_one_of_this_code(modules):
    assert PICTURE.read_text(encoding="utf-8") == draw(room_graph(modules)), "draw it again: python docs/draw_imports.py"


def test_imports_are_found_wherever_they_stand(write, tmp_path):
    write(
        a="",
        b="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pipeline_lib import a\n",
        c="def work():\n    import pipeline_lib.room.one\n",
        room__one="from ..b import name\nfrom . import two\nfrom .two import name\n",
        room__two="import json\nfrom pipeline_lib.a import name\n",
    )
    graph = import_graph(tmp_path, ["pipeline_lib"])
    assert graph == {
        "pipeline_lib.a": set(),
        "pipeline_lib.b": {"pipeline_lib.a"},
        "pipeline_lib.c": {"pipeline_lib.room.one"},
        "pipeline_lib.room.one": {"pipeline_lib.b", "pipeline_lib.room.two"},
        "pipeline_lib.room.two": {"pipeline_lib.a"},
    }
    assert room_graph(graph) == {"a": set(), "b": {"a"}, "c": {"room"}, "room": {"b", "a"}}

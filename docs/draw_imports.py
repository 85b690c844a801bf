"""Draw which rooms of `pipeline_lib` import which: `python docs/draw_imports.py` writes `docs/images/imports.svg`.

The graph is read from the source: every import counts, also those inside functions and those for type checkers alone.
`tests/test_imports.py` holds the same graph against `ROOMS`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PICTURE = REPOSITORY / "docs" / "images" / "imports.svg"
LIBRARY = "pipeline_lib"
PACKAGES = (LIBRARY, "tasks", "flows", "demo")
ROOMS = (
    "errors", "addresses", "postgresql", "stages",
    "params", "artifacts", "compute", "video", "datasets", "backbones", "streams", "networks", "training",
    "fetch", "subsample", "chunk", "finetune", "features", "train", "sweep", "evaluate", "heatmaps", "report", "predict",
)  # fmt: skip
"""The rooms of the library from the ground up, single modules first; each may import only those before it."""

Graph = dict[str, set[str]]
"""What each module, or room, imports."""

ROW, WIDTH, BOX_WIDTH, BOX_HEIGHT, MARGIN = 34, 760, 130, 24, 20
STYLE = """
  .page { fill: #ffffff } .box { fill: #eef2f7; stroke: #5b6b80 } .unknown { fill: #fde2e2; stroke: #b3261e }
  text { fill: #1b2430; font: 13px system-ui, sans-serif; text-anchor: middle }
  path { fill: none; stroke: #3d6db5; stroke-opacity: .55; stroke-width: 1.2 } .up { stroke: #b3261e; stroke-opacity: 1 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #14181f } .box { fill: #232b37; stroke: #8fa1b8 } .unknown { fill: #4a1f1f; stroke: #f2a29b }
    text { fill: #e6ebf2 } path { stroke: #8ab4f8 } .up { stroke: #f2a29b }
  }
"""


def import_graph(root: Path = REPOSITORY, packages: Iterable[str] = PACKAGES) -> Graph:
    """Return what each module of the packages imports from the packages, wherever in the module the import stands."""
    files = {name: path for package in packages for name, path in _modules(root, package)}
    return {name: set(_imports(name, path, files.keys())) - {name} for name, path in files.items()}


def room_graph(modules: Graph) -> Graph:
    """Return what each room of the library imports from the library's other rooms."""
    rooms: Graph = {}
    for module, imported in modules.items():
        if room := room_of(module):
            rooms.setdefault(room, set()).update({other for name in imported if (other := room_of(name))} - {room})
    return rooms


def room_of(module: str) -> str | None:
    """Return the folder or single module of the library that a module belongs to; None outside the library."""
    package, _, inside = module.partition(".")
    return inside.partition(".")[0] or None if package == LIBRARY else None


def _modules(root: Path, package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _imports(module: str, path: Path, known: Iterable[str]) -> Iterator[str]:
    """Yield the known modules that a module imports: `from package import name` is `package.name` if that is a module."""
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(package, node)
            names = (f"{base}.{alias.name}" for alias in node.names)
            yield from {name if name in known else base for name in names} & set(known)


def _absolute(package: str, node: ast.ImportFrom) -> str:
    """Return the absolute name of the module that a `from` import names."""
    if not node.level:
        return node.module or ""
    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def draw(rooms: Graph) -> str:
    """Return the graph as SVG: the ground at the bottom, imports of lower rooms on the right, those that go up on the left."""
    order = [room for room in ROOMS if room in rooms] + sorted(rooms.keys() - set(ROOMS))
    height = 2 * MARGIN + ROW * len(order)
    middles = {room: height - MARGIN - ROW * (place + 0.5) for place, room in enumerate(order)}
    edges = [_edge(room, other, middles) for room in order for other in sorted(rooms[room], key=order.index)]
    boxes = [_box(room, middle) for room, middle in middles.items()]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
        f"<title>What each room of {LIBRARY} imports</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="8"/>',
        *edges, *boxes, "</svg>", "",
    ])  # fmt: skip


def _edge(room: str, other: str, middles: dict[str, float]) -> str:
    start, end = middles[room], middles[other]
    allowed = other in ROOMS[: ROOMS.index(room)] if room in ROOMS else False
    side = 1 if allowed else -1
    x = WIDTH / 2 + side * BOX_WIDTH / 2
    bend = x + side * (20 + 0.4 * abs(end - start))
    kind = "" if allowed else ' class="up"'
    return f'<path{kind} d="M{x} {start} C{bend:.0f} {start} {bend:.0f} {end} {x} {end}"><title>{room} → {other}</title></path>'


def _box(room: str, middle: float) -> str:
    left, top = (WIDTH - BOX_WIDTH) / 2, middle - BOX_HEIGHT / 2
    kind = "box" if room in ROOMS else "unknown"
    box = f'<rect class="{kind}" x="{left}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="4"/>'
    return f'{box}<text x="{WIDTH / 2}" y="{middle + 4.5}">{room}</text>'


if __name__ == "__main__":
    PICTURE.write_text(draw(room_graph(import_graph())), encoding="utf-8")

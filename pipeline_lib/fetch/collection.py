"""Fetch a video collection as `<root>/<class>/<video file>` with its split files and tables."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd

from pipeline_lib.addresses import Address, redact
from pipeline_lib.artifacts import layout
from pipeline_lib.artifacts.tables import CollectionVideo
from pipeline_lib.compute.cores import num_cores
from pipeline_lib.datasets.registry import find_data_set, split_formats
from pipeline_lib.datasets.split_files import SplitFormat
from pipeline_lib.errors import UnusableError, UserError
from pipeline_lib.fetch.annotations import read_annotations, write_annotated_boxes
from pipeline_lib.fetch.archives import Limits, remove_tree, unpack
from pipeline_lib.fetch.download import Progress, RetryPolicy, download, first_usable
from pipeline_lib.fetch.tables import check_boxed_videos, copy_boxes, copy_groups
from pipeline_lib.params import Addresses, FetchParams

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset((".avi", ".mp4", ".mkv", ".mov", ".mpg", ".mpeg", ".webm", ".wmv", ".flv", ".m4v", ".3gp", ".ogv"))
LAYOUT = "<folder>/<class>/<video file>"


def videos_root(params: FetchParams, directory: Path) -> Path:
    """Return the folder whose subfolders are the classes: the user's own, or the one in the artifact's `directory`."""
    if params.kind == "folder":
        return Path(str(params.videos)).expanduser().absolute()
    return directory / "videos"


def list_videos(root: Path) -> list[CollectionVideo]:
    """Return the videos of every class, sorted by name. Hidden files are skipped; the number of other files is logged.

    Raises:
        UserError: no such folder, no class folder in it, a class without a video, or a name that is not UTF-8.
    """
    if not root.is_dir():
        hint = "set fetch.kind: archive to unpack it" if root.is_file() else "check the path"
        raise UserError(f"fetch.videos: {root}: no such folder: {hint}")
    classes = [folder for folder in _visible(root) if folder.is_dir() and not _has_split_files(folder)]
    if not classes:
        raise UserError(f"fetch.videos: {root}: no class folder in it: {LAYOUT} is expected")
    videos = [video for folder in classes for video in _class_videos(folder)]
    return sorted(videos, key=lambda video: video.video)


def _class_videos(folder: Path) -> list[CollectionVideo]:
    files = _visible(folder)
    videos = [path for path in files if _is_video(path)]
    if not videos:
        deeper = next((path.parent.parent for path in _files_below(folder) if _is_video(path)), None)
        hint = f"did you mean fetch.videos: {deeper}" if deeper else "add videos or remove the folder"
        raise UserError(f"fetch.videos: {folder}: no video in this class folder ({LAYOUT} is expected): {hint}")
    if len(videos) < len(files):
        logger.warning("%s: ignored %d of %d entries, which are not videos", folder, len(files) - len(videos), len(files))
    return [CollectionVideo(_checked_name(f"{folder.name}/{path.name}", folder), folder.name) for path in videos]


def _checked_name(name: str, folder: Path) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"fetch.videos: {folder}: the name {name!a} is not valid UTF-8: rename it") from None
    return name


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def _visible(folder: Path) -> list[Path]:
    """Return the entries of a folder, without hidden ones and `__MACOSX`."""
    paths = (path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "__MACOSX")
    return sorted(paths, key=lambda path: path.name)


def _files_below(folder: Path) -> Iterator[Path]:
    for path in _visible(folder):
        if path.is_dir() and not path.is_symlink():
            yield from _files_below(path)
        elif path.is_file():
            yield path


def _has_split_files(folder: Path) -> bool:
    return any(split_format.lists(folder) for split_format in split_formats())


def fetch_collection(
    params: FetchParams,
    directory: Path,
    partial: Path,
    *,
    sha256: Callable[[Path], str],
    progress: Progress | None = None,
) -> dict[str, int]:
    """Write the collection to `directory` and return its counts: classes, videos, split_files, size_bytes.

    Writes `videos/<class>/<file>` (except for `kind: folder`, whose videos stay in place), `collection.parquet` (video,
    class_name, size_bytes, sha256), and if given `splits/`, `boxes.csv` and `groups.csv`.

    Args:
        params: addresses, digests and limits.
        directory: existing folder to write to.
        partial: existing folder for downloads, which a later call resumes.
        sha256: returns the SHA-256 of a file; called from several threads.
        progress: called during downloads.

    Raises:
        UserError: an address, archive, folder or table is not usable.
    """
    # The tables first, so that a wrong path does not cost a large download.
    annotations = read_annotations(params.boxes)
    if annotations is None:
        copy_boxes(params.boxes, directory)
    copy_groups(params.groups, directory)
    num_split_files = _fetch_splits(params, directory, partial, progress)
    if params.kind != "folder":
        _fetch_videos(params, directory, partial, progress)
    root = videos_root(params, directory)
    videos = list_videos(root)
    names = [video.video for video in videos]
    if annotations is None:
        check_boxed_videos(params.boxes, dict.fromkeys(names))
    else:
        write_annotated_boxes(annotations, str(params.boxes), root, names, directory)
    with ThreadPoolExecutor(num_cores()) as pool:
        digests = list(pool.map(lambda video: sha256(root / video.video), videos))
    table = pd.DataFrame(
        {
            "video": names,
            "class_name": [video.class_name for video in videos],
            "size_bytes": [(root / video.video).stat().st_size for video in videos],
            "sha256": digests,
        }
    )
    table.to_parquet(directory / layout.COLLECTION, index=False)
    return {
        "classes": int(table["class_name"].nunique()),
        "videos": len(table),
        "split_files": num_split_files,
        "size_bytes": int(table["size_bytes"].sum()),
    }


def _addresses(given: Addresses, sha256: str | None, known: Sequence[Address]) -> list[Address]:
    """Return the addresses in the parameters, or the known ones by default, with their known digests and sizes."""
    urls = [address.url for address in known] if given is None else [given] if isinstance(given, str) else list(given)
    by_url = {address.url: address for address in known}
    addresses = [by_url.get(url, Address(url)) for url in urls]
    return [replace(address, sha256=sha256) for address in addresses] if sha256 else addresses


def _fetch_videos(params: FetchParams, directory: Path, partial: Path, progress: Progress | None) -> None:
    """Move the class folders of the first usable archive to `directory/videos`."""
    data_set = find_data_set(params.kind)

    def use(address: Address) -> None:
        with _unpacked("fetch.videos", address, params, partial, progress) as folder:
            if folder.parent != partial:
                raise UserError(f"fetch.videos: {folder} is a folder, not an archive: set fetch.kind: folder")
            root = _class_folders_root(folder, f"fetch.videos: {redact(address.url)}")
            if data_set:
                data_set.check_complete([video.video for video in list_videos(root)], directory / "splits")
            shutil.move(root, directory / "videos")

    known = data_set.videos if data_set else ()
    first_usable(_addresses(params.videos, params.videos_sha256, known), use, key="fetch.videos")


def _fetch_splits(params: FetchParams, directory: Path, partial: Path, progress: Progress | None) -> int:
    """Copy the split files of the first usable address to `directory/splits` and return their number."""
    data_set = find_data_set(params.kind)
    known = data_set.splits if data_set else ()
    formats = [data_set.split_format] if data_set else split_formats()

    def use(address: Address) -> int:
        with _unpacked("fetch.splits", address, params, partial, progress) as folder:
            files = _split_files_below(folder, formats, f"fetch.splits: {redact(address.url)}")
            if data_set:
                data_set.check_splits(files[0].parent)
            (directory / "splits").mkdir(parents=True)
            for path in files:
                shutil.copyfile(path, directory / "splits" / path.name)
            return len(files)

    addresses = _addresses(params.splits, params.splits_sha256, known) if params.splits or known else []
    return first_usable(addresses, use, key="fetch.splits") if addresses else 0


def _split_files_below(unpacked: Path, formats: Sequence[SplitFormat], label: str) -> list[Path]:
    """Return the split files of the one folder that has some, at any depth."""
    folders = sorted({path.parent for path in _files_below(unpacked)})
    found = [files for folder in folders for split_format in formats if (files := split_format.files(folder))]
    if len(found) == 1:
        return found[0]
    what = f"split files in {len(found)} folders" if found else "no split file"
    expected = " or ".join(f"{split_format.EXAMPLE}, ..." for split_format in formats)
    raise UnusableError(f"{label}: {what}: one folder of {expected} is expected")


@contextlib.contextmanager
def _unpacked(key: str, address: Address, params: FetchParams, partial: Path, progress: Progress | None) -> Iterator[Path]:
    """Yield the local folder that an address names, or a temporary one in `partial` with the contents of its archive.

    A downloaded archive that turns out to be unusable is deleted, so that the next run downloads it again.
    """
    downloads, destination = partial / "downloads", partial / key.removeprefix("fetch.")
    policy = RetryPolicy(params.retries, params.timeout_seconds)
    path = download(address, downloads, policy=policy, progress=progress)
    if path.is_dir():
        yield path
        return
    limits = Limits(params.unpack_seconds, params.max_members, params.max_unpacked_bytes)
    remove_tree(destination)
    try:
        unpack(path, destination, limits, f"{key}: {redact(address.url)}")
        yield destination
    except UnusableError:
        if path.parent == downloads:
            path.unlink()
        raise
    finally:
        remove_tree(destination)


def _class_folders_root(unpacked: Path, label: str) -> Path:
    """Return the folder whose subfolders hold the videos, at any depth."""
    roots = sorted({path.parent.parent for path in _files_below(unpacked) if _is_video(path)})
    if len(roots) == 1 and roots[0].is_relative_to(unpacked):
        return roots[0]
    if not roots:
        raise UnusableError(f"{label}: no video in the archive: {LAYOUT} is expected")
    shown = ", ".join(f"{root.relative_to(unpacked)}/" if root.is_relative_to(unpacked) else "the top" for root in roots[:3])
    raise UnusableError(f"{label}: the archive's videos are not in class folders of one folder ({shown}): {LAYOUT} is expected")

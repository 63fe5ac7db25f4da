"""Whether there is room where the service writes: its home, where it keeps the embedded database, and its artifacts."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from service.settings import ServiceSettings

#: Free bytes below which nothing more should be begun: a write that is cut short fails a search.
LEAST_FREE_BYTES = 100 * 2**20


def shortages(settings: ServiceSettings) -> Iterator[str]:
    """What is to be said of folders with too little room, once for each file system."""
    seen: set[int] = set()
    for name, place in (("home", str(settings.home_dir)), ("artifacts", settings.artifacts)):
        if "://" in place:
            continue  # no files
        folder = nearest_folder(Path(place))
        free, device = shutil.disk_usage(folder).free, folder.stat().st_dev
        if free < LEAST_FREE_BYTES and device not in seen:
            seen.add(device)
            yield f"the disk of the {name} is full: {free // 2**20} of {LEAST_FREE_BYTES // 2**20} MiB are free"


def nearest_folder(place: Path) -> Path:
    """`place`, or the nearest folder above it that exists."""
    folder = place.expanduser().absolute()
    return next(parent for parent in (folder, *folder.parents) if parent.exists())

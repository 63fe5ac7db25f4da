"""What packing text costs: ``python -m benchmarks.data [--processes 1 2] [--copies 1 16]``.

The corpora below ``ESPALIER_DATA_DIR``, as they are and written so many times over (every copy's documents marked, so
that none is a repeat), packed with the tokenizer of stories260K into the same request: tokens a second of all that is
packed, and the peak of anonymous memory above what importing the libraries takes. Every cell is a process of its own.
Prints a table.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event, Thread

from search.data import DataRequest
from search.distillation import DistillationRequest
from search.request import BudgetRequest, SearchRequest, TeacherRequest
from search.sources import TextSource, resolve_text
from search.texts import BlendedText, Texts
from workers.compress.corpus import read_documents
from workers.compress.cutting import LONGEST_PIECE
from workers.compress.data import pack
from workers.compress.tokenizer import load_tokenizer

#: A request that takes 2.5 of the corpora's 8 million tokens, whatever there is.
REQUEST = SearchRequest(
    teacher=TeacherRequest(model="any"),
    budgets=(BudgetRequest(ratio=0.5),),
    data=DataRequest(train="any", calibration_samples=1_024),
    distillation=DistillationRequest(tokens=2_097_152, learning_rate=1e-3, max_epochs=1),
)


def measure(corpus: Path, tokenizer_of: Path, *, processes: int) -> dict[str, float]:
    """Seconds, tokens and bytes of one packing, in this process."""
    source = resolve_text(corpus.name, [corpus.parent])
    texts = Texts(train=(BlendedText(source=source, share=1.0, where=("data", "train")),), held_out=())
    tokenizer = load_tokenizer(tokenizer_of)
    import datasets  # noqa: F401  # so that it counts as a library

    before, stop, peaks = _anonymous_bytes(), Event(), [0]

    def watch() -> None:
        while not stop.wait(0.01):
            peaks.append(_anonymous_bytes())

    watcher, began = Thread(target=watch), time.monotonic()
    watcher.start()
    tokens = pack(texts, tokenizer, REQUEST, vocab_size=512, processes=processes)
    seconds = time.monotonic() - began
    stop.set()
    watcher.join()
    return {
        "seconds": seconds,
        "tokens": sum(windows.numel() for windows in tokens.tensors.values()),
        "peak_bytes": max(peaks) - before,
        "corpus_bytes": source.num_bytes,
    }


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def write_corpora(folder: Path, copies: Sequence[int], corpora: Path) -> Iterator[tuple[int, Path]]:
    """A folder of JSON lines for each number of copies."""
    found = resolve_text(".", [corpora])
    source = TextSource(files=found.files, num_bytes=0)
    documents = [unit.text for unit in read_documents(source, REQUEST.data, folder, longest=LONGEST_PIECE)]
    for count in copies:
        place = folder / f"copies-{count}"
        place.mkdir()
        for copy in range(count):
            with (place / f"{copy}.jsonl").open("w") as file:
                file.writelines(json.dumps({"text": f"{copy} {text}"}) + "\n" for text in documents)
        yield count, place


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--cell", nargs=2, metavar=("CORPUS", "PROCESSES"), help="measure one and print JSON")
    chosen, data_dir = parser.parse_args(arguments), os.environ.get("ESPALIER_DATA_DIR")
    if data_dir is None:
        print("ESPALIER_DATA_DIR names no folder of real models and corpora", file=sys.stderr)
        return 2
    if chosen.cell:
        corpus, processes = chosen.cell
        print(json.dumps(measure(Path(corpus), Path(data_dir, "models/stories260K"), processes=int(processes))))
        return 0
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}, Python {platform.python_version()}")
    print("| corpus | processes | seconds | tokens/s | peak memory |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="espalier-") as folder:
        for _, corpus in write_corpora(Path(folder), chosen.copies, Path(data_dir, "corpora")):
            for processes in chosen.processes:
                command = [sys.executable, "-m", "benchmarks.data", "--cell", str(corpus), str(processes)]
                cell = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                print(
                    f"| {cell['corpus_bytes'] / 1e6:,.0f} MB | {processes} | {cell['seconds']:.1f} "
                    f"| {cell['tokens'] / cell['seconds']:,.0f} | {cell['peak_bytes'] / 2**20:,.0f} MiB |"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())

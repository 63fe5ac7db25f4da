"""Where a number comes from: versions, hardware and time."""

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import transformers


def environment(device: str) -> dict[str, str]:
    """Versions and hardware that a number may depend on."""
    on_gpu = torch.device(device).type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(device) if on_gpu else f"{platform.machine()} CPU",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


class Stopwatch:
    """Seconds by step; a step entered again goes on counting."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Count what happens inside as `step`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add({step: time.perf_counter() - start})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count what was spent elsewhere."""
        for step, more in seconds.items():
            self.seconds[step] = self.seconds.get(step, 0.0) + more

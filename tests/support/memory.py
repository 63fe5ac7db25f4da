"""How much memory PyTorch takes while something runs."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(act: Callable[[], object]) -> int:
    """Most bytes that lived at once of what PyTorch's CPU allocator gave out while `act` ran.

    Inside kernels too. What lived before does not count, nor does its end.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as observed:
        kept = act()
    assert observed.profiler is not None
    assert observed.profiler.kineto_results is not None
    del kept
    events = [event for event in observed.profiler.kineto_results.events() if event.name() == "[memory]"]
    living = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        living += event.nbytes()
        peak = max(peak, living)
    return peak

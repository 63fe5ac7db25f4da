"""The watch, on a look that tests choose."""

import threading

from tests.support.homes import wait_until
from workers.watch import Trouble, Watch

WAITS, DEAD = Trouble("no room"), Trouble("dead", final=True)


class Scene:
    """What there is to see, and what was done about it."""

    def __init__(self) -> None:
        self.now: Trouble | None = None
        self.ended: list[Trouble] = []
        self.threads: list[str] = []

    def look(self) -> Trouble | None:
        return self.now

    def end(self, trouble: Trouble) -> None:
        self.ended.append(trouble)
        self.threads.append(threading.current_thread().name)


def test_trouble_comes_and_goes() -> None:
    scene = Scene()
    with Watch(scene.look, scene.end, period_s=0.01) as watch:
        assert watch.trouble is None
        scene.now = WAITS
        wait_until(lambda: watch.trouble is WAITS, what="the trouble to be seen")
        scene.now = None
        wait_until(lambda: watch.trouble is None, what="its end to be seen")
    assert scene.ended == []


def test_trouble_that_is_there_from_the_beginning_is_known_at_once() -> None:
    scene = Scene()
    scene.now = WAITS
    with Watch(scene.look, scene.end, period_s=3600) as watch:
        assert watch.trouble is WAITS


def test_final_trouble_ends_the_watch_once_and_on_its_own_thread() -> None:
    scene = Scene()
    with Watch(scene.look, scene.end, period_s=0.01) as watch:
        scene.now = DEAD
        wait_until(lambda: scene.ended, what="the end")
    assert scene.ended == [DEAD]
    assert scene.threads == ["watch"]
    assert watch.trouble is DEAD

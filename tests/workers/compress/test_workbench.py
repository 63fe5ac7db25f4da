from dataclasses import replace

import pytest

from search.errors import UnusableTeacher
from search.planning import feasible_sets
from search.records import SearchRecord
from search.request import TeacherRequest
from tests.support.homes import REQUEST, Home, task_for
from tests.support.teachers import make_teacher
from workers.compress.model import count_parameters
from workers.compress.slicing import select
from workers.compress.workbench import Workbench, build_student


def test_every_proposed_architecture_can_be_built_as_counted(bench: Workbench, search: SearchRecord) -> None:
    points = feasible_sets(search)[0].points
    assert len(points) > 10
    for index in range(len(points)):
        task = task_for(search, index=index)
        selection = select(bench.importance, task.architecture, teacher=bench.teacher.architecture)
        assert count_parameters(build_student(bench.teacher, task.architecture, selection)) == task.parameters


def test_a_teacher_that_changed_under_the_search_is_refused(home: Home) -> None:
    make_teacher(home.models / "shifting", seed=1)
    ready = home.prepared(replace(REQUEST, teacher=TeacherRequest(model="shifting")))
    make_teacher(home.models / "shifting", seed=2)
    with pytest.raises(UnusableTeacher, match="changed under the search"):
        home.bench(ready)
    make_teacher(home.models / "shifting", seed=1, rms_norm_eps=1e-4)
    with pytest.raises(UnusableTeacher, match=r"config\.json"):
        home.bench(ready)

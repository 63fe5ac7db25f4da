"""The doctor on healthy and sick settings."""

import json
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from search.records import DriverRecord
from search.store.sql import SqlStore, migrate
from service import doctor
from service.cli import app
from service.doctor import Finding, Status, examine
from service.settings import ServiceSettings
from tests.support.clock import ManualClock
from tests.support.files import write_model


@pytest.fixture
def settings(tmp_path: Path) -> ServiceSettings:
    """Settings of a machine on which a search can run."""
    write_model(tmp_path / "models" / "org" / "tiny")
    (tmp_path / "data" / "stories").mkdir(parents=True)
    (tmp_path / "data" / "stories" / "all.txt").write_text("Once upon a time.")
    (tmp_path / "home").mkdir()
    made = ServiceSettings(home=tmp_path / "home", model_roots=[tmp_path / "models"], data_roots=[tmp_path / "data"])
    migrate.upgrade(made.database)
    return made


def found(settings: ServiceSettings, what: str) -> Finding:
    """The one finding about `what`."""
    (finding,) = [finding for finding in examine(settings) if finding.what == what]
    return finding


def test_a_healthy_machine_has_nothing_broken(settings: ServiceSettings) -> None:
    findings = examine(settings)
    assert not [finding for finding in findings if finding.status is Status.BROKEN]
    assert {"python", "torch", "database", "artifacts", "model root", "data root", "machine", "GPUs"} <= {
        finding.what for finding in findings
    }


def test_roots_are_told_with_what_they_hold(settings: ServiceSettings) -> None:
    assert "org/tiny" in found(settings, "model root").found
    assert "stories" in found(settings, "data root").found


def test_a_root_that_is_missing_is_broken(settings: ServiceSettings, tmp_path: Path) -> None:
    gone = settings.model_copy(update={"model_roots": [tmp_path / "gone"]})
    assert found(gone, "model root").status is Status.BROKEN
    none = settings.model_copy(update={"data_roots": []})
    assert found(none, "data root").status is Status.BROKEN
    assert "ESPALIER_DATA_ROOTS" in found(none, "data root").hint


def test_an_empty_root_is_worth_a_note(settings: ServiceSettings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = settings.model_copy(update={"model_roots": [tmp_path / "empty"]})
    assert found(empty, "model root").status is Status.NOTE


def test_a_database_that_is_not_there_yet_is_worth_a_note_and_not_made(
    settings: ServiceSettings, tmp_path: Path
) -> None:
    fresh = settings.model_copy(update={"home": tmp_path / "fresh"})
    assert found(fresh, "database").status is Status.NOTE
    assert "espalier serve" in found(fresh, "database").hint
    assert not (tmp_path / "fresh").exists()


def test_a_file_that_is_no_database_is_broken(settings: ServiceSettings, tmp_path: Path) -> None:
    (tmp_path / "home" / "espalier.db").write_bytes(b"not a database, but long enough to be looked at" * 100)
    assert found(settings, "database").status is Status.BROKEN


def test_a_database_that_does_not_answer_is_broken_and_its_password_stays_secret(settings: ServiceSettings) -> None:
    away = settings.model_copy(
        update={"database_url": "postgresql+psycopg://me:secret@127.0.0.1:1/espalier?connect_timeout=2"}
    )
    finding = found(away, "database")
    assert finding.status is Status.BROKEN
    assert "secret" not in finding.found + finding.hint


def test_the_last_driver_is_told_and_how_long_ago(settings: ServiceSettings) -> None:
    assert found(settings, "driver").status is Status.NOTE
    _report(settings, ago=timedelta(0))
    assert found(settings, "driver").status is Status.OK
    assert "4 CPU, 0.5 GPU" in found(settings, "driver").found


def test_a_driver_that_fell_silent_is_worth_a_note(settings: ServiceSettings) -> None:
    _report(settings, ago=timedelta(hours=1))
    assert found(settings, "driver").status is Status.NOTE
    assert "espalier driver" in found(settings, "driver").hint


def _report(settings: ServiceSettings, *, ago: timedelta) -> None:
    clock = ManualClock()
    clock.advance((datetime.now(UTC) - ago - clock.now()).total_seconds())
    now = clock.now()
    store = SqlStore(settings.database, clock=clock)
    store.report_driver(
        DriverRecord(
            id="d",
            started_at=now,
            seen_at=now,
            host="box",
            pid=1,
            resources={"CPU": 4.0, "GPU": 0.5},
            environment={},
        )
    )
    store.close()


def test_artifacts_that_cannot_be_written_are_broken(settings: ServiceSettings) -> None:
    nowhere = settings.model_copy(update={"artifacts_url": "/proc/espalier"})
    finding = found(nowhere, "artifacts")
    assert finding.status is Status.BROKEN
    assert "ESPALIER_ARTIFACTS_URL" in finding.hint


def test_artifacts_elsewhere_are_named(settings: ServiceSettings) -> None:
    assert found(settings.model_copy(update={"artifacts_url": "s3://b/p"}), "artifacts").found == "s3://b/p"


def test_a_full_disk_is_broken(settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 2**62)
    assert found(settings, "artifacts").status is Status.BROKEN


def test_little_disk_is_worth_a_note(settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_LITTLE_DISK", 1 << 60)
    assert found(settings, "artifacts").status is Status.NOTE


def command(path: Path, script: str) -> Path:
    """An executable for the PATH."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize(
    ("script", "status", "text"),
    [
        ("echo 'NVIDIA H100, 81559 MiB'", Status.OK, "NVIDIA H100, 81559 MiB"),
        ("exit 9", Status.NOTE, "nvidia-smi fails"),
        ("true", Status.NOTE, "none"),
    ],
)
def test_gpus_are_what_nvidia_smi_says(
    settings: ServiceSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    status: Status,
    text: str,
) -> None:
    tool = command(tmp_path / "bin" / "nvidia-smi", script)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    finding = found(settings, "GPUs")
    assert finding.status is status
    assert text in finding.found


@pytest.mark.parametrize("has_compiler", [False, True])
def test_beside_a_gpu_a_compiler_is_looked_for(
    settings: ServiceSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_compiler: bool
) -> None:
    tool = command(tmp_path / "bin" / "nvidia-smi", "echo 'NVIDIA H100, 81559 MiB'")
    monkeypatch.setenv("PATH", str(tool.parent))
    if has_compiler:
        command(tool.parent / "gcc", "true")
    finding = found(settings, "C compiler")
    assert finding.status is (Status.OK if has_compiler else Status.NOTE)
    assert ("gcc" in finding.found) == has_compiler


def test_a_cluster_address_is_told(settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_RAY_ADDRESS", "head:6379")
    assert "head:6379" in found(settings, "Ray").found


def test_the_command_exits_with_1_where_something_is_broken(settings: ServiceSettings, tmp_path: Path) -> None:
    healthy = ["--home", str(tmp_path / "home"), "--model-root", str(tmp_path / "models")]
    healthy += ["--data-root", str(tmp_path / "data")]
    result = CliRunner().invoke(app, ["doctor", *healthy, "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["ok"] is True
    result = CliRunner().invoke(app, ["doctor", *healthy, "--model-root", str(tmp_path / "gone")])
    assert result.exit_code == 1
    assert "BROKEN" in result.stdout
    assert "1 broken." in result.stdout

"""Settings of the driver and its workers, from the environment (``ESPALIER_…``)."""

from pydantic import Field

from search.settings import CommonSettings


class WorkerSettings(CommonSettings):
    """Where the work is done, and how much of a machine each candidate gets."""

    ray_address: str = Field(
        default="", description="Ray cluster to join, e.g. ray-head:6379; empty: start one on this machine."
    )
    ray_num_cpus: int | None = Field(
        default=None, ge=1, description="CPUs of the Ray started on this machine; empty: all of them."
    )
    ray_num_gpus: int | None = Field(
        default=None, ge=0, description="GPUs of the Ray started on this machine; empty: those that are found."
    )
    cpus_per_worker: float = Field(default=1.0, gt=0, description="CPUs that Ray reserves for a candidate.")
    gpus_per_worker: float | None = Field(
        default=None,
        ge=0,
        description="GPUs that Ray reserves for a candidate, a fraction to share one, 0 to compute on the CPU; "
        "empty: one where the cluster has GPUs.",
    )
    max_workers: int | None = Field(
        default=None, ge=1, description="Candidates at the same time, at most; empty: as many as the cluster holds."
    )
    threads_per_worker: int = Field(
        default=1, ge=1, description="CPU threads of a candidate. Results are reproducible for a fixed number."
    )
    lease_ttl_s: float = Field(
        default=30.0, gt=0, description="Seconds after which another driver may take over the job of a silent one."
    )
    poll_s: float = Field(default=0.5, gt=0, description="Seconds between two looks for a job to take.")

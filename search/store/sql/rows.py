"""Rows of candidates: new ones, promoted ones, repeated ones, and what was measured of them."""

import secrets
from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import Connection, insert, select

from search.counting import non_embedding_parameters
from search.errors import IllegalTransition
from search.records import CandidateRecord, Measurement, Proposal, RunState
from search.store.sql import queries
from search.store.sql.locked import LockedSearch
from search.store.sql.tables import candidates, measurements, runs

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no letter that looks like a digit


def new_id(prefix: str) -> str:
    """60 random bits: unguessable by accident, short enough to type."""
    return f"{prefix}-{''.join(secrets.choice(_ALPHABET) for _ in range(12))}"


def add(search: LockedSearch, proposals: Sequence[Proposal]) -> list[CandidateRecord]:
    """Those whose architecture the search does not have yet."""
    known = select(candidates.c.architecture_digest).where(candidates.c.search_id == search.id)
    taken = set(search.connection.scalars(known))
    seed = queries.get_search(search.connection, search.id).request.strategy.seed
    added = []
    for proposal in proposals:
        if proposal.architecture.digest not in taken:
            taken.add(proposal.architecture.digest)
            added.append(_insert(search, proposal, seed=seed))
    records = queries.candidates_where(search.connection, candidates.c.id.in_(added))
    progress = search.progress()
    for record in records:
        search.append_run(
            "proposed",
            record,
            budget_index=record.budget_index,
            axes=record.architecture.axes,
            parameters=record.parameters,
            progress=progress,
        )
    return records


def promote(search: LockedSearch, run_ids: Sequence[str]) -> list[CandidateRecord]:
    """PAUSED runs become PENDING; in the order given, with their measurements."""
    for run_id in run_ids:
        search.move_run(search.run_in(RunState.PAUSED, run_id, verb="promote"), RunState.PENDING)
    found = {each.run_id: each for each in queries.candidates_where(search.connection, runs.c.id.in_(run_ids))}
    promoted = [found[run_id] for run_id in run_ids]
    for candidate in promoted:
        search.append_run("promoted", candidate, tokens=candidate.reached, progress=search.progress())
    return promoted


def repeat(search: LockedSearch, repeats: Sequence[tuple[str, int]]) -> list[CandidateRecord]:
    """One more run of each candidate, with a seed that it has not run with."""
    repeated = []
    for candidate_id, seed in repeats:
        candidate = search.candidate(candidate_id)
        if candidate.state is not RunState.COMPLETED:
            legal = [RunState.COMPLETED.value]
            raise IllegalTransition("candidate", candidate_id, state=candidate.state.value, verb="repeat", legal=legal)
        if seed not in {run.seed for run in candidate.runs}:
            run_id = _insert_run(search, candidate_id, repeat=len(candidate.runs), seed=seed)
            search.append_run("proposed", search.run(run_id), progress=search.progress())
            repeated.append(search.candidate(candidate_id))
    return repeated


def _insert(search: LockedSearch, proposal: Proposal, *, seed: int) -> str:
    candidate_id = new_id("c")
    row = {
        **{name: getattr(proposal, name) for name in ("number", "budget_index", "architecture", "parameters")},
        "id": candidate_id,
        "search_id": search.id,
        "architecture_digest": proposal.architecture.digest,
        "non_embedding_parameters": non_embedding_parameters(proposal.architecture),
        "created_at": search.now,
    }
    search.connection.execute(insert(candidates).values(row))
    _insert_run(search, candidate_id, repeat=0, seed=seed)
    return candidate_id


def _insert_run(search: LockedSearch, candidate_id: str, *, repeat: int, seed: int) -> str:
    run_id = new_id("r")
    run = {"id": run_id, "candidate_id": candidate_id, "repeat": repeat, "seed": seed}
    search.connection.execute(insert(runs).values(run | {"state": RunState.PENDING, "num_attempts": 0}))
    return run_id


def insert_measurements(connection: Connection, run_id: str, measured: Sequence[Measurement]) -> Sequence[Measurement]:
    """Insert those whose (tokens, metric) the run does not have yet; they are the answer."""
    known = select(measurements.c.tokens, measurements.c.metric).where(measurements.c.run_id == run_id)
    taken = {(row.tokens, row.metric) for row in connection.execute(known)}
    new = []
    for measurement in measured:
        if (measurement.tokens, measurement.metric) not in taken:
            taken.add((measurement.tokens, measurement.metric))
            new.append(measurement)
    if new:
        connection.execute(insert(measurements), [{"run_id": run_id, **asdict(measurement)} for measurement in new])
    return new

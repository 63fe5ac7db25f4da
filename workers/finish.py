"""``python -m workers.finish SPEC --teacher DIR --data-root DIR --tokens N --out DIR``: train a spec's student.

Without a server: the same preparation, the same engine and the same measurements as a search's, for the one
candidate that the spec describes. Beside `out` lies ``out.run`` while it trains, with everything that the run is gone
on with when the command is given again: whatever ended it, it continues from its last rung, bit for bit. A line for
each rung is the learning curve, live.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from search.artifacts import FsspecArtifactStore
from search.correction import Correction
from search.counting import non_embedding_parameters
from search.errors import EspalierError, InvalidInput, UnusableTeacher
from search.finishing import FinishRequest, finishing_request
from search.planning import plan
from search.ports import EvaluationTask
from search.records import (
    CandidateRecord,
    Continuation,
    JobState,
    Measurement,
    PartialRun,
    Preparation,
    Progress,
    RunResult,
    RunState,
    SearchRecord,
)
from search.request import BudgetRequest, SearchRequest, StrategyRequest, TeacherRequest
from search.serialization import canonical_json, from_json, to_json
from search.spec import Spec, SpecTeacher, build_spec
from workers.apply import read_spec
from workers.compress.device import usable_device
from workers.compress.pipeline import Measured, evaluate
from workers.compress.preparation import prepare
from workers.compress.workbench import Workbench
from workers.export import WEIGHTS, build_checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How far a run is: what ``out.run/state.json`` holds."""

    #: SHA-256 of spec and recipe: another run's state is not gone on with.
    inputs: str
    preparation: Preparation | None = None
    partial: PartialRun | None = None
    measurements: tuple[Measurement, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finishing run on this machine.

    Args:
        spec: what is trained.
        recipe: how.
        teacher: its Hugging Face directory.
        start_from: that of what the student was cut from, where the spec says that this is another model.
        corrected: the file of the corrected teacher's weights, where the spec names one.
        data_roots: folders that the recipe's texts are named below.
        out: the Hugging Face directory to make.
        checkpoint: the candidate's exported directory, to begin with; None: it is cut from the teacher again.
        device: torch's name of the device.
        tell: called with a line for each step of the way.
    """

    spec: Spec
    recipe: FinishRequest
    teacher: Path
    data_roots: Sequence[Path]
    out: Path
    checkpoint: Path | None = None
    start_from: Path | None = None
    corrected: Path | None = None
    device: str = "cpu"
    tell: Callable[[str], None] = field(default=print)

    @property
    def folder(self) -> Path:
        """Where the run is kept until it has ended."""
        return self.out.with_name(f"{self.out.name}.run")

    @property
    def artifacts(self) -> FsspecArtifactStore:
        """The run's own."""
        return FsspecArtifactStore(str(self.folder / "artifacts"), cache_dir=self.folder / "cache")

    def finish(self) -> None:
        """Train to the end, from where an earlier call was stopped; then `out` is there and the run's folder is gone.

        Raises:
            InvalidInput: `out` exists, the folder holds another run, the checkpoint is not the spec's, or one of what
                a submission may be refused for.
            CandidateFailed: it diverged or does not fit into memory.
        """
        if self.out.exists() or self.out.is_symlink():
            raise InvalidInput(expected="a directory that does not exist yet", got=str(self.out), where=("out",))
        self._check_given("start_from", self.start_from, self.spec.start_from)
        self._check_given("corrected_teacher", self.corrected, self.spec.teacher.correction)
        state = self._state()
        if self.spec.teacher.dtype is None:
            self.tell("The spec does not say what its teacher was asked to compute in: taking the default, auto.")
        search = self._search()
        if state.preparation is None:
            self.tell("Preparing: reading the teacher, packing the text.")
            preparation = prepare(
                search,
                model_roots=self._model_roots,
                data_roots=self.data_roots,
                artifacts=self.artifacts,
                device=self.device,
            )
            _check_model("teacher", self.spec.teacher, preparation.teacher_digest)
            _check_model("start_from", self.spec.start_from, preparation.origin_digest)
            state = self._save(replace(state, preparation=preparation))
        search = replace(search, preparation=state.preparation)
        result, state = self._train(search, state)
        self._judge(state)
        self._write(search, result, state)
        shutil.rmtree(self.folder)

    @property
    def _model_roots(self) -> list[Path]:
        return [_whole(path).parent for path in (self.teacher, self.start_from) if path is not None]

    # --- what is run

    def _check_given(self, option: str, given: Path | None, named: object) -> None:
        """What the spec names is given, and nothing else."""
        if (given is None) != (named is None):
            raise InvalidInput(
                expected=f"{'no ' if named is None else ''}--{option.replace('_', '-')}, as the spec names "
                f"{'none' if named is None else 'one'}",
                got=given and str(given),
                where=(option,),
            )

    def _search(self) -> SearchRecord:
        """The search of one candidate that this is, as a server would store it."""
        recipe = self.spec.recipe
        searched = SearchRequest(
            teacher=model_request(self.teacher, self.spec.teacher),
            start_from=model_request(self.start_from, self.spec.start_from)
            if self.start_from and self.spec.start_from
            else None,
            budgets=(BudgetRequest(params=self.spec.parameters),),
            data=recipe.data,
            distillation=recipe.distillation,
            strategy=StrategyRequest(seed=recipe.seed),
        )
        request = finishing_request(searched, self.spec.architecture, self.recipe)
        new = plan(request, model_roots=self._model_roots, data_roots=self.data_roots).new_search
        return SearchRecord(
            id=self.spec.search_id,
            state=JobState.RUNNING,
            request=request,
            teacher=new.teacher,
            origin=new.origin,
            budgets=new.budgets,
            progress=Progress(planned=1),
            created_at=datetime.now(UTC),
            continues=Continuation(
                candidate_id=self.spec.candidate_id,
                selection_artifact=self.artifacts.put_bytes(canonical_json(self.spec.selection).encode()),
                checkpoint_artifact=self._distilled(),
                correction=self._correction(),
            ),
        )

    def _distilled(self) -> str | None:
        """The artifact of the weights that the brief distillation ended with, if the run begins with them."""
        if self.checkpoint is None:
            return None
        weights = self.checkpoint / WEIGHTS
        if not weights.is_file():
            raise InvalidInput(
                expected=f"an exported checkpoint, with {WEIGHTS}", got=str(self.checkpoint), where=("checkpoint",)
            )
        wanted, fetch = self.spec.checkpoint_artifact, f"espalier export {self.spec.candidate_id}"
        return self._take(weights, wanted, where="checkpoint", fetch=fetch)

    def _correction(self) -> Correction | None:
        """What the spec says of the corrected teacher, once its weights are among the artifacts."""
        correction = self.spec.teacher.correction
        if self.corrected is not None and correction is not None:
            fetch = f"espalier corrected-teacher {self.spec.search_id}"
            self._take(self.corrected, correction.artifact, where="corrected_teacher", fetch=fetch)
        return correction

    def _take(self, file: Path, wanted: str, *, where: str, fetch: str) -> str:
        """Store a file whose digest the spec knows."""
        digest = self.artifacts.put_file(file)
        if digest != wanted:
            raise InvalidInput(
                expected=f"the spec's own weights, whose SHA-256 is {wanted}",
                got=digest,
                where=(where,),
                hint=f"`{fetch}` fetches them.",
            )
        return digest

    # --- the run

    def _train(self, search: SearchRecord, state: State) -> tuple[RunResult, State]:
        bench = Workbench.load(search, model_roots=self._model_roots, artifacts=self.artifacts, device=self.device)
        task = EvaluationTask(
            search=search,
            candidate_id=self.spec.candidate_id,
            run_id="run",
            architecture=self.spec.architecture,
            parameters=self.spec.parameters,
            seed=self.spec.recipe.seed,
            partial=state.partial,
        )
        for news in evaluate(bench, task):
            if isinstance(news, RunResult):
                return news, state
            state = self._note(news, state)
        raise AssertionError("an evaluation ends with its result")

    def _note(self, news: Measured, state: State) -> State:
        """Write down a rung; the file of the one before is not needed any more."""
        before = state.partial
        partial = news.partial or before
        state = self._save(replace(state, partial=partial, measurements=state.measurements + news.measurements))
        if before is not None and before != partial:
            self.artifacts.delete(before.artifact)
        values = {m.metric: m.value for m in news.measurements}
        line = f"{news.measurements[0].tokens:>15,} tokens: validation loss {values['validation_loss']:.4f}"
        self.tell(f"{line}, KL {values['validation_kl']:.4f}")
        return state

    def _judge(self, state: State) -> None:
        """Say so where the student ends worse than it began."""
        values = {(m.metric, m.tokens): m.value for m in state.measurements}
        losses = {tokens: value for (metric, tokens), value in values.items() if metric == "validation_loss"}
        first, last = losses[min(losses)], losses[max(losses)]
        if last > first + values.get(("validation_loss_stderr", max(losses)), 0.0):
            self.tell(
                f"Finishing made it worse: validation loss {first:.4f} before, {last:.4f} after. A lower learning rate "
                "usually helps; what it began with is still where it was."
            )

    def _write(self, search: SearchRecord, result: RunResult, state: State) -> None:
        """Make `out`, whole or not at all."""
        candidate = CandidateRecord(
            id=self.spec.candidate_id,
            search_id=search.id,
            number=0,
            budget_index=0,
            architecture=self.spec.architecture,
            parameters=self.spec.parameters,
            non_embedding_parameters=non_embedding_parameters(self.spec.architecture),
            run_id="run",
            seed=self.spec.recipe.seed,
            state=RunState.COMPLETED,
            attempts=1,
            created_at=search.created_at,
            result=result,
            measurements=state.measurements,
        )
        made = self.folder / "checkpoint"
        shutil.rmtree(made, ignore_errors=True)
        build_checkpoint(search, candidate, model_roots=self._model_roots, artifacts=self.artifacts, out=made)
        spec = self._named_as_before(build_spec(search, candidate, self.artifacts))
        (made / "spec.json").write_text(json.dumps(to_json(spec), indent=2) + "\n", encoding="utf-8")
        made.rename(self.out)

    def _named_as_before(self, spec: Spec) -> Spec:
        """Models as the search named them, not by their paths here; the budget that the candidate was proposed for."""
        origin = self.spec.start_from
        return replace(
            spec,
            budget=self.spec.budget,
            teacher=replace(spec.teacher, model=self.spec.teacher.model),
            start_from=replace(spec.start_from, model=origin.model) if spec.start_from and origin else None,
        )

    # --- its state

    def _state(self) -> State:
        """What an earlier call left in the run's folder, else a new one."""
        about = [canonical_json(self.spec), canonical_json(self.recipe), self.checkpoint is not None]
        inputs = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        path = self.folder / "state.json"
        if not path.is_file():
            self.folder.mkdir(parents=False, exist_ok=True)
            return State(inputs=inputs)
        state = from_json(State, json.loads(path.read_text(encoding="utf-8")))
        if state.inputs != inputs:
            raise InvalidInput(
                expected=f"the spec and the recipe that {self.folder} was begun with",
                got="others",
                where=("out",),
                hint="Give them again to go on, or remove that folder to begin anew.",
            )
        if state.partial is None:
            return replace(state, measurements=())
        self.tell(f"Going on after {state.partial.tokens:,} tokens.")
        done = tuple(m for m in state.measurements if m.tokens <= state.partial.tokens)
        return replace(state, measurements=done)

    def _save(self, state: State) -> State:
        path = self.folder / "state.json"
        written = path.with_suffix(".new")
        with written.open("w", encoding="utf-8") as file:
            json.dump(to_json(state), file)
            file.flush()
            os.fsync(file.fileno())
        written.rename(path)
        return state


def _whole(path: Path) -> Path:
    return path.expanduser().resolve()


def model_request(path: Path, model: SpecTeacher) -> TeacherRequest:
    """The request that the search named a model by, with its whole path, which lies below one of the roots."""
    return TeacherRequest(
        model=str(_whole(path)),
        ignore_attributes=model.ignored_attributes,
        dtype=model.dtype or "auto",
        tokenizer=model.tokenizer,
    )


def _check_model(where: str, wanted: SpecTeacher | None, found: str | None) -> None:
    if wanted is not None and found != wanted.digest:
        raise UnusableTeacher(
            expected=f"the spec's model {wanted.model!r}, whose digest is {wanted.digest}",
            got=found,
            where=(where,),
            hint="Its config or weights differ from what was searched.",
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0, 2 with a message on stderr where the input cannot work, 130 where it was interrupted."""
    parser = argparse.ArgumentParser(prog="espalier finish", description="Train a spec's student by its full recipe.")
    parser.add_argument("spec", type=Path, help="the spec's JSON file")
    parser.add_argument("--teacher", type=Path, required=True, help="the teacher's Hugging Face directory")
    parser.add_argument("--data-root", type=Path, action="append", required=True, help="folder of the recipe's texts")
    parser.add_argument("--tokens", type=int, required=True, help="tokens to train on")
    parser.add_argument("--out", type=Path, required=True, help="the directory to make; must not exist")
    parser.add_argument("--checkpoint", type=Path, help="the candidate's exported directory, to begin with")
    parser.add_argument("--start-from", type=Path, help="the directory that the spec's student was cut from")
    parser.add_argument("--corrected-teacher", type=Path, help="file of the corrected teacher that the spec names")
    parser.add_argument("--learning-rate", type=float, help="the peak; by default the brief run's")
    parser.add_argument("--rungs", type=int, default=20, help="how often to measure and to keep the run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    try:
        recipe = FinishRequest(
            tokens=options.tokens,
            learning_rate=options.learning_rate,
            rungs=options.rungs,
            start="distilled" if options.checkpoint else "pruned",
        )
        spec = read_spec(options.spec)
        paths = {name: getattr(options, name) for name in ("teacher", "out", "checkpoint", "start_from")}
        paths["corrected"] = options.corrected_teacher
        device = usable_device(options.device)
        Run(spec=spec, recipe=recipe, data_roots=options.data_root, device=device, **paths).finish()
    except (EspalierError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from the last rung.", file=sys.stderr)
        return 130
    print(f"{options.out}: {spec.parameters:,} parameters, trained on {options.tokens:,} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())

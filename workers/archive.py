"""An export's artifact: a tar of a Hugging Face directory's files, the candidate's, with its spec among them."""

import json
import tarfile

from search.records import CandidateRecord, SearchRecord
from search.serialization import to_json
from search.spec import build_spec
from workers.evaluation import Sources
from workers.export import build_checkpoint


def build_archive(search: SearchRecord, candidate: CandidateRecord, sources: Sources) -> str:
    """Build and store it; its digest. The same candidate gives the same bytes."""
    with sources.artifacts.scratch() as folder:
        checkpoint = folder / candidate.id
        build_checkpoint(
            search, candidate, model_roots=sources.model_roots, artifacts=sources.artifacts, out=checkpoint
        )
        spec = to_json(build_spec(search, candidate, sources.artifacts))
        (checkpoint / "spec.json").write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")
        archive = folder / "checkpoint.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(checkpoint, arcname=".", filter=_impersonal)
        return sources.artifacts.put_file(archive)


def _impersonal(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without who wrote it and when."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    member.mode = 0o755 if member.isdir() else 0o644
    return member

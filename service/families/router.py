"""``/v1/families``: which models can be pruned, and along which axes."""

from dataclasses import dataclass

from fastapi import APIRouter

from search.families import FAMILIES
from search.families.base import AxisDescription
from service.errors import problems

router = APIRouter(prefix="/v1/families", tags=["families"])


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyDescription:
    """A supported model family."""

    model_type: str
    axes: tuple[AxisDescription, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyList:
    """All of them."""

    items: tuple[FamilyDescription, ...]


@router.get("", responses=problems(401))
def list_families() -> FamilyList:
    """The supported model families and their axes."""
    return FamilyList(
        items=tuple(
            FamilyDescription(model_type=model_type, axes=family.axes) for model_type, family in FAMILIES.items()
        )
    )

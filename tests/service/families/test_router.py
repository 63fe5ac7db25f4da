from fastapi.testclient import TestClient

from search.architecture import AXES
from search.families import FAMILIES


def test_every_family_is_listed_with_every_axis_that_a_search_may_vary(client: TestClient) -> None:
    families = {family["model_type"]: family["axes"] for family in client.get("/v1/families").json()["items"]}
    assert families.keys() == FAMILIES.keys()
    for axes in families.values():
        assert {axis["name"] for axis in axes if axis["prunable"]} <= set(AXES)
        assert all(axis["description"] for axis in axes)

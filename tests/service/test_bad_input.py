"""Every bad input has an answer that says what was expected, what came, and where."""

import json
import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search.request import SearchRequest
from search.serialization import adapter
from service.cursors import encode_cursor
from service.searches.schemas import SORT_COLUMNS
from tests.support.files import CONFIG, tensors_of, write_index, write_model, write_safetensors
from tests.support.service import BODY, DriverHand, check_problem

Json = dict[str, Any]


def refuse(client: TestClient, kind: str, location: str, **changes: Any) -> Json:
    """Submit a changed body; the one error of the answer. Previews must refuse it in the same words."""
    response = client.post("/v1/searches", json=BODY | changes)
    problem = check_problem(response.status_code, response.headers, response.json())
    assert problem["status"] == 422
    assert problem["type"] == f"urn:espalier:{kind}"
    assert problem["instance"] == "/v1/searches"
    assert [error["location"] for error in problem["errors"]] == [location]
    assert client.get("/v1/searches").json()["items"] == []
    previewed = client.post("/v1/searches/preview", json=BODY | changes).json()
    assert previewed | {"instance": "/v1/searches"} == problem
    error: Json = problem["errors"][0]
    return error


# --- teachers


def test_an_unknown_teacher(client: TestClient) -> None:
    error = refuse(client, "source-not-found", "teacher.model", teacher={"model": "smal"})
    assert error["got"] == "smal"
    assert error["hint"] == "The server offers: small."


@pytest.mark.parametrize("model", ["../small", "/etc", "small/../../x", "a\0b"])
def test_a_teacher_outside_the_roots(model: str, client: TestClient) -> None:
    if "\0" in model:
        refuse(client, "invalid-request", "teacher.model", teacher={"model": model})
    else:
        refuse(client, "forbidden-source", "teacher.model", teacher={"model": model})


def test_a_teacher_through_a_link(client: TestClient, own_roots: Path, shared_roots: Path) -> None:
    (own_roots / "models" / "alias").symlink_to(shared_roots / "models" / "small")
    error = refuse(client, "forbidden-source", "teacher.model", teacher={"model": "alias"})
    assert "'alias' is a link" in error["hint"]


def test_a_teacher_with_pickled_weights_only(client: TestClient, own_roots: Path) -> None:
    write_model(own_roots / "models" / "pickled", weights="pytorch_model.bin")
    error = refuse(client, "forbidden-source", "teacher.model", teacher={"model": "pickled"})
    assert error["expected"] == "weights as safetensors only"
    assert error["files"] == ["pytorch_model.bin"]


def test_a_teacher_with_missing_shards(client: TestClient, own_roots: Path) -> None:
    write_index(write_model(own_roots / "models" / "torn", weights=None), "model-00001-of-00001.safetensors")
    error = refuse(client, "unusable-teacher", "teacher.model", teacher={"model": "torn"})
    assert error["missing"] == ["model-00001-of-00001.safetensors"]


def test_a_teacher_with_a_truncated_file(client: TestClient, own_roots: Path) -> None:
    weights = write_model(own_roots / "models" / "short") / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    error = refuse(client, "unusable-teacher", "teacher.model", teacher={"model": "short"})
    assert error["got"] == "model.safetensors"
    assert "Copy it again" in error["hint"]


def test_a_teacher_whose_weights_are_another_models(client: TestClient, own_roots: Path) -> None:
    path = write_model(own_roots / "models" / "other")
    write_safetensors(path / "model.safetensors", tensors_of(CONFIG | {"vocab_size": 300}))
    error = refuse(client, "unusable-teacher", "teacher.model", teacher={"model": "other"})
    assert error["got"].startswith("a vocabulary of 300 rows in lm_head.weight, model.embed_tokens.weight")
    assert "set vocab_size to 300" in error["hint"]


def test_a_teacher_in_eight_bits(client: TestClient, own_roots: Path) -> None:
    path = write_model(own_roots / "models" / "fp8")
    write_safetensors(path / "model.safetensors", tensors_of(CONFIG, dtype="F8_E4M3"))
    error = refuse(client, "unusable-teacher", "teacher.model", teacher={"model": "fp8"})
    assert error["got"].startswith("weights in F8_E4M3: lm_head.weight")


def test_a_teacher_that_is_an_adapter(client: TestClient, own_roots: Path) -> None:
    path = write_model(own_roots / "models" / "lora", weights="adapter_model.safetensors")
    (path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    error = refuse(client, "unusable-teacher", "teacher.model", teacher={"model": "lora"})
    assert error["got"] == "an adapter (adapter_config.json) to 'org/base'"


def test_a_tokenizer_with_code_of_its_own(client: TestClient, own_roots: Path) -> None:
    path = write_model(own_roots / "models" / "clever")
    (path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["tokenization.Mine", null]}}')
    error = refuse(client, "forbidden-source", "teacher.model", teacher={"model": "clever"})
    assert error["got"] == {"AutoTokenizer": ["tokenization.Mine", None]}


def test_a_family_that_is_not_supported(client: TestClient, own_roots: Path) -> None:
    write_model(own_roots / "models" / "gpt", model_type="mamba")
    error = refuse(client, "unsupported-family", "teacher.config.model_type", teacher={"model": "gpt"})
    assert "llama" in error["expected"]
    assert error["got"] == "mamba"


def test_a_config_attribute_that_the_family_does_not_understand(client: TestClient, own_roots: Path) -> None:
    write_model(own_roots / "models" / "odd", num_local_experts=8)
    error = refuse(client, "unknown-attribute", "teacher.config.num_local_experts", teacher={"model": "odd"})
    assert error["got"] == {"num_local_experts": 8}
    assert "ignore_attributes" in error["hint"]


def test_several_such_attributes_are_named_at_once(client: TestClient, own_roots: Path) -> None:
    write_model(own_roots / "models" / "odd", num_local_experts=8, sliding_window=64)
    error = refuse(client, "unknown-attribute", "teacher.config", teacher={"model": "odd"})
    assert error["got"] == {"num_local_experts": 8, "sliding_window": 64}


def test_a_depth_beyond_reason(client: TestClient, own_roots: Path) -> None:
    write_model(own_roots / "models" / "deep")
    config = json.loads((own_roots / "models" / "deep" / "config.json").read_text())
    (own_roots / "models" / "deep" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))
    error = refuse(client, "illegal-architecture", "teacher.config.num_hidden_layers", teacher={"model": "deep"})
    assert error["got"] == 10**9


def test_a_config_that_contradicts_itself(client: TestClient, own_roots: Path) -> None:
    write_model(own_roots / "models" / "bent", num_attention_heads=6)
    refuse(client, "illegal-architecture", "teacher.config.num_attention_heads", teacher={"model": "bent"})


# --- budgets


def test_a_budget_that_no_architecture_reaches(client: TestClient) -> None:
    error = refuse(client, "budget-unreachable", "budgets[1]", budgets=[{"ratio": 0.5}, {"params": 10}])
    assert error["got"]["params"] == 10
    assert 10 < error["smallest"] < error["largest"]
    assert error["nearest"]["above"]["parameters"] == error["smallest"]
    assert error["nearest"]["above"]["axes"]["num_hidden_layers"] >= 1


def test_a_budget_above_the_teacher(client: TestClient) -> None:
    refuse(client, "invalid-request", "budgets[0].params", budgets=[{"params": 10**12}])


@pytest.mark.parametrize("tolerance", [0, -0.1, 1, 1.5])
def test_a_tolerance_that_is_no_fraction(tolerance: float, client: TestClient) -> None:
    error = refuse(client, "invalid-request", "budgets[0].tolerance", budgets=[{"ratio": 0.5, "tolerance": tolerance}])
    assert error["expected"] == f"{'more than 0' if tolerance <= 0 else 'less than 1'} or an object"


def test_a_tolerance_in_its_full_form_that_is_no_fraction(client: TestClient) -> None:
    budgets = [{"ratio": 0.5, "tolerance": {"below": 0, "above": 0.1}}]
    refuse(client, "invalid-request", "budgets[0].tolerance.below", budgets=budgets)


@pytest.mark.parametrize("ratio", [0, -1, 1.01])
def test_a_ratio_that_is_none(ratio: float, client: TestClient) -> None:
    refuse(client, "invalid-request", "budgets[0].ratio", budgets=[{"ratio": ratio}])


def test_both_params_and_ratio(client: TestClient) -> None:
    refuse(client, "invalid-request", "budgets[0].params", budgets=[{"ratio": 0.5, "params": 1000}])


def test_no_budget_at_all(client: TestClient) -> None:
    refuse(client, "invalid-request", "budgets", budgets=[])


# --- axes


def test_an_axis_value_above_the_teachers(client: TestClient) -> None:
    error = refuse(client, "invalid-request", "space.hidden_size", space={"hidden_size": [24, 96]})
    assert error["got"] == 96
    assert "48" in error["expected"]


def test_an_axis_value_that_attention_cannot_have(client: TestClient) -> None:
    space = {"num_attention_heads": [3], "num_key_value_heads": [2]}
    error = refuse(client, "invalid-request", "space.num_key_value_heads", space=space)
    assert "multiple" in error["expected"]


def test_a_hidden_size_that_the_heads_do_not_divide(client: TestClient) -> None:
    space = {"hidden_size": [26], "num_attention_heads": [4]}
    error = refuse(client, "invalid-request", "space.num_attention_heads", space=space)
    assert "no multiple of num_attention_heads" in error["hint"]


def test_a_range_of_more_values_than_any_machine_holds(client: TestClient) -> None:
    refuse(client, "invalid-request", "space.hidden_size", space={"hidden_size": {"min": 1, "max": 2**31 - 1}})


def test_an_axis_value_that_is_no_number(client: TestClient) -> None:
    error = refuse(client, "invalid-request", "space.hidden_size[1]", space={"hidden_size": [24, "wide"]})
    assert error["got"] == "wide"


# --- text


def test_a_text_too_short_for_the_tokens_asked(client: TestClient, own_roots: Path) -> None:
    (own_roots / "data" / "short.txt").write_text("Once upon a time.")
    error = refuse(client, "insufficient-text", "data.train", data=BODY["data"] | {"train": "short.txt"})
    assert error["bytes"] == 17
    assert error["tokens_needed"] == 384


def test_an_unknown_text(client: TestClient) -> None:
    error = refuse(client, "source-not-found", "data.train", data=BODY["data"] | {"train": "story"})
    assert error["hint"] == "The server offers: stories."


def test_a_text_of_the_hub(client: TestClient) -> None:
    error = refuse(client, "forbidden-source", "data.train", data=BODY["data"] | {"train": "hf://datasets/owner/name"})
    assert "ESPALIER_ALLOW_HUB" in error["hint"]


@pytest.mark.parametrize(
    ("part", "kind", "location"),
    [
        ({"path": "stories.txt", "weight": -1}, "invalid-request", "data.train[1].weight"),
        ({"path": "absent"}, "source-not-found", "data.train[1].path"),
    ],
)
def test_a_part_of_a_blend(part: Json, kind: str, location: str, client: TestClient) -> None:
    blend = [{"path": BODY["data"]["train"]}, part]
    refuse(client, kind, location, data=BODY["data"] | {"train": blend})


def test_a_text_outside_the_roots(client: TestClient) -> None:
    refuse(client, "forbidden-source", "data.train", data=BODY["data"] | {"train": "../models/small/config.json"})


def test_a_sequence_longer_than_the_teacher_reads(client: TestClient) -> None:
    refuse(
        client,
        "invalid-request",
        "data.sequence_length",
        data=BODY["data"] | {"sequence_length": 1024},
        distillation={"tokens": 1024, "batch_tokens": 1024},
    )


# --- the body


def test_an_unknown_field_is_named_with_the_one_that_was_meant(client: TestClient) -> None:
    error = refuse(client, "invalid-request", "bugdets", bugdets=[])
    assert error["hint"] == "Did you mean 'budgets'?"


def test_an_unknown_field_deep_inside(client: TestClient) -> None:
    budgets = [{"ratio": 0.5}, {"ratio": 0.5, "tolerence": 0.1}]
    error = refuse(client, "invalid-request", "budgets[1].tolerence", budgets=budgets)
    assert error["hint"] == "Did you mean 'tolerance'?"


def test_missing_fields_are_all_named(client: TestClient) -> None:
    response = client.post("/v1/searches", json={})
    problem = check_problem(response.status_code, response.headers, response.json())
    assert [error["location"] for error in problem["errors"]] == ["teacher", "budgets", "data"]


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 422), (b"", 422), (b"[]", 422), (b'"x"', 422), (b"\xff\xfe", 422), (b"[" * 100_000, 400)],
)
def test_a_body_that_is_no_json_object(body: bytes, status: int, client: TestClient) -> None:
    response = client.post("/v1/searches", content=body, headers={"Content-Type": "application/json"})
    problem = check_problem(response.status_code, response.headers, response.json())
    assert problem["status"] == status


def test_a_body_without_end(client: TestClient) -> None:
    response = client.post("/v1/searches", content=b" " * 2_000_000, headers={"Content-Type": "application/json"})
    assert check_problem(response.status_code, response.headers, response.json())["status"] == 413


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have(value: str, client: TestClient) -> None:
    body = json.dumps(BODY).replace('"ratio": 0.5', f'"ratio": {value}')
    assert value in body
    response = client.post("/v1/searches", content=body, headers={"Content-Type": "application/json"})
    problem = check_problem(response.status_code, response.headers, response.json())
    assert problem["errors"][0]["location"] == "budgets[0].ratio"


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_text_that_no_database_holds(name: str, client: TestClient) -> None:
    cases: dict[str, Json] = {"name": {"name": name}, "tags[1]": {"tags": ["x", name]}}
    for place, changes in cases.items():
        body = json.dumps(BODY | changes)
        response = client.post("/v1/searches", content=body, headers={"Content-Type": "application/json"})
        problem = check_problem(response.status_code, response.headers, response.json())
        assert problem["errors"][0]["location"] == place


def test_a_long_value_is_quoted_in_part(client: TestClient) -> None:
    error = refuse(client, "invalid-request", "strategy.kind", strategy={"kind": "x" * 100_000})
    assert len(error["got"]) < 1_000


@pytest.mark.parametrize("seed", [-1, 2**31, 10**30])
def test_a_seed_that_the_database_cannot_hold(seed: int, client: TestClient) -> None:
    refuse(client, "invalid-request", "strategy.seed", strategy={"seed": seed})


# --- anything at all


FULL: Json = BODY | {
    "name": "x",
    "tags": ["x"],
    "teacher": {"model": "small", "ignore_attributes": ["x"]},
    "budgets": [{"params": 60_000, "tolerance": {"below": 0.1, "above": 0.1}, "basis": "non_embedding"}],
    "space": {"hidden_size": {"min": 8, "max": 48, "multiple_of": 8}, "num_hidden_layers": [2, 3]},
    "limits": {"max_parallel": 2},
}

json_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 2**31, 2**63, 10**400])
    | st.floats()
    | st.text(max_size=20)
)
json_values = st.recursive(
    json_leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


def places(value: Any, where: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path to every value below `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield (*where, name)
        yield from places(item, (*where, name))


@given(changes=st.lists(st.tuples(st.sampled_from(list(places(FULL))), json_values), min_size=1, max_size=2))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_field_holds_is_taken_or_refused_in_words(
    changes: list[tuple[tuple[str | int, ...], Any]], client: TestClient
) -> None:
    body = deepcopy(FULL)
    for where, value in changes:
        inner: Any = body
        try:
            for part in where[:-1]:
                inner = inner[part]
            inner[where[-1]] = value
        except (TypeError, KeyError, IndexError):  # the first change took the place away
            pass
    response = client.post(
        "/v1/searches/preview", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    if response.status_code != 200:
        assert response.status_code == 422, response.text
        problem = check_problem(response.status_code, response.headers, response.json())
        assert problem["errors"]


# --- calls


@pytest.mark.parametrize(
    "path",
    [
        "/v1/searches/s-absent",
        "/v1/searches/s-absent/events",
        "/v1/searches/s-absent/leaderboard",
        "/v1/searches/s-absent/best",
        "/v1/searches/a%00b",
        "/v1/searches/%ff",
        "/v1/candidates/c-absent",
        "/v1/candidates/c-absent/spec",
        "/v1/candidates/c-absent/curve",
        "/v1/candidates/c-absent/export",
        "/v1/candidates/c-absent/checkpoint",
        "/v1/candidates/a%00b",
        "/v1/nothing",
    ],
)
def test_what_does_not_exist(path: str, client: TestClient) -> None:
    response = client.get(path)
    assert check_problem(response.status_code, response.headers, response.json())["status"] == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "s-absent"), ("POST", "s-absent/cancel"), ("POST", "../candidates/c-absent/export")],
)
def test_acting_on_what_does_not_exist(method: str, path: str, client: TestClient) -> None:
    response = client.request(method, f"/v1/searches/{path}")
    assert check_problem(response.status_code, response.headers, response.json())["status"] == 404


def test_cancelling_a_finished_search(client: TestClient, hand: DriverHand) -> None:
    search_id = client.post("/v1/searches", json=BODY).json()["id"]
    hand.whole_search({0: [2.0]})
    response = client.post(f"/v1/searches/{search_id}/cancel")
    problem = check_problem(response.status_code, response.headers, response.json())
    assert problem["status"] == 409
    assert problem["type"] == "urn:espalier:illegal-transition"
    assert problem["state"] == "completed"
    assert problem["legal"] == ["queued", "running", "cancelling"]


def test_a_method_that_a_path_does_not_have(client: TestClient) -> None:
    response = client.put("/v1/searches")
    assert check_problem(response.status_code, response.headers, response.json())["status"] == 405
    assert response.headers["allow"] == "GET, POST"
    for path, allowed in (
        ("/v1/searches/s-1", "DELETE, GET"),
        ("/v1/searches/preview", "DELETE, GET, POST"),  # any word may be an id
        ("/v1/candidates/c-1/checkpoint", "GET, HEAD"),
        ("/v1/candidates/c-1/export", "GET, POST"),
        ("/docs", "GET"),
    ):
        response = client.put(path)
        assert (response.status_code, response.headers["allow"]) == (405, allowed), path


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "text/plain"])
def test_a_body_that_is_not_said_to_be_json(content_type: str | None, client: TestClient) -> None:
    """What curl sends with -d alone."""
    headers = {"Content-Type": content_type} if content_type else {}
    response = client.post("/v1/searches", content=json.dumps(BODY), headers=headers)
    problem = check_problem(response.status_code, response.headers, response.json())
    assert problem["status"] == 422
    assert [error["location"] for error in problem["errors"]] == ["header.content-type"]
    assert "Content-Type: application/json" in problem["detail"]


def test_a_column_that_is_none_is_told_which_there_are(client: TestClient) -> None:
    search_id = client.post("/v1/searches", json=BODY).json()["id"]
    answer = client.get(f"/v1/searches/{search_id}/leaderboard", params={"sort": "nope"})
    for name in (*SORT_COLUMNS, "task/…"):
        assert name in answer.json()["errors"][0]["expected"]


@pytest.mark.parametrize(
    ("query", "location"),
    [
        ("limit=0", "query.limit"),
        ("limit=1000", "query.limit"),
        ("state=done", "query.state"),
        ("cursor=x", "query.cursor"),
        ("cursor=%00", "query.cursor"),
        ("cursor=W251bGwsbnVsbF0", "query.cursor"),
        ("tag=%00", "query.tag"),
    ],
)
def test_a_query_that_cannot_be(query: str, location: str, client: TestClient) -> None:
    response = client.get(f"/v1/searches?{query}")
    problem = check_problem(response.status_code, response.headers, response.json())
    assert problem["status"] == 422
    assert [error["location"] for error in problem["errors"]] == [location]


POSITIONS = st.lists(json_leaves | st.sampled_from(["0001-01-01T00:00:00+14:00", "2026-11-30T00:00:00Z", "s-1"]))


@given(position=POSITIONS | json_values)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_page_behind_whatever_a_cursor_says_is_shown_or_refused_in_words(position: Any, client: TestClient) -> None:
    """Cursors are not secret: anybody can make one that names the right query."""
    search_id = client.get("/v1/searches").json()["items"]
    search_id = search_id[0]["id"] if search_id else client.post("/v1/searches", json=BODY).json()["id"]
    board = ["leaderboard", search_id, None, "rank", "asc", None, False]
    for path, query in (("/v1/searches", ["searches", None, None]), (f"/v1/searches/{search_id}/leaderboard", board)):
        response = client.get(path, params={"cursor": encode_cursor(query, position)})
        if response.status_code != 200:
            problem = check_problem(response.status_code, response.headers, response.json())
            assert [error["location"] for error in problem["errors"]] == ["query.cursor"]


@pytest.mark.parametrize(
    "query", ["budget=2", "budget=-1", "sort=name", "sort=task/", "order=up", "state=done", "limit=0"]
)
def test_a_leaderboard_that_cannot_be(query: str, client: TestClient) -> None:
    search_id = client.post("/v1/searches", json=BODY).json()["id"]
    response = client.get(f"/v1/searches/{search_id}/leaderboard?{query}")
    problem = check_problem(response.status_code, response.headers, response.json())
    assert problem["errors"][0]["location"] == f"query.{query.partition('=')[0]}"


@pytest.mark.parametrize("event_id", ["x", "-1", str(10**30)])
def test_a_last_event_that_is_none(event_id: str, client: TestClient) -> None:
    search_id = client.post("/v1/searches", json=BODY).json()["id"]
    response = client.get(f"/v1/searches/{search_id}/events", headers={"Last-Event-ID": event_id})
    problem = check_problem(response.status_code, response.headers, response.json())
    assert problem["errors"][0]["location"] == "header.last-event-id"


# --- numbers and lists


def ends() -> Iterator[tuple[str, Any]]:
    """Every number of a request at both of its ends, as far as other fields let it go there."""
    document = adapter(SearchRequest).json_schema()
    for section in ("distillation", "data", "strategy", "limits", "importance", "evaluation"):
        name = document["properties"][section]["$ref"].rpartition("/")[2]
        for field, told in document["$defs"][name]["properties"].items():
            for member in told.get("anyOf", [told]):
                if member.get("type") not in ("integer", "number"):
                    continue
                for side, step in (("inimum", 1), ("aximum", -1)):
                    if (end := member.get(f"m{side}")) is None:
                        end = member[f"exclusiveM{side}"] + step * (1e-3 if member["type"] == "number" else 1)
                    yield f"{section}.{field}", end


@pytest.mark.parametrize(("place", "end"), list(ends()))
def test_a_number_at_the_end_of_its_range_is_planned_or_refused_for_what_it_means(
    client: TestClient, place: str, end: float
) -> None:
    section, field = place.split(".")
    body = BODY | {section: BODY.get(section, {}) | {field: end}}
    response = client.post("/v1/searches/preview", json=body)
    if response.status_code != 200:
        assert response.status_code == 422, response.text
        problem = check_problem(response.status_code, response.headers, response.json())
        beyond = ("at least", "at most", "more than", "less than")
        assert not any(
            error["location"] == place and error["expected"] == f"{words} {end:g}"
            for error in problem["errors"]
            for words in beyond
        ), "its own end is inside the range"


@pytest.mark.parametrize(
    ("place", "most", "item"),
    [
        ("budgets", 100, {"ratio": 0.5}),
        ("tags", 100, "a"),
        ("data.train", 256, {"path": "stories"}),
        ("strategy.rungs", 1_000, 1.0),
        ("strategy.objectives", 16, "loss"),
        ("evaluation.tasks", 100, "a"),
        ("evaluation.harness_tasks", 100, "a"),
        ("teacher.ignore_attributes", 1_000, "a"),
        ("space.hidden_size", 100_000, 8),
    ],
)
def test_a_list_that_is_too_long(place: str, most: int, item: Any, client: TestClient) -> None:
    body, (*outer, last) = deepcopy(BODY), place.split(".")
    inner = body
    for part in outer:
        inner = inner.setdefault(part, {})
    inner[last] = [item] * (most + 1)
    response = client.post("/v1/searches/preview", json=body)
    problem = check_problem(response.status_code, response.headers, response.json())
    expected = {error["location"]: error["expected"] for error in problem["errors"]}
    assert f"at most {most} items" in expected[place]


def test_hours_up_to_the_end_of_their_range_are_counted(client: TestClient, hand: DriverHand) -> None:
    body = BODY | {"limits": {"max_hours": 1e300}}
    assert client.post("/v1/searches", json=body).status_code == 422
    assert client.post("/v1/searches", json=BODY | {"limits": {"max_hours": 1e6}}).status_code == 201

"""Ids of examples. An impression's id is unique only within its request, so an example's id holds both."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


def example_prefix(request_id: str) -> str:
    """Return the prefix of the ids of a request's examples.

    The first slash separates the two ids: in the request's, ``/`` becomes ``%2F`` and ``%`` becomes ``%25``, so no two pairs share
    an id.
    """
    if "%" in request_id or "/" in request_id:
        request_id = request_id.replace("%", "%25").replace("/", "%2F")
    return f"{request_id}/"


def example_id(request_id: str, impression_id: str) -> str:
    """Return the id of one example."""
    return example_prefix(request_id) + impression_id


def ids_of(name: str) -> tuple[str, str]:
    """Return the request's and the impression's id of an example."""
    escaped, _, impression_id = name.partition("/")
    return escaped.replace("%2F", "/").replace("%25", "%"), impression_id


def request_ids(example_ids: pa.StringArray) -> pa.StringArray:
    """Return the request id of each example, by its id."""
    escaped = pc.replace_substring_regex(example_ids, "(?s)/.*", "")
    return pc.replace_substring(pc.replace_substring(escaped, "%2F", "/"), "%25", "%")

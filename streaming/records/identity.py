"""What an example is called: an impression's id is unique within its request only, so the name holds both."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


def example_prefix(request_id: str) -> str:
    """What the names of a request's examples begin with.

    The first slash parts the two ids: in the request's it is written ``%2F``, and ``%`` as ``%25``, so no two pairs share a name.
    """
    if "%" in request_id or "/" in request_id:
        request_id = request_id.replace("%", "%25").replace("/", "%2F")
    return f"{request_id}/"


def example_id(request_id: str, impression_id: str) -> str:
    """The name of one example."""
    return example_prefix(request_id) + impression_id


def request_ids(example_ids: pa.StringArray) -> pa.StringArray:
    """The request of each example, by its name."""
    escaped = pc.replace_substring_regex(example_ids, "(?s)/.*", "")
    return pc.replace_substring(pc.replace_substring(escaped, "%2F", "/"), "%25", "%")

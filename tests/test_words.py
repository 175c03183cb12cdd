"""Phrases that readers stumbled over stay out: they are no English idiom, and each has a plain form."""

from __future__ import annotations

import re

import pytest

from tests.commands import ROOT

INSTEAD = {
    r"goes before": "takes precedence over, wins over, comes first",
    r"stands? (there )?twice": "is given twice",
    r"[Ww]ho (reads|gets|slept|asks|asked|publishes|waits)\b": "name the subject: the reader, the new owner, the client",
    r"[Ww]hoever": "name the subject, or: anyone who",
    r"for want of": "because there is no",
    r"of that kind": "such",
    r"\banew\b": "again, from the start, rebuilt",
    r"that (is|are) none\b": "say what it is instead",
    r"is another's": "revoked, owned by another worker",
    r"without a word": "silently",
    r"has taken over; this": "took over; exiting",
    r"keeps? an answer": "delays an answer",
    r"older than all that is known|the one between": "say what is known, and which one",
    r"sends them all the same": "say which are sent",
    r"share decided by": "say the share of what",
    r"\bfor ever\b": "forever, or say until when",
}
# A folder is added when its texts have been gone through.
DONE = ("basis", "benchmarks", "docs", "minutely", "paramserver", "serving", "stack", "streaming", "trainer")
TEXTS = [
    *(path for path in sorted(ROOT.glob("*.md")) if path.name != "CHANGELOG.md"),
    *(path for folder in DONE for path in sorted((ROOT / folder).rglob("*")) if path.suffix in (".py", ".md", ".pyi")),
]


@pytest.mark.parametrize("pattern", INSTEAD)
def test_plain_words(pattern: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in TEXTS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, f"instead of {pattern!r}: {INSTEAD[pattern]}\n" + "\n".join(found)


def test_texts_are_found() -> None:
    assert len(TEXTS) > 100

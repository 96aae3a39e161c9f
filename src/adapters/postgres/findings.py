"""What an examination finds."""

from __future__ import annotations

from enum import StrEnum

from attrs import frozen


class Severity(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    ADVICE = "advice"
    """It works, and could be better, or is right for some and not for others."""
    PROBLEM = "problem"
    """Something does not work, or will not for long."""


@frozen
class Finding:
    """One thing that was looked at."""

    severity: Severity
    about: str
    """What was looked at, in a word or two."""
    what: str
    """What was found. It may hold names of the database and its roles, never a password."""
    remedy: str | None = None
    """What to do about it."""


def ok(about: str, what: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(Severity.OK, about, what)


def advice(about: str, what: str, remedy: str) -> Finding:
    """Return a finding that could be better."""
    return Finding(Severity.ADVICE, about, what, remedy)


def problem(about: str, what: str, remedy: str) -> Finding:
    """Return a finding that has to be mended."""
    return Finding(Severity.PROBLEM, about, what, remedy)

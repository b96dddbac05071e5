"""What a checker found, and how a notebook shows it.

A `Report` is what the check cell of an exercise returns. JupyterLab and the book show its Markdown; the
runner reads the same report as JSON from the stored output (`MIME`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

MIME = "application/vnd.llm-core.report+json"

Status = Literal["passed", "failed", "not started"]

NOT_STARTED = "not_started"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        id: the mistake's name; a wrong solution that makes this mistake has it too.
        message: what is wrong, in a sentence or two.
        hint: the usual reason, and where to look.
        known: whether this is a mistake that the checker recognised, rather than a difference it measured.
        about: the function or value it is about; a report says the same thing about it only once.
    """

    id: str
    message: str
    hint: str = ""
    known: bool = False
    about: str = ""


@dataclass(frozen=True)
class Part:
    """One check of a report, and what it found; without findings it has passed, if it ran at all.

    Attributes:
        name: what was checked.
        findings: what is wrong.
        functions: the learner's functions that it called.
        skipped: whether it was not run, because an earlier check of the same function has failed.
    """

    name: str
    findings: tuple[Finding, ...] = ()
    functions: tuple[str, ...] = ()
    skipped: bool = False

    @property
    def passed(self) -> bool:
        """Whether it ran and nothing was found."""
        return not self.findings and not self.skipped


@dataclass(frozen=True)
class Report:
    """What a checker found in one learner's work.

    Attributes:
        exercise: its name, such as "04/01_dot_product_attention".
        parameters: the seed and the sizes that the numbers were drawn with.
        parts: the checks, in the order in which they ran.
    """

    exercise: str
    parameters: Mapping[str, Any]
    parts: tuple[Part, ...] = field(repr=False)

    @property
    def passed(self) -> int:
        """How many checks passed."""
        return sum(part.passed for part in self.parts)

    @property
    def total(self) -> int:
        """How many checks there are."""
        return len(self.parts)

    @property
    def status(self) -> Status:
        """'passed', 'failed', or 'not started' where every check only met the untouched stub."""
        if self.passed == self.total:
            return "passed"
        if all(finding.id == NOT_STARTED for part in self.parts for finding in part.findings) and not self.passed:
            return "not started"
        return "failed"

    @property
    def findings(self) -> dict[Finding, list[str]]:
        """Each finding once, with the names of the checks that met it; recognised mistakes come first."""
        first: dict[tuple[str, str], Finding] = {}
        met: dict[Finding, list[str]] = {}
        for part in self.parts:
            for finding in part.findings:
                same = first.setdefault((finding.id, finding.about), finding)
                met.setdefault(same, []).append(part.name)
        return dict(sorted(met.items(), key=lambda item: not item[0].known))

    @property
    def message(self) -> str:
        """The findings in one line, for a table."""
        return " ".join(finding.message for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The whole report as plain JSON data."""
        return {
            "format": 1,
            "exercise": self.exercise,
            "parameters": dict(self.parameters),
            "status": self.status,
            "passed": self.passed,
            "total": self.total,
            "message": self.message,
            "checks": [
                {
                    "name": part.name,
                    "passed": part.passed,
                    "skipped": part.skipped,
                    "findings": [finding.id for finding in part.findings],
                }
                for part in self.parts
            ],
            "findings": [
                {"id": finding.id, "message": finding.message, "hint": finding.hint, "checks": names}
                for finding, names in self.findings.items()
            ],
        }

    def __repr__(self) -> str:
        lines = [f"{self._verdict()} ({self._settings()})"]
        for finding, names in self.findings.items():
            lines.append(f"- {finding.message}" + (f" Hint: {finding.hint}" if finding.hint else ""))
            if self.status != "not started":
                lines.append(f"  Met in: {'; '.join(names)}.")
        return "\n".join(lines)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/plain": repr(self), "text/markdown": self.to_markdown(), MIME: self.to_dict()}

    def to_markdown(self) -> str:
        """The report as a notebook shows it."""
        blocks = [f"**{self._verdict()}** ({self._settings()})"]
        for finding, names in self.findings.items():
            text = f"- **{finding.message}**" if self.status == "failed" else f"- {finding.message}"
            if finding.hint:
                text += f" {finding.hint}"
            if self.status == "failed":
                text += f" *Met in: {'; '.join(names)}.*"
            blocks.append(text)
        if self.status == "failed":
            words = {part: "passed" if part.passed else "not run" if part.skipped else "not yet" for part in self.parts}
            rows = [f"| {part.name} | {word} |" for part, word in words.items()]
            blocks.append("\n".join(["| check | result |", "|:--|:--|", *rows]))
        return "\n\n".join(blocks)

    def _verdict(self) -> str:
        if self.status == "passed":
            return f"All {self.total} checks passed."
        if self.status == "not started":
            return "Not started yet."
        return f"{self.passed} of {self.total} checks passed."

    def _settings(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.parameters.items())

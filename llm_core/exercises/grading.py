"""A class's notebooks, graded: a row for each as it comes, kept in a file, and what the class got wrong most often.

    for row in grade(submissions("handed_in"), "handed_in-report.jsonl", jobs=2):
        print(row["student"], row["status"])

Each notebook runs as a copy in a scratch folder of its own, in a kernel forked from a process that has torch loaded
(kernels.py). On Linux it sees neither the folder of the submissions nor the report, and can write nowhere else
(forkserver.py); elsewhere it runs with the rights of whoever grades, and a container is what keeps it in.

A row is written to the report before the next notebook begins. A grading that is killed, or stopped with Ctrl-C, goes
on where it was: what the report holds for the same file, parameters and variants is not run again.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from llm_core.checks import check_sizes
from llm_core.exercises import runner
from llm_core.exercises.kernels import ForkServer
from llm_core.exercises.tables import read_csv
from llm_core.files import digest

Row = dict[str, Any]

MAX_SEED = 10**6
_ROW = {field.name for field in fields(runner.Result)} | {"student", "file", "key", "seconds", "variants"}


@dataclass(frozen=True)
class Submission:
    """One notebook that was handed in.

    Attributes:
        path: where it lies; it is only read.
        file: its path below the folder, as text that can be printed whatever bytes its name has.
        student: whose it is: the first folder of its path, or its name.
        parameters: what it is checked with, as text; the rest keeps the notebook's defaults.
    """

    path: Path
    file: str
    student: str
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Variants:
    """Checks with numbers that a submission cannot know: `n` seeds drawn from `secret` and the student's name."""

    n: int = 0
    secret: str = ""

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError(f"the number of hidden variants must be at least 0: got {self.n}")

    def of(self, submission: Submission) -> list[dict[str, int]]:
        """The parameters of this submission's variants."""
        source = random.Random(f"{self.secret}\0{submission.student}")
        return [{"seed": source.randrange(1, MAX_SEED)} for _ in range(self.n)]


def submissions(
    folder: str | Path,
    parameters: Mapping[str, str] | None = None,
    *,
    students: str | Path | None = None,
    seed_from_name: bool = False,
    leave_out: Path | None = None,
) -> list[Submission]:
    """The notebooks below a folder, each with its student and parameters; checkpoints and hidden folders are left out.

    Args:
        folder: where the notebooks are: one for each student, or a folder for each.
        parameters: for all of them.
        students: a CSV file with a column `student`, and a column for each parameter that students differ in.
        seed_from_name: the seed is a number made of the student's name, so that everybody has numbers of their own
            (`seed_of` tells which).
        leave_out: a folder that is not looked into.

    Raises:
        ValueError: there is no such folder or no notebook in it, or the CSV file is not as it should be.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    table = {} if students is None else _read_students(Path(students))
    found = []
    for path in sorted(folder.rglob("*.ipynb"), key=os.fsencode):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        if leave_out is not None and leave_out.absolute() in path.absolute().parents:
            continue  # executed copies of an earlier run
        student = printable(inside.parts[0] if len(inside.parts) > 1 else inside.stem)
        if students is not None and student not in table:
            raise ValueError(f"{printable(inside)} is of {student!r}, for whom {students} has no line")
        own = {"seed": str(seed_of(student))} if seed_from_name else {}
        found.append(
            Submission(path, printable(inside), student, {**own, **(parameters or {}), **table.get(student, {})})
        )
    if not found:
        raise ValueError(f"there are no notebooks (*.ipynb) in {folder}")
    return found


def seed_of(student: str) -> int:
    """The seed that `seed_from_name` gives a student: the same on every machine, from 0 to 999,999.

    >>> seed_of("ada") == seed_of("ada") != seed_of("ben")
    True
    """
    return zlib.crc32(student.encode()) % MAX_SEED


def printable(name: str | Path) -> str:
    """A file's name, or another text, as every terminal, CSV and JSON can hold it: what is no UTF-8 becomes escapes."""
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character, which no name can hold and an escape in a program can write
        return str(name).encode("utf-8", "backslashreplace").decode()


def grade(
    handed_in: Sequence[Submission],
    report: str | Path,
    *,
    jobs: int = 1,
    variants: Variants = Variants(),
    points: float = 0.0,
    weights: Mapping[str, float] | None = None,
    timeout: float = runner.CELL_TIMEOUT,
    output: Path | None = None,
    again: bool = False,
    hidden: Sequence[Path] = (),
) -> Iterator[Row]:
    """Run the notebooks and give their rows: first those that the report holds already, then each as it comes.

    Args:
        handed_in: what `submissions` found.
        report: the file (JSON lines) that keeps the rows; made if it is not there.
        jobs: how many notebooks run side by side.
        variants: hidden checks with other seeds; one that fails makes the notebook fail.
        points: what a notebook that passes everything is worth; one point a check unless given.
        weights: for an exercise by its name, what its points are multiplied by.
        timeout: seconds that one cell may take.
        output: a folder for the executed copies.
        again: run what the report holds, too.
        hidden: folders and files that no notebook may see, where the system can hide them.

    Raises:
        ValueError: the report or `output` cannot be written, or the report is no such file.
    """
    report = Path(report)
    check_sizes(jobs=jobs)
    runner.check_timeout(timeout)
    if output is not None:
        runner.check_writable(output)
    runner.check_writable(report.absolute().parent)
    known = {row["key"]: row for row in read_report(report)} if report.exists() else {}
    worth = _Worth(points, dict(weights or {}))
    waiting = []
    for submission in handed_in:
        row = known.get(_key(submission, variants, timeout))
        if row is None or again:
            waiting.append(submission)
        else:
            yield worth.of(row)
    if not waiting:
        return
    with ExitStack() as stack:
        _mend(report)
        file = stack.enter_context(report.open("a", encoding="utf-8"))
        secret = _hideable([*hidden, *([output] if output is not None else []), report])
        server = stack.enter_context(ForkServer(secret)) if ForkServer.possible() else None
        pool = stack.enter_context(ThreadPoolExecutor(jobs))
        running: dict[Future[runner.Result], tuple[Submission, float, int]] = {}
        alone: list[Submission] = []  # what was running when the server was killed: one of them did it
        try:
            while waiting or alone or running:
                while waiting and len(running) < jobs:
                    submission = waiting.pop(0)
                    future = pool.submit(_run, submission, variants, timeout, output, server)
                    running[future] = submission, time.monotonic(), server.starts if server is not None else 0
                if not running:
                    submission = alone.pop(0)
                    future = pool.submit(_run, submission, variants, timeout, output, server)
                    running[future] = submission, time.monotonic(), 0
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                if server is not None and not server.alive():
                    server.start()
                for future in done:
                    submission, begun, start = running.pop(future)
                    result = future.result()
                    if server is not None and start and start != server.starts and result.status == "error":
                        alone.append(submission)
                        continue
                    key = _key(submission, variants, timeout)
                    row = _row(submission, result, key, time.monotonic() - begun)
                    row["fenced"] = server is not None and bool(server.fence)
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                    yield worth.of(row)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def read_report(path: str | Path) -> list[Row]:
    """The rows of a report; a last line that was cut off by a kill is left out.

    Raises:
        ValueError: the file cannot be read, or is no report.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the report {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    lines = text.removesuffix("\n").split("\n") if text else []  # a row may hold other marks that end a line
    if lines and not text.endswith("\n") and lines[-1].startswith("{"):
        lines.pop()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not row.keys() >= _ROW or not isinstance(row["key"], str):
                raise ValueError("it lacks something")
        except ValueError as error:
            raise ValueError(f"line {number} of {path} is no row of a report: give another file") from error
        rows.append(row)
    return rows


def _mend(report: Path) -> None:
    """Cut off a last line that a kill has left unfinished, so that the next row begins a line of its own."""
    if report.exists():
        content = report.read_bytes()
        with report.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def columns(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The rows as flat text: a column for each parameter and for each check, with the names of what it found."""
    parameters = dict.fromkeys(name for row in rows for name in row["parameters"])
    checks = dict.fromkeys(name for row in rows for name in row["checks"])
    flat = []
    for row in rows:
        line = {name: str(row[name]) for name in ("student", "file", "exercise", "status")}
        line |= {"points": f"{row['points']:g}", "of": f"{row['of']:g}"}
        line |= {"passed": str(row["passed"]), "total": str(row["total"])}
        line["variants"] = f"{row['variants'].count('passed')}/{len(row['variants'])}" if row["variants"] else ""
        line |= {name: str(row["parameters"].get(name, "")) for name in parameters}
        line |= {name: _outcome(row["checks"].get(name)) for name in checks}
        line |= {"seconds": f"{row['seconds']:.1f}", "message": " ".join(row["message"].split())}
        flat.append(line)
    return flat


@dataclass(frozen=True)
class Common:
    """A mistake and who made it."""

    exercise: str
    finding: str
    message: str
    students: tuple[str, ...]


def mistakes(rows: Sequence[Row]) -> list[Common]:
    """What was found, the most frequent first, each with the students in whose notebooks it was found."""
    who: dict[tuple[str, str], set[str]] = defaultdict(set)
    says: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in rows:
        for finding, message in row["findings"].items():
            who[row["exercise"], finding].add(row["student"])
            says[row["exercise"], finding][message] += 1
    found = [
        Common(exercise, finding, says[exercise, finding].most_common(1)[0][0], tuple(sorted(names)))
        for (exercise, finding), names in who.items()
    ]
    return sorted(found, key=lambda common: (-len(common.students), common.exercise, common.finding))


def totals(rows: Sequence[Row]) -> list[tuple[str, float, float]]:
    """For each student the points of all notebooks and the points there were, in the order of their names."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row in rows:
        sums[row["student"]][0] += row["points"]
        sums[row["student"]][1] += row["of"]
    return [(student, got, most) for student, (got, most) in sorted(sums.items())]


@dataclass(frozen=True)
class _Worth:
    """What a row is worth in points; reckoned when it is shown, so that other weights need no other run."""

    points: float
    weights: Mapping[str, float]

    def of(self, row: Row) -> Row:
        weight = self.weights.get(row["exercise"], 1.0)
        most = (self.points or float(row["total"])) * weight
        # A notebook that fails hidden variants has not earned the points of its own numbers.
        tried = row["passed"] / row["total"] if row["total"] else 0.0
        if row["variants"]:
            tried *= (1 + row["variants"].count("passed")) / (1 + len(row["variants"]))
        return {**row, "points": round(most * tried, 2), "of": most}


def _run(
    submission: Submission, variants: Variants, timeout: float, output: Path | None, server: ForkServer | None
) -> runner.Result:
    with tempfile.TemporaryDirectory(prefix="llm-core-") as scratch:
        kept = None if output is None else output / submission.file
        try:
            return runner.run(
                submission.path,
                submission.parameters,
                output=kept,
                timeout=timeout,
                variants=variants.of(submission),
                scratch=Path(scratch),
                server=server,
            )
        except Exception as error:  # whatever one file causes must not cost another its row
            text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            return runner.Result(submission.file, "", {}, 0, 0, "error", " ".join(text.split()))


def _row(submission: Submission, result: runner.Result, key: str, seconds: float) -> Row:
    own = {"student": submission.student, "file": submission.file, "key": key, "seconds": round(seconds, 1)}
    row: Row = _printable({**asdict(result), **own, "variants": list(result.variants)})
    return row


def _printable(value: Any) -> Any:
    """JSON data in which every text can be written to a file, whatever a notebook has put there."""
    if isinstance(value, Mapping):
        return {printable(key): _printable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(entry) for entry in value]
    return printable(value) if isinstance(value, str) else value


def _key(submission: Submission, variants: Variants, timeout: float) -> str:
    """What a row is about: it is run again when any of this changes."""
    try:
        content = digest(submission.path) if submission.path.is_file() else "no file"
    except OSError as error:
        content = str(error.strerror)
    about = [submission.file, content, dict(submission.parameters), variants.of(submission), timeout]
    return json.dumps(about, sort_keys=True)


def _read_students(path: Path) -> dict[str, dict[str, str]]:
    table: dict[str, dict[str, str]] = {}
    for number, line in read_csv(path).rows:
        student = line.pop("student", "").strip()
        if not student:
            raise ValueError(f"line {number} of {path} names no student: the file needs a column `student`")
        if student in table:
            raise ValueError(f"{path} has two lines for {student!r}")
        table[student] = {name: value.strip() for name, value in line.items() if value.strip()}
    return table


def _hideable(hidden: Sequence[Path]) -> list[Path]:
    """What can be hidden: not a folder in which this package, Python or the scratch folders are."""
    needed = [Path(place).resolve() for place in (__file__, os.__file__, tempfile.gettempdir())]
    return [path for path in hidden if path.exists() and not any(n.is_relative_to(path.resolve()) for n in needed)]


def _outcome(found: Sequence[str] | None) -> str:
    return "" if found is None else " ".join(found) or "ok"

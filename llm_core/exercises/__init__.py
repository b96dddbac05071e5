"""Exercises: `check` looks at what a learner wrote and says what is wrong with it.

    report.py    Finding, Part and Report: what was found, and how it is shown
    spec.py      Function and Spec: what an exercise calls its functions with, and its parameters
    exam.py      the examiner's tools: call the learner's function safely, compare, name the mistake, hold it against
                 the reference solution wherever mistakes show
    catalogue.py where the exercises are, and `check`
    runner.py    a learner's notebook run with parameters (papermill), one or a whole folder
    study.py     parameter studies: a notebook run at every point of a grid, the results in one table
    sNN_*/       one exercise each: spec.py, checker.py, solution.py

A check goes through three stages, in a state of its own (default dtype and device, gradients, autocast, seeds). First
the checker's own parts, which a learner sees by name and in which mistakes get theirs. Then, for each function whose
parts have all passed, what its spec says: many sizes, special cases, types, gradients, bans. Last, when all is well,
the checker's parts once more with two sets of parameters that the spec draws: a default that was typed in does not
pass.

A notebook uses two names:

    from llm_core.exercises import check
    check("04/01_dot_product_attention", attention=attention, seed=seed, ...)
"""

from llm_core.exercises.catalogue import check, draw
from llm_core.exercises.report import Finding, Report

__all__ = ["Finding", "Report", "check", "draw"]

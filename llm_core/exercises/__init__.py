"""Exercises: `check` looks at what a learner wrote and says what is wrong with it.

    report.py    Finding and Report: what was found, and how it is shown
    exam.py      the examiner's tools: call the learner's function safely, compare, name the mistake
    catalogue.py where the exercises are: checker, reference solution, wrong solutions, notebook
    runner.py    a learner's notebook run with parameters (papermill), one or a whole folder
    study.py     parameter studies: a notebook run at every point of a grid, the results in one table
    sNN_*/       one exercise each: checker.py, solution.py, mutants/*.py

A notebook uses two names:

    from llm_core.exercises import check
    check("04/01_dot_product_attention", attention=attention, seed=seed, ...)
"""

from llm_core.exercises.catalogue import check, draw
from llm_core.exercises.report import Finding, Report

__all__ = ["Finding", "Report", "check", "draw"]

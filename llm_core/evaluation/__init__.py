"""Evaluation: how good is what a model gives? One file is one kind of answer; each number is held to a library's."""

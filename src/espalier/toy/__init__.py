"""The toy world of the embedded model: word problems about small quantities, their text, instructions and scores."""

from espalier.toy.instructions import write_instructions
from espalier.toy.problems import Problem, Step, problem, problems, split_of
from espalier.toy.score import Score, answer_of, exact_match, score
from espalier.toy.tasks import write_tasks
from espalier.toy.text import document, write_text

__all__ = [
    "Problem",
    "Score",
    "Step",
    "answer_of",
    "document",
    "exact_match",
    "problem",
    "problems",
    "score",
    "split_of",
    "write_instructions",
    "write_tasks",
    "write_text",
]

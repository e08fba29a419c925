"""`check_model`: tests of a user's model against the laws that EM needs."""

from dataclasses import dataclass

from jaxem.analysis.model_checks import ModelChecks
from jaxem.protocol.returned import WrongReturn


@dataclass(frozen=True)
class Findings:
    """passed: the titles of the checks that hold; problems: a sentence for each that does not."""

    passed: tuple
    problems: tuple

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def __str__(self):
        lines = [f"ok: {what}" for what in self.passed] + [f"WRONG: {p}" for p in self.problems]
        return "\n".join(lines)


def check_model(model, x, *, weights=None, key=0) -> Findings:
    """Runs the functions of a model on data, and reports which laws of EM they break.

    The laws: equal models share a compiled program; shapes are right; probabilities have their
    `spaces`; statistics add over units and are linear in weights; a unit of weight 0 counts as
    absent, in the start too; F(q, θ) is the evidence at the posterior and not above it for any
    other q; no density is NaN where a probability is 0; the gradients of the evidence and of the
    expected log joint agree (Fisher's identity); EM steps do not lower the objective, and where
    they end it has no slope. A check is skipped where one that it depends on failed.

    Args:
      model: as for `fit`.  x: some units of data; a few dozen are enough.
      weights: (n,), or None for unequal ones.  key: a JAX key or an int, for the initial params.

    Returns:
      `Findings`, which print as a list. `findings.ok` is True where every check passed.
    """
    passed, problems, failed = [], [], set()
    checks_of_model = ModelChecks(model, x, weights, key)
    for name, needs, title in CHECKS:
        if failed & set(needs):
            failed.add(name)
            continue
        try:
            problem = getattr(checks_of_model, name)()
        except WrongReturn as error:
            problem = str(error)
        except Exception as error:
            problem = f"{title} could not be checked: {type(error).__name__}: {error}"
        if problem is None:
            passed.append(title)
        elif problem:
            problems.append(problem)
            failed.add(name)
    return Findings(tuple(passed), tuple(problems))


CHECKS = (
    ("protocol", (), "the functions that a model needs"),
    ("identity", ("protocol",), "equal models share a program"),
    ("starts", ("protocol",), "init, under jit"),
    ("absence", ("starts",), "init ignores units of weight 0"),
    ("domains", ("starts",), "spaces of the params"),
    ("shapes", ("starts",), "shapes of posterior and evidence"),
    ("boundary", ("shapes", "domains"), "probabilities of 0"),
    ("agreement", ("shapes",), "posterior and log_joint agree"),
    ("bound", ("shapes",), "F(q, θ) ≤ evidence"),
    ("additivity", ("shapes",), "statistics add over units"),
    ("linearity", ("shapes",), "statistics are linear in weights"),
    ("gradients", ("shapes", "agreement"), "gradients"),
    ("steps", ("shapes",), "maximize returns params like its own"),
    ("ascent", ("steps",), "EM steps never lower the objective"),
)

"""Verdicts in words, with the numbers on which they rest."""

from backend.contracts.evidence import Interval, Verdict


def sentence_of(
    title: str, verdict: Verdict, gain: Interval, best_local: str, over_control: Interval | None
) -> str:
    """What to say of an arm, such as `Transfer: h2tune gains +8.0 ± 3.1 points over local_only`.

    Args:
        title: of the arm.
        verdict: of `judge`.
        gain: over the best local arm.
        best_local: its name.
        over_control: over the permuted control; None: none was run.
    """
    numbers = f"{title} gains {_points(gain)} over {best_local}"
    if over_control is not None:
        numbers += f" and {_points(over_control)} over its permuted control"
    match verdict:
        case Verdict.TRANSFER:
            return f"Transfer: {numbers}; both 95 % intervals exclude zero."
        case Verdict.SHRINKAGE:
            return (
                f"Shrinkage, no transfer shown: {numbers}. The gain is not shown to need the real "
                "shared matrices."
            )
        case Verdict.UNCONTROLLED_GAIN:
            return (
                f"A gain without a control: {numbers}. Whether knowledge moved is not known, "
                "because no permuted control was run."
            )
        case Verdict.NO_GAIN:
            return f"No gain shown: {numbers}; the 95 % interval includes zero or less."
        case Verdict.TOO_FEW_SEEDS:
            return f"Too few seeds: {numbers}; one seed has no spread and settles nothing."


def _points(difference: Interval) -> str:
    """A difference of shares in percentage points, as the table beside the sentence has it."""
    mean = f"{100 * difference.mean:+.1f}"
    if difference.half_width is None:
        return f"{mean} points"
    return f"{mean} ± {100 * difference.half_width:.1f} points"

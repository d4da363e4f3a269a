"""Write findings as text: 17 of 20 (85%, 64 to 95)."""

import re
import textwrap

WIDTH = 110  # characters of a line of Markdown


def text_of(finding, spec=","):
    """A finding of study/experiments/cells.py as text, or None if there are no runs for it.

    spec: format of a plain number.
    """
    if finding is None or isinstance(finding, str):
        return finding
    if isinstance(finding, (int, float)):
        return f"{finding:{spec}}"
    if isinstance(finding, list):
        return ", ".join(finding) or "none"
    if "what" not in finding:  # several findings by name
        return "; ".join(f"{name} {text_of(each) or 'no runs yet'}" for name, each in finding.items()) or None
    if "counts" in finding:
        return "; ".join(f"{value} ({count:,})" for value, count in finding["counts"].items()) or None
    if "difference" in finding:
        return text_of_difference(finding)
    if "value" in finding:
        return text_of_value(finding)
    if "median" in finding:
        return finding["median"] and f"{finding['median']:,.0f}"
    if "iter" in finding:
        return f"{finding['right']} of {finding['total']}{progress(finding)}"
    if "right" in finding:
        return text_of_rate(finding)
    if "share" in finding:
        return text_of_share(finding)
    if "mean" in finding:
        return text_of_mean(finding["mean"])
    if "quartiles" in finding:
        return text_of_spread(finding)
    return finding["values"] and " to ".join(f"{value:,}" for value in sorted(set(finding["values"])))


def text_of_rate(finding):
    if not finding["total"]:
        return None
    low, high = (100 * bound for bound in finding["interval"])
    right, total = finding["right"], finding["total"]
    return f"{right} of {total} ({percent(right, total)}%, {low:.0f} to {high:.0f})"


def text_of_difference(finding):
    """-10 points (-33 to +14; Fisher's exact test p = 0.59), or +0 points (each; ...) if no pair differs."""
    if finding["interval"] is None:  # no runs, or too few for one
        return None
    points = 100 * finding["difference"]
    low, high = (100 * bound for bound in finding["interval"])
    test = "" if finding["p"] is None else f"; {finding['test']} p = {finding['p']:.2g}"
    interval = "each" if low == high else f"{signed(low)} to {signed(high)}"
    return f"{signed(points)} points ({interval}{test})"


def text_of_value(finding):
    """12.5 (12.1 to 13.0), to three digits, or 12.5% (12.1 to 13.0) if that is its unit.

    An interval of a point says only that all runs have the same, and is left out.
    """
    if finding["value"] is None:
        return None
    low, high = finding["interval"] or (None, None)
    interval = "" if low == high else f" ({low:.3g} to {high:.3g})"
    return f"{finding['value']:.3g}{finding.get('unit', '')}{interval}"


def text_of_share(finding):
    if finding["share"] is None:
        return None
    return f"{100 * finding['share']:.0f}%" + ("" if finding["p"] is None else f" (p = {finding['p']:.2g})")


def text_of_mean(mean):
    """A mean percentage, with digits enough not to read as 0 or 100 if it is not: 99.97."""
    if mean is None:
        return None
    texts = (number(mean, digits) for digits in range(1, 9))
    return next(text for text in texts if text not in ("0", "100") or mean in (0, 100))


def text_of_spread(finding):
    """Median (first to third quartile); one number if they are the same."""
    if finding["quartiles"] is None:
        return None
    digits = {"nats per character": 3, "bits a parameter": 2}.get(finding["unit"], 1)
    low, median, high = (number(value, digits) for value in finding["quartiles"])
    return median if low == high else f"{median} ({low} to {high})"


def progress(finding):
    """Where a run is that has not come to its end: " (at 6,000 of 30,000)"."""
    if finding["iter"] >= finding["max_iters"]:
        return ""
    return f" (at {finding['iter']:,} of {finding['max_iters']:,})"


def number(value, digits=1):
    """Without zeros that tell nothing: 99.0 is 99, 98.43 is 98.4."""
    return f"{value:.{digits}f}".removesuffix("." + digits * "0")


def signed(points):
    """With its sign: -2.9, +10."""
    return f"{round(points, 1) + 0:+.1f}".removesuffix(".0")  # + 0 makes -0.0 positive


def percent(right, total):
    """A share in percent, with a digit more where it would read as none or all: 1 of 200 is 0.5."""
    value = 100 * right / total
    return f"{value:.{int(0 < value < 1 or 99 < value < 100)}f}"


def wrapped(text):
    """Markdown with its paragraphs and list items wrapped; code, headings, tables and links stay."""
    parts = re.split(r"(```.*?```)", text, flags=re.DOTALL)
    for i in range(0, len(parts), 2):  # between the code
        parts[i] = "\n\n".join(wrap(block) for block in parts[i].split("\n\n"))
    return "".join(parts)


def wrap(block):
    if not block or block.startswith(("|", "#", "!", "\n")) or block.endswith("\n"):
        return block
    items = [" ".join(item.split()) for item in re.split(r"\n(?=- )", block)]
    return "\n".join(textwrap.fill(item, WIDTH, break_long_words=False, break_on_hyphens=False,
                                   subsequent_indent="  " if item.startswith("- ") else "") for item in items)

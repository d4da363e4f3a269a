"""The findings on why as Markdown tables."""

from study.experiments.tables import markdown
from study.experiments.text import number, text_of, text_of_mean
from study.experiments.why import SHARES
from study.experiments.why_optimizer import SEEDS, rates_of


def tables_of_why(found):
    """{name: table} of why(); None for what has no runs."""
    return {
        "capacity": capacity(found["capacity"]["by_width"]), "times": times(found["times"]),
        "tables": sizes(found["tables"]["by_table"]), "rates": rates(found["rates"]),
        "decays": decays(found["decays"]), "longer": longer(found["longer"]),
        "order": order(found["order"]["by_width"]), "pairs": pairs(found["pairs"]),
        "shares": shares(found["shares"]["by_width"]),
        "embeddings": embeddings(found.get("embeddings", {})),
    }


def table(title, heading, rows):
    """A Markdown table of findings and texts; None without rows."""
    texts = [[text_of(value) or "–" for value in row] for row in rows]
    return markdown(title, [heading, *texts]) if rows else None


def capacity(found):
    heading = ["n", "runs", "random table, mean %", "bits stored, median (quartiles)", "bits a parameter",
               "held-out problems of the true table, mean %"]
    return table("What a width holds of a random table at the last evaluation", heading, [
        [n, *(cell[key] for key in ("runs", "table", "bits", "each", "held_out"))]
        for n, cell in found.items()])


def times(found):
    heading = ["n", "random table", "trained problems", "held-out problems",
               "largest mean held-out score, % (its iteration)"]
    title = "Iterations until 90% are right: median if more than half of the runs get there (how many do)"
    return table(title, heading, [
        [n, *(f"{text_of(cell[key]) or '–'} ({cell[key]['right']} of {cell[key]['total']})"
              for key in ("random", "trained", "held_out")),
         cell["peak"] and f"{number(cell['peak']['percent'])} ({cell['peak']['iteration']:,})"]
        for n, cell in found.items()])


def sizes(found):
    heading = ["table", "problems", "runs", "n_mem", "n_gen", "n_gen / n_mem", "largest held-out mean, %",
               "trained problems right at the first width of n_gen or more, mean %"]
    return table("Where a random table and the held-out score pass one half, for each table", heading, [
        [name, cell["problems"], cell["runs"], cell["n_mem"],
         f"above {cell['above_half']}" if cell["above_half"] else cell["n_gen"], cell["ratio"],
         text_of_mean(cell["most"]), cell["trained"]] for name, cell in found.items()])


def rates(found):
    heading = ["n", "peak rate", "runs", "held-out score", "trained, mean %", "random table, mean %",
               "generalize", "held out, minus that at 0.01"]
    return table("Learning rates, at the last evaluation", heading, [
        [n, f"{cell['rate']:g}",
         *(cell[key] for key in ("runs", "score", "trained", "table", "generalizes", "against"))]
        for n, cells in found.items() for cell in cells.values()])


def decays(found):
    columns = rates_of(found)
    rows = []
    for n, of_decay in found.items():
        for cell in of_decay.values():
            means = {of_rate["rate"]: of_rate for of_rate in cell["rates"].values()}
            rows.append([n, f"{cell['decay']:g}",
                         *(mean_of(means[rate]) if rate in means else None for rate in columns),
                         cell["against"]])
    heading = ["n", "weight decay", *(f"{rate:g}" for rate in columns), "all rates, minus no weight decay"]
    return table("Held out, mean % at the last evaluation, by peak rate (with the runs where they are not "
                 f"{SEEDS})", heading, rows)


def mean_of(cell):
    """A mean with the number of its runs, unless it is SEEDS."""
    return text_of_mean(cell["score"]["value"]) + (f" ({cell['runs']})" if cell["runs"] != SEEDS else "")


def longer(found):
    heading = ["n", "weight decay", "runs", "held-out score", "most of a run at an evaluation, %",
               "held out, minus that after 30,000 iterations"]
    rows = []
    for n, of_width in found.items():
        rows += [[n, f"{cell['decay']:g}", cell["runs"], cell["score"], number(cell["most"]),
                  cell["against"]] for cell in of_width["by_decay"].values()]
        runs = sum(cell["runs"] for cell in of_width["by_decay"].values())
        rows.append([n, "all of them", runs, None, None, of_width["against"]])
    return table("After 300,000 iterations", heading, rows)


def order(found):
    heading = ["n", "runs", "the paper's text, mean %", "50 orders, mean %", "50 orders minus the paper's",
               "lowest loss with 50 orders, median (quartiles)"]
    return table("Held-out samples right at the last evaluation", heading, [
        [n, *(cell[key] for key in ("runs", "paper", "changing", "against", "lowest_loss"))]
        for n, cell in found.items()])


def pairs(found):
    names = {"new": "new pairs", "all": "all", "seen": "those whose answers other lines have",
             "sums": "sums of new pairs", "differences": "differences of new pairs"}
    heading = ["n", "pairs", "number", "runs of a pair", "those with 0 or 9, mean %", "the others, mean %",
               "difference"]
    return table("Held-out pairs at the edge of the table and inside", heading, [
        [n, name, edge["pairs"], edge["runs"], number(edge["at_edge"]), number(edge["inside"]), edge]
        for n, of_width in found.items() for edge, name in ((of_width[key], names[key]) for key in names)])


def shares(found):
    heading = ["n", "runs", *(f"{count} of 45" for count in SHARES), "points a pair", "trained, mean %"]
    rows = [[n, cell["runs"], *cell["by_count"].values(), cell["slope"], cell["trained"]]
            for n, cell in found.items()]
    seen = {count: share for cell in found.values() for count, share in cell["seen"].items()
            if share["values"]}
    rows += [["held-out answers that other lines have, %", None, *map(seen.get, map(str, SHARES)), None,
              None]] if found else []
    title = "Mean share of held-out samples right at the last evaluation, by pairs held out"
    return table(title, heading, rows)


def embeddings(found):
    heading = ["models", "runs", "on a line, mean %", "by chance", "on a circle, mean %", "by chance"]
    title = "Variance of the digits' embeddings that a line in the digit's value and a circle explain"
    return table(title, heading, [
        [name, *(cell[key] for key in ("runs", "line", "line_chance", "circle", "circle_chance"))]
        for name, cell in found.items()])

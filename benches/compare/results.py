"""From samples to values: medians, ratios, the table, and the check that nothing is missing."""

import collections
import statistics

import jobs
from processes import Failure

Cell = collections.namedtuple("Cell", "values median ratio why_not")


class Results:
    """All samples of a run: by server, then by round, then by name of the job."""

    def __init__(self, rows, servers, reference):
        self.rows, self.servers, self.reference = rows, servers, reference
        self.samples = {server.key: {} for server in servers}

    def record(self, server, number, name, sample):
        self.samples[server.key].setdefault(number, {})[name] = sample

    def cell(self, row, server):
        why_not = jobs.why_not(row, server)
        if why_not:
            return Cell([], None, None, why_not)
        values = self.values(row, server.key)
        median = statistics.median(values) if values else None
        of = self.values(row, self.reference) if row.has_ratio else []
        ratio = median / statistics.median(of) if values and of and statistics.median(of) > 0 else None
        return Cell(values, median, ratio, None)

    def values(self, row, key):
        """The value of each round that has all samples that the row is computed from."""
        found = []
        for _, samples in sorted(self.samples.get(key, {}).items()):
            try:
                found.append(row.value(row.id, samples))
            except (KeyError, ZeroDivisionError, ValueError):
                continue
        return found

    def check(self, rounds):
        """Fails unless every cell has a value of each round, or a reason why it can have none."""
        missing = []
        for row in self.rows:
            for server in self.servers:
                cell = self.cell(row, server)
                if cell.why_not is None and len(cell.values) != rounds:
                    missing.append(f"{server.title}: {row.work} ({row.state}): {len(cell.values)} of {rounds} values")
        if missing:
            raise Failure("the table is not complete:\n" + "\n".join(missing))

    def json(self):
        rows = []
        for row in self.rows:
            cells = {}
            for server in self.servers:
                cell = self.cell(row, server)
                if cell.why_not:
                    cells[server.key] = {"why_not": cell.why_not}
                else:
                    cells[server.key] = {"values": cell.values, "median": cell.median, "ratio": cell.ratio}
            rows.append({"id": row.id, "work": row.work, "state": row.state, "unit": row.unit, "cells": cells})
        return {"reference": self.reference, "rows": rows, "samples": self.samples,
                "servers": {server.key: {"title": server.title, "note": server.note} for server in self.servers}}

    def table(self):
        return table_of(self.json())


def table_of(document):
    """The table in Markdown, from what `compare.json` has: each value, and in brackets its ratio to the reference."""
    servers = document["servers"]
    head = ["work", "state", "unit", *(server["title"] for server in servers.values())]
    lines = [head, ["---"] * 3 + ["---:"] * len(servers)]
    for row in document["rows"]:
        cells = [shown(row["cells"][key]) for key in servers]
        lines.append([row["work"], row["state"], row["unit"], *cells])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = "\n".join(f"* {server['title']}: {server['note']}." for server in servers.values())
    return f"{table}\n\n{notes}\n"


def shown(cell):
    if "why_not" in cell:
        return "–"
    if cell["median"] is None:
        return "MISSING"
    text = number(cell["median"])
    return f"{text} ({ratio(cell['ratio'])})" if cell["ratio"] is not None else text


def ratio(value):
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def number(value):
    """Three significant digits, or all digits before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"

"""Results on the terminal."""

from collections.abc import Iterable

from rich.table import Table

from benchmarks.cases import Case
from benchmarks.results import Results
from benchmarks.summary import Median, work_out


def case_tables(case: Case, results: Results) -> list[Table]:
    """Medians of a case, each side compared with the first that was measured on the same subject."""
    medians = [median for median in results.measured.medians if median.case == case.name]
    tables = [_medians(case, medians)]
    if any(median.stages_s for median in medians):
        tables.append(_stages(case, medians))
    agreements = [agreement for agreement in results.agreements if agreement.case == case.name]
    if agreements:
        table = _table("Equal labels", ("side", "reference"), ("share of voxels",))
        for agreement in agreements:
            table.add_row(agreement.side, agreement.reference, f"{agreement.share:.6f}")
        tables.append(table)
    return tables


def summary_table(results: Results) -> Table:
    """Returns the table of the summary, with the goal of each figure."""
    table = _table("Summary", ("figure",), ("value", "goal"))
    figures = {**results.summary, **results.details}
    for key, value in work_out(figures, results.measured).items():
        table.add_row(key, f"{value:.4g}" if value < 1000 else f"{value:.0f}", figures[key].goal)
    return table


def _medians(case: Case, medians: list[Median]) -> Table:
    table = _table(
        f"{case.title}: medians",
        ("subject", "side"),
        ("rounds", "seconds", "× faster", "network s", "outside s", "outside %", "peak MB", "above model MB", "GPU MB"),
    )
    for median in medians:
        reference = next(other for other in medians if other.subject == median.subject)
        table.add_row(
            median.subject,
            median.side,
            str(median.rounds),
            f"{median.seconds:.3f}",
            f"{reference.seconds / median.seconds:.2f}",
            f"{median.network_s:.3f}",
            f"{median.outside_network_s:.3f}",
            f"{100 * median.outside_network_s / median.seconds:.1f}",
            f"{median.peak_mb:.0f}",
            f"{median.above_model_mb:.0f}",
            f"{median.device_mb:.0f}",
        )
    return table


def _stages(case: Case, medians: list[Median]) -> Table:
    stages = list(dict.fromkeys(stage for median in medians for stage in median.stages_s))
    table = _table(f"{case.title}: seconds by stage", ("subject", "side"), stages)
    for median in (median for median in medians if median.stages_s):
        seconds = (f"{median.stages_s[stage]:.2f}" if stage in median.stages_s else "" for stage in stages)
        table.add_row(median.subject, median.side, *seconds)
    return table


def _table(title: str, names: Iterable[str], figures: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, overflow="fold")
    for figure in figures:
        table.add_column(figure, justify="right")
    return table

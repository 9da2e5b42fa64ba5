# SPDX-License-Identifier: Apache-2.0
"""What attention kind and compensation leave behind after distillation, for the report."""

from report.figures import ABSENT, Results, at, percent, source, table
from report.pruning import reduced


def variants(results: Results, full: bool) -> list[str]:
    """One table per recipe: every variant, with and without compensation."""
    lines = []
    for name, data in results.starting_with("variants_distilled_").items():
        rows = [
            [variant, *(percent(at(entry, split)) for split in ("validation", "test"))]
            for variant, entry in (at(data, "summary") or {}).items()
        ]
        seeds = at(data, "seeds")
        lines += [
            f"**{name}: kinds of attention and compensation, pruned, distilled and fused**, "
            f"{ABSENT if seeds is None else len(seeds)} seed(s), {reduced(data)}; winner on validation: "
            f"{at(data, 'winner_on_validation') or ABSENT} ({source(f'variants_distilled_{name}', data, full)}):",
            "",
            *table(["variant", "validation %", "test %"], rows),
            "",
        ]
    return lines

# SPDX-License-Identifier: Apache-2.0
"""Write the tables of docs/guides/speed.md, and the lines on int8, torch and other ways to write the graph."""

from typing import Any

from report.figures import figure, finding, goal, source, table
from report.results import Results, at, each, of_file, reduce

DRAWN, EARLY, OPERATOR = "as first drawn", "read early", "Attention operator of opset 23"


def engines(data: Any) -> str:
    """int8 and torch, to follow the line on fp32; empty for a file without them."""
    if at(data, "int8") is None:
        return ""
    ratio, gain = at(data, "int8", "latency_ratio"), at(data, "int8_against_fp32", "sub_model", "ratio")
    stack, engine = (at(data, "torch", key, "ratio") for key in ("against_int8_sub_model", "engine"))
    return (
        f". In int8 (instruction set {at(data, 'isa') or 'unknown'}): {figure(ratio, '.1f')} times faster "
        f"{goal(ratio, at(data, 'int8', 'target_latency_ratio') or 10, '≥')}; the int8 sub-model against the fp32 one "
        f"{figure(gain, '.2f')} times {goal(gain, at(data, 'int8_against_fp32', 'target') or 1.3, '≥')}. The whole "
        f"stack, ViT-Base in torch fp32 against the int8 sub-model: {figure(stack, '.1f')} times, of which the engine "
        f"alone {figure(engine, '.2f')} (ViT-Base, torch against onnxruntime, both fp32)"
    )


@of_file("vit_base_operators")
def operators(data: Any, full: bool) -> list[str]:
    """What reading early gains; in full every other way to write the graph."""
    gains = [at(data, "ways", precision, EARLY, "gain") for precision in ("fp32", "int8")]
    shallow = [at(data, "shallow", "ways", precision, EARLY, "gain") for precision in ("fp32", "int8")]
    on_top = [at(data, "ways", precision, OPERATOR, "gain_on_top") for precision in ("fp32", "int8")]
    text = (
        f"graph read early (the last layer computes only the token that is read): {figure(gains[0], '.3f')} times "
        f"faster in fp32, {figure(gains[1], '.3f')} in int8; of {figure(at(data, 'shallow', 'layers'))} layers "
        f"{figure(shallow[0], '.3f')} and {figure(shallow[1], '.3f')}. Attention as one operator on top of it (opset "
        f"23): {figure(on_top[0], '.3f')} and {figure(on_top[1], '.3f')}"
    )
    return finding("vit_base_operators", data, text, ways_table(data), full)


def ways_table(data: Any) -> list[str]:
    """Every way to write or to run the graph."""
    precisions = ("fp32", "int8")
    names = list(dict.fromkeys(name for p in precisions for name in at(data, "ways", p) or {}))
    rows = []
    for name in names:
        cells = []
        for precision in precisions:
            row = at(data, "ways", precision, name)
            spread = at(row, "gain_on_top_of_processes") or []
            ends = "" if not spread else f" ({min(spread):.3f} to {max(spread):.3f})"
            own = [figure(at(row, key), form) for key, form in (("median_ms", ".3f"), ("gain", ".3f"))]
            own += [figure(at(row, "gain_on_top"), ".3f") + ends, figure(at(row, "difference"), ".1e")]
            cells += [""] * len(own) if row is None else own
        rows.append([name, *cells])
    columns = ("ms", "gain", "on top of reading early", "difference")
    return table(["", *(f"{p} {what}" for p in precisions for what in columns)], rows)


def ratios_table(data: Any) -> list[str]:
    """All ratios of the main benchmark, with the range of the rounds."""
    latency = ("latency_ratio", "latency_ratios_of_rounds")
    listed = [
        ("ViT-Base / sub-model, fp32 ONNX", *pair(data, *latency), "≥ 20"),
        ("ViT-Base / sub-model, int8 ONNX", *pair(at(data, "int8"), *latency), "≥ 10"),
        ("sub-model, fp32 / int8", *pair(at(data, "int8_against_fp32", "sub_model")), "≥ 1.3"),
        ("ViT-Base, fp32 / int8", *pair(at(data, "int8_against_fp32", "teacher")), ""),
        ("ViT-Base, torch fp32 / fp32 ONNX", *pair(at(data, "torch", "engine")), ""),
        ("ViT-Base torch fp32 / sub-model fp32 ONNX", *pair(at(data, "torch", "against_fp32_sub_model")), ""),
        ("ViT-Base torch fp32 / sub-model int8 ONNX", *pair(at(data, "torch", "against_int8_sub_model")), ""),
        ("multiply-accumulates", at(data, "macs_ratio"), None, ""),
    ]
    rows = [
        [name, figure(ratio, ".2f"), "" if not rounds else f"{min(rounds):.2f} to {max(rounds):.2f}", target]
        for name, ratio, rounds, target in listed
    ]
    return table(["", "ratio", "range of the rounds", "target"], rows)


def pair(data: Any, ratio: str = "ratio", rounds: str = "ratios_of_rounds") -> tuple[Any, Any]:
    """A ratio and those of the rounds."""
    return at(data, ratio), at(data, rounds)


def parts_table(data: Any) -> list[str]:
    """Milliseconds by part of all four graphs, from the profiler, and the excess of the two sub-models."""
    graphs = [at(data, *keys) for keys in (("teacher",), ("sub_model",), ("int8", "teacher"), ("int8", "sub_model"))]
    excess = [at(data, "gap", "excess_ms"), at(data, "int8", "gap", "excess_ms")]
    rows = []
    for part in at(graphs[0], "profile", "parts_ms") or {}:
        ms = [at(graph, "profile", "parts_ms", part) for graph in graphs]
        rate = [at(graph, "profile", "gflops", part) for graph in graphs]
        cells = []
        for index in range(2):
            own = slice(2 * index, 2 * index + 2)
            rates = "" if rate[own][1] is None else " / ".join(f"{r:.0f}" for r in rate[own])
            cells += [*(figure(value, ",.3f") for value in ms[own]), rates, figure(at(excess[index], part), ".3f")]
        rows.append([part, *cells])
    columns = ("ViT-Base ms", "sub-model ms", "G(FL)OP/s", "excess ms")
    return table(["", *(f"{p} {what}" for p in ("fp32", "int8") for what in columns)], rows)


def speed(results: Results) -> str:
    """What docs/guides/speed.md shows between its markers."""
    ratios, ways = results.get("vit_base_onnx"), results.get("vit_base_operators")
    rounds = each([ratios], "latency_ratios_of_rounds")
    load = ", ".join(figure(at(data, "load_average"), ".1f") for data in (ratios, ways))
    processes = reduce(max, [len(one) for one in rounds])
    lines = [
        "### Ratios",
        "",
        *ratios_table(ratios),
        "",
        f"Instruction set {at(ratios, 'isa') or 'unknown'} (profile {at(ratios, 'profile') or 'unknown'}); "
        f"{figure(processes)} rounds; other programs ran meanwhile (load averages {load}).",
        "",
        "### Time by part, from onnxruntime's profiler",
        "",
        *parts_table(ratios),
        "",
        "### Other ways to write or run the graph",
        "",
        *ways_table(ways),
        "",
        *[line.removeprefix("- ") for line in operators(results, False)],
        "",
        f"{source('vit_base_onnx', ratios, True)}.",
        "",
        f"{source('vit_base_operators', ways, True)}.",
    ]
    return "\n".join(lines) + "\n"
